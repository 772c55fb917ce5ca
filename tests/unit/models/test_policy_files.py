"""`policy_files`: oracle (what the libraries make of the folder), laws, errors."""

import json
from functools import cache

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    LCMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import PeftModel
from safetensors.torch import load_file

from mvczigal_ref import files
from mvczigal_ref.models import policy_files
from mvczigal_ref.models.lora import add_lora, lora_parameters
from mvczigal_ref.models.lora_files import load_lora
from mvczigal_ref.models.model_card import CardFacts
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.policy_files import save_policy, trained_lora
from tests.unit.models import flow_small
from tests.unit.models.small import conditioning, fresh_components, randn
from tests.unit.models.test_multiview_unet import latents, predict

RANK = 3
SETTINGS = {"optim": {"lr": 1e-4}, "run": {"seed": 42}}
PEFT = {"adapter_config.json", "adapter_model.safetensors"}


def away_from_zero(parameters):
    """Give a LoRA values that act."""
    with torch.no_grad():
        for index, parameter in enumerate(parameters.values()):
            parameter.copy_(0.1 * randn(*parameter.shape, seed=index))


@cache
def unet_policy(alpha: float = float(RANK)) -> MultiViewUNet:
    """Build a multi-view policy that has learnt; no test changes it."""
    policy = fresh_components().policy
    add_lora(policy.unet, rank=RANK, alpha=alpha, seed=0)
    away_from_zero(lora_parameters(policy.unet))
    return policy


@cache
def flow_policy():
    """Build a flow policy that has learnt; no test changes it."""
    policy = flow_small.fresh_flux().policy
    network, targets = policy.transformer, policy.lora_targets
    add_lora(network, rank=RANK, alpha=2.0 * RANK, seed=0, targets=targets)
    away_from_zero(lora_parameters(network))
    return policy


def acts_as(unet, policy):
    """Tell whether a UNet in another policy predicts as this one."""
    x, given = latents(), conditioning()
    other = MultiViewUNet(unet, policy.camera_encoder).eval()
    found, expected = predict(x, given, policy=other), predict(x, given, policy=policy)
    return torch.allclose(found, expected, rtol=1e-6, atol=1e-7)


def flows_as(transformer, policy):
    """Tell whether a transformer predicts as a policy's."""
    given = flow_small.conditioning(flow_small.small_flux())
    found = flow_small.predict(type(policy)(transformer).eval(), given)
    return torch.allclose(found, flow_small.predict(policy, given), rtol=1e-6, atol=1e-7)


