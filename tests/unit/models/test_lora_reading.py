"""`lora_reading`: LoRA files as they go round, and adapters beside each other."""

import json
from dataclasses import fields
from functools import cache

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.lora import LORA_TARGETS, adapter_names, add_lora, lora_parameters
from mvczigal_ref.models.lora_files import check_lora, load_lora
from mvczigal_ref.models.lora_reading import INERT, KEEPS_BASE, PLAIN, read_lora
from mvczigal_ref.models.lora_weights import LoraWeights, write_lora_file, write_peft_files
from mvczigal_ref.pipeline import TextToMultiviewPipeline
from tests.unit.models.small import fresh_components, randn

# diffusers' own method warns of a second adapter.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
RANK, ALPHA = 4, 8.0
SCALE = {"unet.r": RANK, "unet.lora_alpha": ALPHA, "unet.target_modules": list(LORA_TARGETS)}


@cache
def unet(seed=0):
    """Build a UNet whose LoRA is away from zero; no test changes it."""
    network = fresh_components().policy.unet
    add_lora(network, rank=RANK, alpha=ALPHA, seed=0)
    with torch.no_grad():
        for index, value in enumerate(lora_parameters(network).values()):
            value.copy_(0.1 * randn(*value.shape, seed=1000 * seed + index))
    return network


@cache
def tensors():
    return {f"unet.{name}": value.detach() for name, value in lora_parameters(unet()).items()}


def write(path, values, settings=SCALE):
    """Write a file whose settings may say anything."""
    told = settings if isinstance(settings, str) else json.dumps(settings)
    save_file(dict(values), path, metadata={"lora_adapter_metadata": told})
    return path


def save(network, path):
    """Write a network's LoRA as diffusers reads it."""
    write_lora_file(LoraWeights.of(network), path)


def pipeline():
    return TextToMultiviewPipeline.from_components(
        fresh_components().to(dtype=torch.float32), image_size=16
    )


def weights(network):
    return {n: v.float() for n, v in network.state_dict().items() if ".lora_" not in n}


# -- oracle: PEFT's merged weights, and diffusers' own fusion ---------------------------------


def test_peft_and_diffusers_merge_to_the_same_weights(tmp_path):
    """Of one LoRA, as a folder and as a file."""
    write_peft_files(LoraWeights.of(unet()), tmp_path / "folder")
    save(unet(), tmp_path / "lora.safetensors")
    ours = fresh_components().policy.unet
    load_lora(ours, tmp_path / "lora.safetensors")
    ours.fuse_lora()
    ours.unload_lora()
    base = fresh_components().policy.unet
    theirs = PeftModel.from_pretrained(base, tmp_path / "folder").merge_and_unload()
    fused = pipeline()
    fused.load_lora_weights(tmp_path / "lora.safetensors")
    fused.fuse_lora(components=["unet"])
    fused.unload_lora_weights()
    for network in (theirs, fused.unet):
        expected = weights(network)
        for name, value in weights(ours).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)


def test_two_adapters_add_up(tmp_path):
    """The trained one beside a style: the merged weights are those of diffusers with both."""
    style = write(tmp_path / "style.safetensors", {n: 0.5 * v for n, v in tensors().items()})
    trained = tmp_path / "trained.safetensors"
    save(unet(seed=1), trained)
    ours, theirs = pipeline(), pipeline()
    ours.load_lora_weights(style, adapter_name="style")
    load_lora(ours.unet, trained)
    theirs.load_lora_weights(style, adapter_name="style")
    theirs.load_lora_weights(trained, adapter_name="trained")
    theirs.set_adapters(["style", "trained"])
    assert adapter_names(ours.unet) == ("style", "default")
    ours.unet.fuse_lora()
    ours.unet.unload_lora()
    theirs.fuse_lora(components=["unet"], adapter_names=["style", "trained"])
    theirs.unload_lora_weights()
    expected = weights(theirs.unet)
    for name, value in weights(ours.unet).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


# -- laws -------------------------------------------------------------------------------------


def test_every_setting_of_peft_has_one_place():
    """A setting that a new version brings must be put into one of the tables."""
    known = [*PLAIN, *INERT, "r", "lora_alpha", "init_lora_weights"]
    assert len(known) == len(set(known))
    assert {field.name for field in fields(LoraConfig)} <= set(known)
    plain = LoraConfig()
    for name, only in PLAIN.items():
        assert getattr(plain, name) == only


