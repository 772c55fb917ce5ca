"""Network calls of a run's training, counted on a part of its objects."""

from dataclasses import replace
from typing import Any

import torch

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.method.ahead import Ahead
from mvczigal_ref.method.steps import num_acting_steps, stochastic_steps, trained_decisions
from mvczigal_ref.models.network_rows import network_rows
from mvczigal_ref.system import System, build_system
from mvczigal_ref.system.enhancer import build_enhancer
from mvczigal_ref.training.prompt_batch import prompt_batch
from mvczigal_ref.training.prompts import read_prompts
from mvczigal_ref.training.tracking import StageTimer
from mvczigal_ref.update.parameters import parameter_copies

__all__ = ["network_calls"]


def network_calls(config: TrainConfig, **built: Any) -> list[int]:  # noqa: ANN401 - as build_system
    """Count the latents that the network sees in each iteration of a run.

    An iteration is done for every choice of steps that the run meets, of two objects per
    optimiser step, since calls grow with the objects. Where there are captions it has all
    objects, for equal captions of a prompt cost no call; how many are equal changes as the run
    learns, and the true number is in its metrics.

    Args:
        config: The run.
        **built: For :func:`~mvczigal_ref.system.build_system`, such as ``components``.

    Returns:
        Rows of all forward passes, one number per iteration [latents]; backward passes are not
        counted.
    """
    small, objects = config, config.run.objects_per_iteration
    if config.condition.enhancer == "none":
        objects = 2 * config.optim.optimizer_steps_per_epoch
        run = replace(config.run, objects_per_iteration=objects, objects_per_slice=1)
        small = replace(config, run=run)
    system = build_system(small, device=torch.device("cpu"), **built)
    counted: dict[tuple[int, ...], int] = {}
    rows = []
    for iteration in range(config.run.iterations):
        ahead = config.rollout.ahead and iteration > 0
        window = (ahead, *_window(config, system, iteration))
        if window not in counted:
            counted[window] = _rows(small, system, iteration, ahead=ahead)
        rows.append(counted[window] * config.run.objects_per_iteration // objects)
    return rows


def _window(config: TrainConfig, system: System, iteration: int) -> tuple[int, ...]:
    """Tell iterations apart by the steps that draw noise and by those that are trained.

    Nothing else changes their calls.
    """
    if config.objective.compares_pairs or config.objective.kind == "forward_process":
        return ()
    steps = stochastic_steps(config, most=num_acting_steps(system), iteration=iteration)
    trained = trained_decisions(config, steps=steps, iteration=iteration)
    return (*steps, -1, *trained)


def _rows(config: TrainConfig, system: System, iteration: int, *, ahead: bool) -> int:
    """Do one iteration that changes nothing, and count."""
    prompts = prompt_batch(
        read_prompts(config.run.prompts), seed=config.run.seed, iteration=iteration,
        count=config.run.objects_per_iteration,
    )  # fmt: skip
    old = None
    if config.objective.kind == "forward_process":
        old = parameter_copies(system.trained())
    with network_rows(system.policy) as rows:
        run_iteration(
            system,
            torch.optim.SGD(list(system.trained().values()), lr=0.0),
            ConstraintState(multiplier=0.0, threshold=0.0, initialised=False),
            prompts,
            iteration=iteration,
            config=config,
            world=World(),
            timer=StageTimer(system.device),
            enhancer=build_enhancer(config.condition, device=system.device),
            old=old,
            ahead=Ahead(behaviour=old or parameter_copies(system.trained())) if ahead else None,
        )
    return rows()
