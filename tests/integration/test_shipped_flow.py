"""The shipped flow weights: whole, as logged, and they paint what they are asked for."""

import filecmp
import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.published import weights_folder
from mvczigal_ref.pretraining.flow import FlowPretrainConfig, untrained
from mvczigal_ref.pretraining.gate_flow import gate_flow
from mvczigal_ref.tiny_world.grammar import split_prompts

FOLDER = weights_folder("tiny_flow")
LONGER = FOLDER.with_name("tiny_flow_longer")
"""Weights of four more stages; no recipe reads them yet."""

CONFIG = FlowPretrainConfig()


@pytest.fixture(scope="module")
def components():
    """Read strictly: a missing or misshapen tensor is refused."""
    return load_flow(FOLDER, text_length=CONFIG.max_tokens)


def test_they_are_what_the_command_makes(components):
    """The default settings, logged to the last step of either stage."""
    lines = [json.loads(line) for line in (FOLDER / "pretrain_log.jsonl").read_text().splitlines()]
    last = {line["stage"]: line for line in lines}

    assert json.loads((FOLDER / "pretrain_config.json").read_text()) == asdict(CONFIG)
    assert {stage: line["step"] for stage, line in last.items()} == {
        "paint": CONFIG.paint_steps, "settle": CONFIG.settle_steps,
    }  # fmt: skip
    assert last["settle"]["loss"] < last["paint"]["loss"] < lines[0]["loss"]
    made = untrained(CONFIG)
    shapes = {name: value.shape for name, value in made.policy.state_dict().items()}
    assert shapes == {name: value.shape for name, value in components.policy.state_dict().items()}
    prompts = split_prompts()[1]
    for one, other in zip(
        made.encode_prompts(prompts), components.encode_prompts(prompts), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-2)  # stored in half precision


def test_they_are_small(components):
    """At most 2.5 million parameters, and 6 MB with all evidence."""
    assert sum(value.numel() for value in components.policy.parameters()) <= 2_500_000
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 6_000_000


def test_they_share_the_autoencoder_of_the_multi_view_weights(components):
    """Bit for bit, so their latents are the same."""
    taken = load_components(weights_folder("tiny")).vae.state_dict()
    made = components.vae.state_dict()

    assert taken.keys() == made.keys()
    assert all(torch.equal(value, made[name]) for name, value in taken.items())


def test_longer_training_changes_the_network_alone():
    """All else has the bytes of the shipped weights, and the network their names and shapes."""
    parts = ("model_index.json", "scheduler", "text_encoder*", "tokenizer*", "vae")
    others = [path for part in parts for path in FOLDER.glob(part)]
    for path in others:
        for file in [path] if path.is_file() else path.iterdir():
            same = LONGER / file.relative_to(FOLDER)
            assert filecmp.cmp(file, same, shallow=False), same
    network, longer = (
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        for folder in (FOLDER, LONGER)
    )

    assert len(others) == 7
    assert {k: v.shape for k, v in network.items()} == {k: v.shape for k, v in longer.items()}
    assert not any(torch.equal(value, longer[name]) for name, value in network.items())


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [2.0, 3.0, 4.0])
def test_weights_of_longer_training_pass_the_gate(guidance):
    """With guidance they show the part nine tenths as often as real renders."""
    longer = load_flow(LONGER, text_length=CONFIG.max_tokens)
    assert gate_flow(longer, seed=0, noises=4, guidance_scale=guidance).passed


@pytest.mark.slow
def test_they_paint_held_out_prompts(components):
    """Every sample of four prompts is far nearer to what was asked for than what is no picture."""
    prompts = split_prompts()[1][::10]
    found = gate_flow(
        components, seed=1, noises=2, steps=(10, 4), guidance_scale=2.0, prompts=prompts
    )
    table = {row.name: row for row in found.rows}

    assert len(prompts) == 4
    for worse in ("wrong_prompt", "blank", "noise"):
        assert table["10 steps"].per_view > table[worse].per_view + 5
