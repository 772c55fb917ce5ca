"""Runs of one iteration on whichever device, on the smallest networks."""

from pathlib import Path

import torch

from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.distributed import World
from mvczigal_ref.recipes import recipe
from mvczigal_ref.training.trainer import train
from tests.integration.runs import HELD_OUT, small_components, small_flow, write_prompts

__all__ = ["components", "configured", "train_on"]

SMALL = (
    "run.iterations=1",
    "run.objects_per_iteration=2",
    "run.objects_per_slice=2",
    "run.evaluation_noises=1",
    "constraint.threshold_objects=2",
    "optim.optimizer_steps_per_epoch=1",
    "model.lora_rank=2",
)
PAIRS = ("sampler.num_steps=2", "zigzag.steps=1")
GROUPS = ("rollout.members=2",)


def configured(name: str, folder: Path, *words: str) -> TrainConfig:
    """Make a recipe small: one iteration of two prompts, written beside the run."""
    folder.mkdir(exist_ok=True)
    few = PAIRS if recipe(name).objective.compares_pairs else GROUPS
    prompts = f"run.prompts={write_prompts(folder)}"
    # Made small by the same words whatever the method, which reads some of them.
    return load_config(recipe(name), overrides=[*SMALL, *few, prompts, *words], training=False)


def components(config: TrainConfig):
    """Build the smallest networks of a configuration's kind, random."""
    return small_flow() if config.model.network == "flow" else small_components()


def train_on(device, name: str, folder: Path, *words: str):
    """Train a recipe, made small, in the folder `run` under another."""
    config = configured(name, folder, *words)
    return train(
        config, folder / "run", world=World(device=torch.device(device)),
        components=components(config), held_out=HELD_OUT,
    )  # fmt: skip
