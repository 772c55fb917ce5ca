"""`model_card` and `loading_snippet`: headers that the hub reads, and lines that load."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from diffusers import FluxPipeline, StableDiffusionPipeline, TCDScheduler
from huggingface_hub import ModelCard

from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.lora import add_lora
from mvczigal_ref.models.lora_weights import LoraWeights, write_lora_file
from mvczigal_ref.models.model_card import CardFacts, CardResult, hub_id, model_card
from mvczigal_ref.models.policy_files import save_policy, trained_lora
from mvczigal_ref.models.published import LCM_UNET, SDXL_BASE, weights_folder
from mvczigal_ref.models.unet.policy import SINGLE_VIEW_LORA_TARGETS
from mvczigal_ref.models.unet.tiny import tiny_unet_components
from mvczigal_ref.pipeline import TextToMultiviewPipeline
from tests.unit.models.test_policy_files import unet_policy

SAMPLING = {"sampler": {"num_steps": 1, "guidance_scale": 1.5}, "model": {"image_size": 32}}


@cache
def policy(kind):
    """Load the shipped network of a kind; no test changes it."""
    if kind == "flow":
        return load_flow(weights_folder("tiny_flow"), text_length=None).policy
    return TextToMultiviewPipeline.from_pretrained(weights_folder("tiny")).parts.policy


def lines(card):
    """Take the first block of Python out of a card."""
    return card.partition("```python\n")[2].partition("```")[0]


# -- oracle: the lines are run -------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", ["flow", "multiview"])
def test_the_lines_of_every_kind_of_folder_run(kind, whole, tmp_path, monkeypatch):
    """On the shipped weights, from the folder itself."""
    base = "tiny_flow" if kind == "flow" else "tiny"
    trained = policy(kind)
    if not whole:
        network = trained.transformer if kind == "flow" else trained.unet
        targets = {"targets": trained.lora_targets} if kind == "flow" else {}
        add_lora(network, rank=2, alpha=2.0, seed=0, **targets)
        trained = trained_lora(trained)
        policy.cache_clear()
    save_policy(trained, tmp_path / "out", facts=CardFacts(base=base, settings=SAMPLING))
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    exec(lines(Path("README.md").read_text("utf-8")), names)

    assert isinstance(
        names["pipeline"], FluxPipeline if kind == "flow" else TextToMultiviewPipeline
    )
    assert len(names["images"]) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_the_lines_of_a_single_view_unet_run(whole, tmp_path, monkeypatch):
    """With its distilled LoRA and the run's scheduler, in diffusers' own pipeline."""
    components = tiny_unet_components("sd15", seed=0)
    components.save(tmp_path / "base")
    unet = components.policy.unet
    add_lora(unet, rank=2, alpha=2.0, seed=0, targets=SINGLE_VIEW_LORA_TARGETS)
    write_lora_file(LoraWeights.of(unet), tmp_path / "few.safetensors")
    trained = trained_lora(components.policy)
    if whole:
        trained = tiny_unet_components("sd15", seed=0).policy
    sampler = {"kind": "tcd", "num_steps": 1, "guidance_scale": 1.0}
    model = {"image_size": 32, "sources": {"lora": str(tmp_path / "few.safetensors")}}
    facts = CardFacts(base=str(tmp_path / "base"), settings={"sampler": sampler, "model": model})
    save_policy(trained, tmp_path / "out", facts=facts)
    monkeypatch.chdir(tmp_path / "out")
    names, card = {}, Path("README.md").read_text("utf-8")
    exec(lines(card), names)

    assert isinstance(names["pipeline"], StableDiffusionPipeline)
    assert isinstance(names["pipeline"].scheduler, TCDScheduler)
    assert len(names["images"]) == 1
    assert whole or "every attention projection of a UNet." in card


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "call"),
    [
        (LCM_UNET, f'from_pretrained("{SDXL_BASE}")'),
        (SDXL_BASE, f'from_pretrained("{SDXL_BASE}", unet="{SDXL_BASE}")'),
        ("some/pipeline", 'from_pretrained("some/pipeline")'),
        ("tiny", 'from_pretrained(weights_folder("tiny"))'),
    ],
)
def test_a_lora_is_loaded_on_the_network_that_it_was_trained_on(base, call):
    """The few-step UNet is no pipeline: it comes with SDXL's base."""
    text = lines(model_card(trained_lora(unet_policy()), CardFacts(base=base), network="unet"))

    assert call in text
    compile(text, "card", "exec")


def test_the_header_is_what_the_hub_reads():
    """Base, licence, tags and results; a licence that was given wins over the base's."""
    result = CardResult(name="joint view", gain=0.5, text="1.0 to 1.5, gain +0.50 ± 0.10")
    facts = CardFacts(base="black-forest-labs/FLUX.1-dev", results=[result], repo="a/b")
    card = ModelCard(model_card(None, facts, network="transformer"))

    assert card.data.base_model == "black-forest-labs/FLUX.1-dev"
    assert card.data.license_name == "flux-1-dev-non-commercial-license"
    assert card.data.tags == ["fine-tuned", "reinforcement-learning"]
    (index,) = card.data.to_dict()["model-index"]
    (entry,) = index["results"]
    assert index["name"] == "b"
    assert entry["metrics"][0]["value"] == 0.5
    assert result.text in entry["metrics"][0]["name"]
    other = CardFacts(base=facts.base, license="mit")
    assert ModelCard(model_card(None, other, network="transformer")).data.license == "mit"


@pytest.mark.parametrize("name", [None, "tiny", "tiny_flow", "/data/x", "./a/b", "a/b/c"])
def test_what_is_no_hub_id_is_left_out(name):
    """Of the header, and so is a licence that nobody knows."""
    card = ModelCard(model_card(None, CardFacts(base=name), network="unet"))

    assert hub_id(name) is None
    assert card.data.base_model is None
    assert card.data.license is None


def test_a_folder_that_is_there_is_no_hub_id(tmp_path, monkeypatch):
    """Though it is named like one."""
    monkeypatch.chdir(tmp_path)
    assert hub_id("runs/one") == "runs/one"
    Path("runs/one").mkdir(parents=True)
    assert hub_id("runs/one") is None


def test_a_card_on_the_hub_names_no_place_of_the_machine():
    """Folders and addresses of the run stay out of it; a folder of one's own keeps them."""
    settings = {
        "run": {"prompts": "/home/someone/objects.txt", "held_out": "C:\\Users\\someone\\b.txt"},
        "reward": {"url": "http://judge.internal:8000", "per_view": "/srv/my.py:score"},
    }
    lora, facts = trained_lora(unet_policy()), CardFacts(settings=settings)
    here = model_card(lora, facts, network="unet")
    there = model_card(lora, replace(facts, repo="a/b"), network="unet")

    for place in ("/home/someone", "Users", "judge.internal", "/srv"):
        assert place in here
        assert place not in there
    assert all(name in there for name in ("objects.txt", "b.txt", "my.py:score"))
