"""One of several processes that hold parts of a network: runs, one after the other."""

import json
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from mvczigal_ref.distributed import World, world
from mvczigal_ref.models import projections
from mvczigal_ref.models.sharding import is_sharded
from mvczigal_ref.training import loop as training_loop
from tests.integration import faults, sharded_faults
from tests.integration.runs import run, small_components, small_config, small_flow
from tests.integration.test_modes import shrunken

SHARED = {"iterations": 2, "objects_per_slice": 1, "checkpoint_every": 1}
"""Each of two optimiser steps has one slice of one object in each of two processes."""

FULL = {"model": {"finetune": "full"}, "optim": {"average_decay": 0.5, "average_every": 1}}
CASES = {
    "full": {**FULL, "run": {"objects_per_iteration": 4}},
    "lora": {"rollout": {"ahead": True}, "run": {"objects_per_iteration": 4}},
    "bf16": {**FULL, "run": {"objects_per_iteration": 4, "compute_dtype": "bf16", "iterations": 1}},
    "short": {**FULL, "run": {"objects_per_iteration": 4, "iterations": 1}},
    "offloaded": {**FULL, "run": {"objects_per_iteration": 4, "offload_parameters": True}},
    "of four": {**FULL, "run": {"objects_per_iteration": 8}},
}


def config_of(prompts: str, name: str, **run_settings):
    """Configure a run; sharded where the settings say so."""
    if name.startswith("flow"):
        config = shrunken("tiny_flow_grpo", prompts)
        model = replace(config.model, finetune=name.partition(" ")[2])
        settings = {"iterations": 2, "objects_per_iteration": 4, "objects_per_slice": 1}
        return replace(config, model=model, run=replace(config.run, **settings, **run_settings))
    case = CASES[name]
    return small_config(prompts, **{**case, "run": {**SHARED, **case["run"], **run_settings}})


def run_case(config, folder: Path, here: World | None = None) -> None:
    """Train the small network of the configuration's kind."""
    flow = config.model.network == "flow"
    run(config, folder, here, components=small_flow() if flow else small_components())


def faults_asked(fault: str) -> list[str]:
    """List the faults that one process meets and all raise; last a run that meets none."""
    faults_of = {"killed": sharded_faults.QUICK, "every": sharded_faults.EACH}
    return [*faults_of[fault], ""] if fault in faults_of else []


def meet(fault: str, folder: Path, prompts: str, here: World) -> str:
    """Go on with a run until one process fails; give what this one raised."""
    config = config_of(prompts, "short", sharding="full")
    with sharded_faults.once(here, fault) if fault else nullcontext():
        try:
            run_case(config, folder, here)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


def share_held(system) -> float:
    """Measure the share of the network's numbers that this process holds."""
    parameters = list(system.backbone.network.parameters())
    held = sum((p.to_local() if is_sharded(p) else p).numel() for p in parameters)
    return held / sum(p.numel() for p in parameters)


def work(folder: Path, prompts: str, names: list[str], fault: str) -> None:
    """Do the runs, then one with a fault; note what this process holds of each network."""
    torch.set_num_threads(1)
    here, shares = world("cpu"), {"joined": 0}
    right, join = training_loop.run_iteration, projections._fused

    def fused(parameters):
        shares["joined"] += len(parameters) > 1
        return join(parameters)

    def run_iteration(system, *args, iteration, **kwargs):
        shares[name] = share_held(system)
        if name == fault and iteration == 1 and here.rank == here.size - 1:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "raised":
                raise FloatingPointError("a number of this process is wrong")
        return right(system, *args, iteration=iteration, **kwargs)

    with (
        faults.patched(training_loop, "run_iteration", run_iteration),
        faults.patched(projections, "_fused", fused),
    ):
        for name in names:
            run_case(config_of(prompts, name, sharding="full"), folder / name, here)
        said = {each: meet(each, folder / "agreed", prompts, here) for each in faults_asked(fault)}
        (folder / f"said by {here.rank}.json").write_text(json.dumps(said), "utf-8")
        (folder / f"{here.rank}_of_{here.size}.json").write_text(json.dumps(shares), "utf-8")
        if fault in ("killed", "raised"):
            name = fault
            run(config_of(prompts, "full", sharding="full"), folder / fault, here)
    here.close()


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), sys.argv[4])
