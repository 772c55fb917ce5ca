"""`lora_files`: oracle, laws, golden names, errors."""

import json
from functools import cache

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.lora import LORA_TARGETS, add_lora, lora_parameters, lora_state_dict
from mvczigal_ref.models.lora_files import (
    load_lora,
    save_lora_file,
    save_lora_folder,
    save_unet_folder,
)
from mvczigal_ref.models.lora_weights import LoraWeights
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from tests.unit.models.small import conditioning, fresh_components, randn
from tests.unit.models.test_multiview_unet import latents, predict, published_names

RANK, ALPHA = 3, 6.0


@cache
def adapted(alpha: float = ALPHA) -> MultiViewUNet:
    """Build a policy whose LoRA is away from zero, once; no test changes it."""
    policy = fresh_components().policy
    add_lora(policy.unet, rank=RANK, alpha=alpha, seed=0)
    with torch.no_grad():
        for index, parameter in enumerate(lora_parameters(policy.unet).values()):
            parameter.copy_(0.1 * randn(*parameter.shape, seed=index))
    return policy


def write(layout, policy, folder):
    """Write a LoRA in one of the three layouts; name what is to be read."""
    if layout == "peft":
        save_lora_folder(policy.unet, folder, base_model="a/base")
        return folder
    file = "pytorch_lora_weights.safetensors" if layout == "diffusers" else "lora.safetensors"
    save_lora_file(policy.unet, folder / file, layout=layout)
    return folder if layout == "diffusers" else folder / file


def acts_as(unet, policy):
    """Tell whether a network with its own LoRA predicts as another."""
    x, given = latents(), conditioning()
    other = MultiViewUNet(unet, policy.camera_encoder).eval()
    found, expected = predict(x, given, policy=other), predict(x, given, policy=policy)
    return torch.allclose(found, expected, rtol=1e-6, atol=1e-7)


# -- oracle: what the libraries themselves make of the files -------------------------------


def test_peft_loads_the_folder(tmp_path):
    """Values, scale and targets; the base model is told."""
    policy = adapted()
    write("peft", policy, tmp_path)
    loaded = PeftModel.from_pretrained(fresh_components().policy.unet, tmp_path)

    assert acts_as(loaded.base_model.model, policy)
    config = loaded.peft_config["default"]
    assert (config.r, config.lora_alpha) == (RANK, ALPHA)
    assert config.base_model_name_or_path == "a/base"
    assert config.target_modules == set(LORA_TARGETS)
    assert lora_state_dict(policy.unet)  # saving changed no setting of the network's own
    assert isinstance(policy.unet.peft_config["default"].target_modules, set)


def test_diffusers_loads_the_file(tmp_path):
    """A stock pipeline around the multi-view UNet, by its own method."""
    policy, parts = adapted(), fresh_components()
    write("diffusers", policy, tmp_path)
    pipeline = StableDiffusionXLPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=parts.tokenizer,
        tokenizer_2=parts.tokenizer_2,
        unet=parts.policy.unet,
        scheduler=LCMScheduler(),
    )
    pipeline.load_lora_weights(tmp_path)

    assert acts_as(pipeline.unet, policy)


def test_the_released_code_s_way_loads_the_file(tmp_path):
    """An adapter of its settings, then PEFT's function; nothing is left over or missing."""
    policy, unet = adapted(alpha=float(RANK)), fresh_components().policy.unet
    path = write("released", policy, tmp_path)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LORA_TARGETS)))
    result = set_peft_model_state_dict(unet, load_file(path))

    assert not result.unexpected_keys
    assert not any("lora" in name for name in result.missing_keys)
    assert acts_as(unet, policy)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("layout", ["peft", "diffusers", "released"])
def test_loading_returns_what_was_saved(layout, held, tmp_path):
    """Bit for bit, into a plain network or one that holds a LoRA."""
    policy, other = adapted(alpha=float(RANK)), fresh_components().policy
    source = write(layout, policy, tmp_path)
    if held:
        add_lora(other.unet, rank=RANK, alpha=float(RANK), seed=9)
    load_lora(other.unet, source)

    saved, found = lora_state_dict(policy.unet), lora_state_dict(other.unet)
    assert list(found) == list(saved)
    assert all(torch.equal(found[name], value) for name, value in saved.items())
    assert other.unet.peft_config["default"].lora_alpha == RANK


@pytest.mark.parametrize("layout", ["peft", "diffusers"])
def test_the_scale_comes_back(layout, tmp_path):
    """Alpha is not taken for the rank where it is stored."""
    policy, other = adapted(), fresh_components().policy
    load_lora(other.unet, write(layout, policy, tmp_path))
    assert other.unet.peft_config["default"].lora_alpha == ALPHA


def test_a_released_file_without_a_scale(tmp_path):
    """Alpha is the rank, whatever the file's type."""
    policy, other = adapted(), fresh_components().policy
    values = {name: value.half() for name, value in lora_state_dict(policy.unet).items()}
    save_file(values, tmp_path / "released.safetensors")
    load_lora(other.unet, str(tmp_path / "released.safetensors"))

    assert other.unet.peft_config["default"].lora_alpha == RANK
    for name, value in lora_state_dict(other.unet).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, values[name].float())