@pytest.mark.parametrize("order", ["style first", "trained first"])
def test_the_trained_one_is_saved_alone(order, tmp_path):
    """Whatever lies beside it, and under no other names."""
    style, trained = tmp_path / "style.safetensors", tmp_path / "trained.safetensors"
    write(style, tensors())
    save(unet(seed=1), trained)
    pipe = pipeline()
    if order == "style first":
        pipe.load_lora_weights(style, adapter_name="style")
        load_lora(pipe.unet, trained)
    else:
        load_lora(pipe.unet, trained)
        pipe.load_lora_weights(style, adapter_name="style")
    save(pipe.unet, tmp_path / "again.safetensors")
    found, expected = load_file(tmp_path / "again.safetensors"), load_file(trained)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert set(found) == set(expected)


def test_only_the_trained_one_trains(tmp_path):
    """A style stays as it is, and both act."""
    pipe = pipeline()
    pipe.load_lora_weights(write(tmp_path / "a.safetensors", tensors()), adapter_name="style")
    load_lora(pipe.unet, tmp_path / "a.safetensors")
    training = {id(p) for p in pipe.unet.parameters() if p.requires_grad}
    assert training == {id(p) for p in lora_parameters(pipe.unet).values()}
    assert list(pipe.unet.active_adapters()) == ["style", "default"]
    load_lora(pipe.unet, tmp_path / "a.safetensors")  # again, into the one that is there


def test_the_only_adapter_is_saved_whatever_its_name(tmp_path):
    """And of several others none is chosen."""
    pipe = pipeline()
    write(tmp_path / "a.safetensors", tensors())
    pipe.load_lora_weights(tmp_path / "a.safetensors", adapter_name="style")
    save(pipe.unet, tmp_path / "again.safetensors")
    assert set(load_file(tmp_path / "again.safetensors")) == set(tensors())
    pipe.load_lora_weights(tmp_path / "a.safetensors", adapter_name="other")
    with pytest.raises(ValueError, match="one LoRA, or one that is named 'default'; got style, ot"):
        save(pipe.unet, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"`network` must hold no LoRA yet; got .* style, other"):
        add_lora(pipe.unet, rank=1, alpha=1.0, seed=0)


def test_settings_may_stand_without_the_network_s_name(tmp_path):
    """As in a file of diffusers' `save_lora_adapter`, whose scale was dropped."""
    network = unet()
    network.save_lora_adapter(tmp_path, adapter_name="default")
    file = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    assert (file.rank, file.alpha, len(file.values)) == (RANK, ALPHA, len(tensors()))


@pytest.mark.parametrize("kept", KEEPS_BASE)
def test_plain_initial_values_pass(kept, tmp_path):
    """They leave the base as it is."""
    path = write(tmp_path / "a.safetensors", tensors(), SCALE | {"unet.init_lora_weights": kept})
    assert read_lora(path).rank == RANK


# -- errors -----------------------------------------------------------------------------------

TE = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_"
BAD_TENSORS = {
    "nan": (lambda v: v * float("nan"), "must hold finite numbers; got NaN or infinity in "),
    "inf": (lambda v: v / 0.0, "must hold finite numbers"),
    "int8": (lambda v: (127 * v).to(torch.int8), r"floating-point .* of torch\.int8"),
}
STYLES = {
    "lora_unet_down_blocks_1_attentions_0_to_q.lora_down.weight": "a LoRA in kohya's names",
    "lora_te1_text_model_encoder_layers_0_q_proj.alpha": "a LoRA in kohya's names",
    "unet.mid_block.attn1.processor.to_q_lora.down.weight": "diffusers' old names",
    "diffusion_model.double_blocks.0.img.lora_A.weight": "the original model's names",
    "transformer.blocks.0.attn.to_q.lora_A.weight": "another network, transformer",
    "unet.mid_block.to_q.lora_magnitude_vector": "a DoRA",
    "lycoris_unet_to_q.hada_w1_a": "a LyCORIS adapter",
    "unet.mid_block.to_q.lora_A.default.weight": "a network's own state, 1 of 1 tensors",
    "unet.conv_in.weight": "lora_A and lora_B; .* no LoRA, 1 tensors: unet.conv_in.weight",
}


