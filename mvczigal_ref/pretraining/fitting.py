"""A plain training loop: AdamW, warm-up and decay of the rate, gradients over processes."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mvczigal_ref.distributed import World
from mvczigal_ref.files import writing

__all__ = ["Log", "averaged", "file_log", "optimiser_steps"]

Log = Callable[[str, int, int, float], None]
"""Takes a stage's name, its steps so far and in all, and the mean loss since the last call."""


def file_log(accelerator: Accelerator, path: Path) -> Log:
    """Log to a file and to the screen, from the main process alone.

    Args:
        accelerator: The processes.
        path: File that gets one line of JSON per call, at its end.

    Returns:
        The log; it counts seconds from this call.
    """
    started = time.time()
    stages: dict[str, tuple[float, int]] = {}

    def log(stage: str, step: int, steps: int, loss: float) -> None:
        if accelerator.is_main_process:
            seconds = time.time() - started
            line = {"stage": stage, "step": step, "loss": loss, "seconds": seconds}
            with writing(path), path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            began, first = stages.setdefault(stage, (seconds, step))
            left = ""
            if first < step < steps:
                minutes = (seconds - began) / (step - first) * (steps - step) / 60
                left = f", {minutes:.0f} min left of it"
            text = f"{stage}: step {step} of {steps}, loss {loss:.4g}{left}"
            accelerator.print(text, flush=True)

    return log


def _cosine(step: int, steps: int, *, warmup: int = 100, hold: float = 0.3) -> float:
    """Warm up, hold, then fall along a cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    share = max(0.0, (step / steps - hold) / (1 - hold))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


def optimiser_steps(
    accelerator: Accelerator,
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    name: str,
    steps: int,
    lr: float,
    seed: int,
    log: Log,
) -> Iterator[int]:
    """Minimise a loss, one yield per step.

    Args:
        accelerator: The processes, whose gradients are averaged.
        module: Network whose parameters with ``requires_grad`` are trained.
        loss: Draws a batch from a generator of this process and returns its loss.
        name: Name of the stage, for the log.
        steps: Length of the rate's schedule [steps].
        lr: Peak learning rate.
        seed: Seed of the batches.
        log: Called with the mean loss every 50 steps, and at the end.

    Yields:
        The index of each finished step.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: _cosine(s, steps))
    generator = torch.Generator().manual_seed(seed * 1000 + accelerator.process_index)
    processes = World(
        rank=accelerator.process_index, size=accelerator.num_processes, device=accelerator.device
    )
    running, logged = 0.0, 0
    for step in range(steps):
        value = loss(generator)
        value.backward()
        for p in trained:
            if p.grad is None:  # weight decay applies to all
                p.grad = torch.zeros_like(p)
        processes.mean_gradients(trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        scheduler.step()
        running += float(value.detach())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            log(name, step + 1, steps, running / (step + 1 - logged))
            running, logged = 0.0, step + 1
        yield step


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """Start an exponential moving average of a module.

    Args:
        module: Module whose parameters and buffers are averaged.
        decay: Weight of the old average in an update [1].

    Returns:
        The average, to be updated after each step.
    """
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