def test_files_written_twice_are_the_same(tmp_path):
    """To the byte."""
    write("peft", adapted(), tmp_path / "a")
    write("peft", adapted(), tmp_path / "b")
    files = {path.name for path in (tmp_path / "a").iterdir()}

    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    for name in files:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in "ab")
        assert first == second


def test_a_trained_unet_is_a_diffusers_folder_and_an_adapter_file(tmp_path):
    """Plain names for diffusers, the published names beside; half precision where asked."""
    policy = fresh_components().policy
    save_unet_folder(policy, tmp_path, dtype=torch.float16)
    unet, info = UNet2DConditionModel.from_pretrained(tmp_path / "unet", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    found = unet.state_dict() | load_file(tmp_path / "mv_adapter.safetensors")
    expected = policy.unet.state_dict() | policy.camera_encoder.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[n].half(), value.half()) for n, value in expected.items())
    assert str(tmp_path) not in (tmp_path / "unet" / "config.json").read_text("utf-8")
    assert (tmp_path / "camera_encoder" / "config.json").is_file()


# -- golden parity -----------------------------------------------------------------------


def test_names_are_the_released_ones(tmp_path):
    """Up to the network's depth: what stands behind a block's number is the same."""
    released = {name.split("attentions.")[1] for name in published_names("names_lora_sdxl_r16")}
    path = write("released", adapted(alpha=float(RANK)), tmp_path)
    assert {name.split("attentions.")[1] for name in load_file(path)} <= released


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True])
def test_every_bad_tensor_is_named_and_nothing_changes(held, tmp_path):
    """A network without a LoRA stays without one and trainable."""
    policy, other = adapted(), fresh_components().policy
    path = tmp_path / "lora.safetensors"
    values = lora_state_dict(policy.unet)
    gone, bad = list(values)[2:4]
    values["stranger"] = values.pop(gone)
    values[bad] = torch.zeros(7)
    save_file(values, path)
    if held:
        add_lora(other.unet, rank=RANK, alpha=float(RANK), seed=9)
    before = {name: value.clone() for name, value in other.unet.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_lora(other.unet, path)

    for fault in (f"missing {gone}", "unexpected stranger", f"{bad} of shape (7,), not ("):
        assert fault in str(caught.value)
    after = other.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert held or all(p.requires_grad for p in other.unet.parameters())


@pytest.mark.parametrize("change", [{"use_dora": True}, {"rank_pattern": {"to_q": 2}}])
def test_another_kind_of_lora_is_refused(change, tmp_path):
    """Its values would be misread."""
    write("peft", adapted(), tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(CheckpointError, match=f"plain LoRA of one rank; .* {next(iter(change))}"):
        load_lora(fresh_components().policy.unet, tmp_path)


def test_loras_of_two_names_add_up(tmp_path):
    """Each beside the other, and a second load of a name overwrites that one alone."""
    policy, unet = adapted(), fresh_components().policy.unet
    source = write("diffusers", policy, tmp_path)
    for _ in range(2):
        load_lora(unet, source, adapter="first")
    load_lora(unet, source, adapter="second")
    unet.set_adapters(["first", "second"], [0.25, 0.75])

    assert tuple(unet.peft_config) == ("first", "second")
    assert acts_as(unet, policy)
    unet.set_adapters(["first", "second"], [0.25, 0.25])
    assert not acts_as(unet, policy)
    assert not lora_parameters(unet)  # nothing has the trained one's name


@pytest.mark.parametrize("name", ["", "a.b"])
def test_a_name_that_no_module_may_have_is_refused(name, tmp_path):
    """Before anything is read."""
    with pytest.raises(ValueError, match=f"`adapter` must be a name without dots; got '{name}'"):
        load_lora(fresh_components().policy.unet, tmp_path, adapter=name)


def test_another_scale_is_refused(tmp_path):
    """The network's own would be applied to the file's values."""
    other = fresh_components().policy
    add_lora(other.unet, rank=RANK, alpha=1.0, seed=9)
    with pytest.raises(CheckpointError, match=r"alpha / rank = 1 / 3; got 6 / 3"):
        load_lora(other.unet, write("peft", adapted(), tmp_path))


def test_the_released_layout_has_no_scale(tmp_path):
    """Whoever reads it takes the scale to be 1."""
    with pytest.raises(ValueError, match=r"`layout` .* got alpha 6 at rank 3"):
        write("released", adapted(), tmp_path)


@pytest.mark.parametrize("damage", ["cut", "absent"])
def test_a_file_that_is_no_lora(damage, tmp_path):
    """Cut, or not there."""
    file = tmp_path / "pytorch_lora_weights.safetensors"
    write("diffusers", adapted(), tmp_path)
    file.write_bytes(file.read_bytes()[:-50])
    if damage == "absent":
        file.unlink()
    message = "must be a whole safetensors" if damage == "cut" else "`source` must be a LoRA's file"
    with pytest.raises(CheckpointError, match=message):
        load_lora(fresh_components().policy.unet, tmp_path)


def test_a_network_with_a_lora_is_not_saved_whole(tmp_path):
    """Nor one without as a LoRA."""
    with pytest.raises(ValueError, match="`policy` must hold no LoRA"):
        save_unet_folder(adapted(), tmp_path)
    with pytest.raises(ValueError, match="`network` must hold a LoRA"):
        LoraWeights.of(fresh_components().policy.unet)
    assert not any(tmp_path.iterdir())