def refused(path, message):
    """Refused in one short line that names the file, and nothing is left behind."""
    network = fresh_components().policy.unet
    with pytest.raises(CheckpointError, match=message) as caught:
        load_lora(network, path)
    assert adapter_names(network) == ()
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_numbers_are_refused(kind, tmp_path):
    """By the first tensor's name."""
    change, message = BAD_TENSORS[kind]
    values = {name: change(value) for name, value in tensors().items()}
    refused(write(tmp_path / "a.safetensors", values), message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SCALE | {"unet.r": 16}, "r = 16; its tensors have rank 4"),
        ("[1, 2]", "lora_adapter_metadata as a JSON object; got list"),
        ("{", "lora_adapter_metadata as JSON"),
        *(
            (SCALE | {"unet.lora_alpha": bad}, "setting lora_alpha; got")
            for bad in (-8, 0, 10**400, 1e300, 1e-300, "8", [], {}, True, None)
        ),
        (SCALE | {"unet.r": None}, "setting r; got None"),
        (SCALE | {"unet.r": 4.5}, "r = 4.5; its tensors"),
        (SCALE | {"unet.use_rslora": True}, "its settings have use_rslora"),
        (SCALE | {"unet.alpha_pattern": {"to_q": 2}}, "its settings have alpha_pattern"),
        (SCALE | {"unet.bias": "all"}, "its settings have bias"),
        ({"unet.r": RANK}, "must have lora_alpha among its settings; got r, and PEFT would"),
        ({"unet.lora_alpha": ALPHA}, "must have r among its settings; got lora_alpha, and PEFT"),
        (SCALE | {"unet.from_tomorrow": 3}, "its settings have from_tomorrow"),
        (SCALE | {"unet.layers_to_transform": [0]}, "its settings have layers_to_transform"),
        (SCALE | {"unet.target_modules": ["to_q"]}, "its target_modules alone, to_q; got those of"),
        *(
            (SCALE | {"unet.init_lora_weights": kind}, "init_lora_weights = .* changed them")
            for kind in ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "new", 1)
        ),
    ],
)
def test_settings_are_refused_by_name(settings, message, tmp_path):
    """In the file, and in a PEFT folder likewise."""
    refused(write(tmp_path / "a.safetensors", tensors(), settings), message)
    if isinstance(settings, str):
        return
    write_peft_files(LoraWeights.of(unet()), tmp_path)
    config = tmp_path / "adapter_config.json"
    change = {name.removeprefix("unet."): value for name, value in settings.items()}
    if "among its settings" not in message:
        change = json.loads(config.read_text("utf-8")) | change
    config.write_text(json.dumps(change))
    refused(tmp_path / "adapter_model.safetensors", message)


@pytest.mark.parametrize("name", STYLES)
def test_other_names_are_recognised(name, tmp_path):
    """Whose they are, and what to do."""
    path = write(tmp_path / "a.safetensors", {name: torch.zeros(4, 8)}, {})
    refused(path, STYLES[name])


def test_text_encoders_mixed_in_are_named(tmp_path):
    """These two, and not the network's hundreds."""
    mixed = {f"{TE}A.weight": torch.zeros(4, 8), f"{TE}B.weight": torch.zeros(8, 4)}
    path = write(tmp_path / "a.safetensors", {**tensors(), **mixed})
    refused(path, f"2 tensors of text encoders: {TE}A.weight, {TE}B.weight")


def test_ranks_that_differ_are_told(tmp_path):
    """Between tensors of one file."""
    values = dict(tensors())
    name = next(name for name in values if ".lora_A." in name)
    values[name] = torch.zeros(7, values[name].shape[1])
    refused(write(tmp_path / "a.safetensors", values, {}), "its tensors have ranks 4, 7")


def test_a_mismatch_is_a_few_names(tmp_path):
    """At any size of the network."""
    values = {f"other.{name}": value for name, value in tensors().items()}
    refused(write(tmp_path / "a.safetensors", values), "missing .*; and [0-9]+ more; unexpected")


def test_a_plain_network_s_lora_is_recognised(tmp_path):
    """As diffusers' trainer writes it for SDXL itself: no row attention, before the network too."""
    values = {name: value for name, value in tensors().items() if "_mv." not in name}
    path = write(tmp_path / "a.safetensors", values)
    refused(path, "of a plain network, as diffusers' trainer writes it, .* by `load_lora_weights`")
    with pytest.raises(CheckpointError, match="must adapt row attention too"):
        check_lora(path, network="multiview")
    assert check_lora(path, network="unet").rank == RANK  # whose network has no row attention


def test_a_peft_file_without_its_settings_is_refused(tmp_path):
    """Under another name it has lost its scale."""
    write_peft_files(LoraWeights.of(unet()), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "mine.safetensors")
    refused(tmp_path / "mine.safetensors", "must say its scale; .* Name it adapter_model.safeten")


def test_nothing_is_in_the_file(tmp_path):
    """No tensors at all."""
    refused(write(tmp_path / "a.safetensors", {}), "no LoRA, 0 tensors: none")
