"""Every recipe of the tiny world trains where tensors of two devices do not meet."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from mvczigal_ref.config import load_config
from mvczigal_ref.distributed import World
from mvczigal_ref.recipes import RECIPES, recipe
from mvczigal_ref.trainer import train
from tests.integration.runs import HELD_OUT, small_components, small_flow, write_prompts

SMALL = (
    "run.iterations=1",
    "run.objects_per_iteration=2",
    "run.objects_per_slice=1",
    "run.evaluation_noises=1",
    "constraint.threshold_objects=2",
    "model.lora_rank=2",
)


def trained(name, folder, device, *words):
    """Train a recipe for an iteration; give its parameters."""
    folder.mkdir()
    prompts = f"run.prompts={write_prompts(folder)}"
    config = load_config(recipe(name), overrides=[*SMALL, prompts, *words])
    build = small_flow if config.model.network == "flow" else small_components
    train(
        config, folder / "run", world=World(device=torch.device(device)), components=build(),
        held_out=HELD_OUT,
    )  # fmt: skip
    return load_file(folder / "run" / "checkpoints" / "iteration_000001" / "policy.safetensors")


def test_tiny_learns_on_the_device_to_the_bit_of_the_cpu(device, tmp_path):
    """The arithmetic is the CPU's, so all that could differ is where something was left out."""
    there = trained("tiny", tmp_path / "there", device)
    with sdpa_kernel(SDPBackend.MATH):
        here = trained("tiny", tmp_path / "here", "cpu")

    assert there.keys() == here.keys()
    assert [name for name in here if not torch.equal(there[name], here[name])] == []
    assert any(value.any() for name, value in there.items() if "lora_B" in name)
