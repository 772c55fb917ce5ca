"""One of several processes: runs, faults and stops, one after the other, each in its folder."""

import json
import os
import signal
import sys
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path

import torch

from mvczigal_ref.distributed import World, world
from mvczigal_ref.method.sample import draw_pair
from mvczigal_ref.method.slices import Share
from mvczigal_ref.training import loop as training_loop
from mvczigal_ref.training.events import Events
from tests.integration import faults
from tests.integration.runs import run, small_config

SHARED = {"run": {"iterations": 2, "objects_per_iteration": 8, "checkpoint_every": 10}}
"""Each of two optimiser steps has two slices: one a process, or both of one."""

FULL = {**SHARED, "model": {"finetune": "full"}, "rollout": {"ahead": True}}
"""Every weight, and the second iteration sampled while the first is judged."""


class Stop(Events):
    """Asks this process to end, as a person would, after the first iteration."""

    def iteration(self, finished, total, metrics):
        if finished == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def noted(digests):
    """Note the digest of every trajectory by iteration and first object, sampled once more."""
    right = training_loop.run_iteration

    def run_iteration(system, optimizer, constraint, prompts, **how):
        config, index = how["config"], how["iteration"]
        for part in Share.of(config, how["world"]).parts(prompts):
            pair = draw_pair(
                system,
                system.conditioning(part.prompts),
                system.noise(part.objects, index, seed=config.run.seed),
                config=config,
                policy=system.policy.forward,  # whose calls are not counted
            )
            arms = [pair.zigzag, pair.standard]
            kept = [x for arm in arms for x in (arm.state, arm.action, arm.log_prob, arm.denoised)]
            bits = b"".join(tensor.contiguous().numpy().tobytes() for tensor in kept)
            digests[f"{index} {part.objects.start}"] = sha256(bits).hexdigest()
        return right(system, optimizer, constraint, prompts, **how)

    with faults.patched(training_loop, "run_iteration", run_iteration):
        yield


def cases(prompts: str, here: World):
    """Configuration, fault and events of each run, by the name of its folder."""
    config, last = small_config(prompts, **SHARED), here.rank == here.size - 1
    switch = faults.Switch(after=1)
    switch.on = False
    yield "whole", config, nullcontext(), None
    yield "full", small_config(prompts, **FULL), nullcontext(), None
    # The rest goes wrong in the last process alone.
    for name, fault in (
        ("reward", faults.scorer_fault),
        ("loss", faults.loss_fault),
        ("gradient", faults.gradient_fault),
        ("parameter", faults.parameter_fault),
    ):
        switch = faults.Switch(after=1)
        yield name, config, fault(switch) if last else nullcontext(), switch
    switch = faults.Switch(after=1)
    lost = faults.scorer_fault(switch, error=OSError("the judge has gone"))
    yield "judge", config, lost if last else nullcontext(), switch
    yield "stop", config, nullcontext(), Stop() if last else None


def work(folder: Path, prompts: str) -> None:
    """Do them all; write what each raised."""
    torch.set_num_threads(1)
    here = world("cpu")
    said = {}
    for name, config, fault, events in cases(prompts, here):
        digests = {}
        try:
            rollouts = noted(digests) if name in ("whole", "full") else nullcontext()
            with fault, rollouts:
                tell(config, folder / name, here, events)
            raised = None
        except (Exception, KeyboardInterrupt) as error:
            place = {k: getattr(error, k, None) for k in ("object", "view", "step")}
            raised = {"type": type(error).__name__, "text": str(error), **place}
        said[name] = {"raised": raised, "rollouts": digests}
    (folder / f"{here.rank}_of_{here.size}.json").write_text(json.dumps(said), "utf-8")
    here.close()


def tell(config, folder, here, events) -> None:
    """Run, with events in every process, not in the main one alone."""
    right = training_loop.run_iteration

    def run_iteration(*args, iteration, **kwargs):
        result = right(*args, iteration=iteration, **kwargs)
        if events is not None:
            events.iteration(iteration + 1, config.run.iterations, {})
        return result

    with faults.patched(training_loop, "run_iteration", run_iteration):
        run(config, folder, here)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2])
