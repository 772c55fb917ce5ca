"""Whole runs on a network of a few thousand weights: a fraction of a second an iteration."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mvczigal_ref.config import TrainConfig, from_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.training.tracking import read_metrics
from mvczigal_ref.training.trainer import train

PROMPTS = ("a red ball with a white nose", "a blue ball with a white nose")
"""One shape and one part, so that the exact judges render one family."""

HELD_OUT = ["a green ball with a white nose", "a red ball with a green nose"]
"""Of the same family."""


def cases(every: dict, *quick: str) -> list:
    """Give every case its name as a test's; those that are not named quick run by `nox -s slow`."""
    return [
        pytest.param(value, id=name, marks=() if name in quick else pytest.mark.slow)
        for name, value in every.items()
    ]


def write_prompts(folder: Path) -> str:
    """Write the training prompts as a file and give its path."""
    path = folder / "prompts.txt"
    path.write_text("\n".join(PROMPTS), "utf-8")
    return str(path)


def small_config(prompts: str, **sections: dict) -> TrainConfig:
    """Configure a run of four objects an iteration and two steps; sections are added to it."""
    values = {
        "model": {"lora_rank": 2},
        "sampler": {"num_steps": 2, "guidance_scale": 2.0},
        "run": {
            "iterations": 4,
            "objects_per_iteration": 4,
            "objects_per_slice": 2,
            "prompts": prompts,
            "checkpoint_every": 1,
            "keep_checkpoints": 2,
            "evaluation_noises": 1,
            "device": "cpu",
        },
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return from_dict(values)


def small_components() -> Components:
    """Build the network that every run here starts from."""
    return tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))


def small_flow() -> FlowComponents:
    """Build the flow transformer that every flow run here starts from."""
    return tiny_flow_components(seed=0, num_heads=1, num_layers=1, num_single_layers=1)


def run(config: TrainConfig, folder: Path, world: World | None = None, **more):
    """Train the small network in a folder."""
    here = World() if world is None else world
    more = {"components": small_components(), "held_out": HELD_OUT, **more}
    return train(config, folder, world=here, **more)


def metrics(folder: Path) -> list[dict]:
    """Read a run's metrics without what the clock and the memory say."""
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds/") and k != "peak_memory"}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def checkpoints(folder: Path) -> list[str]:
    """Name the checkpoints that a run folder holds, oldest first."""
    return sorted(path.name for path in (folder / "checkpoints").glob("iteration_*"))


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file under a folder, by its path below it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def evaluations(folder: Path) -> dict[int, bytes]:
    """Read the held-out scores and images of a run by the iterations it had finished."""
    found = sorted((folder / "evaluations").glob("*_*.safetensors"))
    return {
        int(path.stem.rpartition("_")[2]): path.read_bytes() for path in found if path.is_file()
    }


def parameters(folder: Path) -> dict:
    """Read the trained parameters of the newest checkpoint."""
    return load_file(folder / "checkpoints" / checkpoints(folder)[-1] / "policy.safetensors")


def assert_same_run(one: Path, other: Path, *, skip: tuple[int, ...] = ()) -> None:
    """Fail unless two run folders ended with the same bits.

    ``skip`` names iterations at which only one of them was evaluated.
    """
    newest = checkpoints(one)[-1]
    assert checkpoints(other)[-1] == newest
    mine, theirs = (contents(folder / "checkpoints" / newest) for folder in (one, other))
    assert mine.keys() == theirs.keys()
    assert {"policy.safetensors", "optimizer.safetensors", "state.json"} <= mine.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
    assert metrics(one) == metrics(other)
    mine, theirs = (
        {k: v for k, v in evaluations(folder).items() if k not in skip} for folder in (one, other)
    )
    assert mine == theirs
    mine, theirs = (contents(folder / "policy") for folder in (one, other))
    assert mine
    assert mine == theirs
    for name in ("summary.json", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert json.loads((one / "summary.json").read_text())["joint"]["after"] is not None
