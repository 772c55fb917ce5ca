"""How often the network is called in a run's training, counted on a part of its objects."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mvczigal_ref.config import TrainConfig, learns_from_pairs
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.enhancers import build_enhancer
from mvczigal_ref.group_iteration import run_group_iteration
from mvczigal_ref.group_samples import num_acting_steps, stochastic_steps
from mvczigal_ref.iteration import prompt_batch, run_iteration
from mvczigal_ref.system import System, build_system
from mvczigal_ref.tracking import StageTimer
from mvczigal_ref.trainer import read_prompts

__all__ = ["network_calls"]


def network_calls(config: TrainConfig, **built: Any) -> list[int]:  # noqa: ANN401 - as build_system
    """Count the latents that the network sees in each iteration of a run.

    An iteration of two objects an optimiser step is done for every window that the run meets;
    its calls grow with the objects.

    Args:
        config: The run.
        **built: For :func:`~mvczigal_ref.system.build_system`, such as ``components``.

    Returns:
        Rows of all forward passes, one number an iteration [latents]; backward passes are not
        counted.
    """
    objects = 2 * config.optim.optimizer_steps_per_epoch
    run = replace(config.run, objects_per_iteration=objects, objects_per_slice=1)
    small = replace(config, run=run)
    system = build_system(small, device=torch.device("cpu"), **built)
    counted: dict[tuple[int, ...], int] = {}
    rows = []
    for iteration in range(config.run.iterations):
        window = _window(config, system, iteration)
        if window not in counted:
            counted[window] = _rows(small, system, iteration)
        rows.append(counted[window] * config.run.objects_per_iteration // objects)
    return rows


def _window(config: TrainConfig, system: System, iteration: int) -> tuple[int, ...]:
    """Tell iterations apart by the steps that draw noise; nothing else changes their calls."""
    if learns_from_pairs(config) or config.objective.kind == "forward_process":
        return ()
    return stochastic_steps(config, most=num_acting_steps(system), iteration=iteration)


def _rows(config: TrainConfig, system: System, iteration: int) -> int:
    """Do one iteration that changes nothing, and count."""
    rows = 0

    def count(module: object, arguments: tuple[Any, ...]) -> None:
        nonlocal rows
        rows += arguments[0].shape[0]

    prompts = prompt_batch(
        read_prompts(config.run.prompts), seed=config.run.seed, iteration=iteration,
        count=config.run.objects_per_iteration,
    )  # fmt: skip
    learn: Callable[..., Any] = run_iteration
    extra: dict[str, Any] = {}
    if not learns_from_pairs(config):
        learn = run_group_iteration
        extra["enhancer"] = build_enhancer(config.condition, device=system.device)
        if config.objective.kind == "forward_process":
            extra["old"] = {name: p.detach().clone() for name, p in system.trained().items()}
    with system.policy.register_forward_pre_hook(count):
        learn(
            system,
            torch.optim.SGD(list(system.trained().values()), lr=0.0),
            ConstraintState(multiplier=0.0, threshold=0.0, initialised=False),
            prompts,
            iteration=iteration,
            config=config,
            world=World(),
            timer=StageTimer(system.device),
            **extra,
        )
    return rows