def names(folder):
    """Name every file below a folder."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# -- oracle: what the libraries themselves make of the folder ------------------------------


def test_one_folder_serves_peft_diffusers_and_the_released_code(tmp_path):
    """Each finds its own files beside those of the others, and predicts as what was trained."""
    policy, folder = unet_policy(), tmp_path / "policy"
    save_policy(trained_lora(policy), folder, facts=CardFacts(base="a/base", settings=SETTINGS))
    parts = fresh_components()
    pipeline = StableDiffusionXLPipeline(
        vae=parts.vae, text_encoder=parts.text_encoder, text_encoder_2=parts.text_encoder_2,
        tokenizer=parts.tokenizer, tokenizer_2=parts.tokenizer_2, unet=parts.policy.unet,
        scheduler=LCMScheduler(),
    )  # fmt: skip
    pipeline.load_lora_weights(folder)

    assert acts_as(pipeline.unet, policy)
    peft = PeftModel.from_pretrained(fresh_components().policy.unet, folder)
    assert acts_as(peft.base_model.model, policy)
    for source in (folder, folder / "lora.safetensors"):
        unet = fresh_components().policy.unet
        load_lora(unet, source)
        assert acts_as(unet, policy)
    own = {"README.md", "SHA256SUMS", "lora.safetensors", "pytorch_lora_weights.safetensors"}
    assert names(folder) == PEFT | own


def test_a_flow_lora_loads_through_peft_and_diffusers(tmp_path):
    """With its scale of 2, for which there is no released file."""
    policy, folder = flow_policy(), tmp_path / "policy"
    save_policy(trained_lora(policy), folder)
    pipeline = flow_small.flux_pipeline(flow_small.fresh_flux())
    pipeline.load_lora_weights(folder)

    assert flows_as(pipeline.transformer, policy)
    plain = flow_small.fresh_flux().policy.transformer
    assert not flows_as(plain, policy)
    assert flows_as(PeftModel.from_pretrained(plain, folder).base_model.model, policy)
    assert names(folder) == PEFT | {"README.md", "SHA256SUMS", "pytorch_lora_weights.safetensors"}


def test_whole_networks_are_diffusers_folders(tmp_path):
    """The UNet's lies beside its adapter; every value comes back."""
    policy, flow = fresh_components().policy, flow_small.fresh_flux().policy
    save_policy(policy, tmp_path / "multiview", facts=CardFacts(settings=SETTINGS))
    save_policy(flow, tmp_path / "flow")
    unet = UNet2DConditionModel.from_pretrained(
        tmp_path / "multiview" / "unet", torch_dtype=torch.float64
    )
    values = unet.state_dict() | load_file(tmp_path / "multiview" / "mv_adapter.safetensors")
    own = policy.unet.state_dict() | policy.camera_encoder.state_dict()
    transformer = FluxTransformer2DModel.from_pretrained(
        tmp_path / "flow" / "transformer", torch_dtype=torch.float64
    )

    assert values.keys() == own.keys()
    assert all(torch.equal(values[name], value) for name, value in own.items())
    assert flows_as(transformer, flow)
    assert "library_name: diffusers" in (tmp_path / "multiview" / "README.md").read_text("utf-8")
    bare = (tmp_path / "flow" / "README.md").read_text("utf-8")
    assert "base_model" not in bare
    assert "Settings" not in bare


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "files"),
    [
        ("peft", PEFT),
        ("diffusers", {"pytorch_lora_weights.safetensors"}),
        ("released", {"lora.safetensors"}),
    ],
)
def test_one_layout_alone(layout, files, tmp_path):
    """With the card, which tells base model and settings as JSON that reads back."""
    lora = trained_lora(unet_policy())
    facts = CardFacts(base="a/base", settings=SETTINGS)
    save_policy(lora, tmp_path / "out", facts=facts, layout=layout)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")

    assert names(tmp_path / "out") == files | {"README.md", "SHA256SUMS"}
    assert card.startswith("---\nbase_model: a/base\nlibrary_name: peft\n")
    assert json.loads(card.partition("```json\n")[2].partition("```")[0]) == SETTINGS


def test_a_writer_that_dies_leaves_what_was_there(tmp_path, monkeypatch):
    """Nothing, or the old folder whole; the next writer clears up and replaces all of it."""
    folder, lora = tmp_path / "policy [1]", trained_lora(unet_policy())
    left = tmp_path / ".policy [1].1.tmp"
    left.mkdir()

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(policy_files, "model_card", lambda *_, **__: "card")
        patch.setattr(policy_files, "write_lora_file", die)
        with pytest.raises(KeyboardInterrupt):
            save_policy(lora, folder)
    assert list(tmp_path.iterdir()) == []

    folder.mkdir()
    (folder / "old").touch()
    with monkeypatch.context() as patch:
        patch.setattr(policy_files, "write_lora_file", die)
        with pytest.raises(KeyboardInterrupt):
            save_policy(lora, folder)
    assert names(tmp_path) == {"policy [1]/old"}
    save_policy(lora, folder, layout="released")
    written = {"README.md", "SHA256SUMS", "lora.safetensors"}
    assert names(tmp_path) == {f"policy [1]/{name}" for name in written}


def test_a_link_that_leads_nowhere_is_replaced(tmp_path):
    """The disk would not rename a folder over it."""
    (tmp_path / "policy").symlink_to("nowhere")
    save_policy(trained_lora(unet_policy()), tmp_path / "policy", layout="released")

    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert names(tmp_path / "policy") == {"README.md", "SHA256SUMS", "lora.safetensors"}


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Every file and folder of it, then the name itself."""
    seen = []

    def sync(path):
        seen.append((path, (tmp_path / "policy").exists()))

    for place in (files, policy_files):
        monkeypatch.setattr(place, "sync", sync)
    save_policy(trained_lora(unet_policy()), tmp_path / "policy", layout="peft")

    assert {path.name for path, there in seen if not there} > PEFT | {"README.md"}
    assert [path for path, there in seen if there] == [tmp_path]


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "layout", "message"),
    [
        (lambda: trained_lora(unet_policy(2.0)), "released", r"got unet with alpha 2 at rank 3"),
        (lambda: trained_lora(flow_policy()), "released", r"got transformer with alpha 6"),
        (lambda: fresh_components().policy, "peft", r"every weight was trained.* 'peft' out"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(trained, layout, message, tmp_path):
    """Before anything is written."""
    with pytest.raises(ValueError, match=message):
        save_policy(trained(), tmp_path / "out", layout=layout)
    assert list(tmp_path.iterdir()) == []
