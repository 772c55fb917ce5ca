"""Batch of prompts of an iteration: shuffled passes over the list."""

from collections.abc import Sequence

import torch

from mvczigal_ref.rollout.noise import derived_generator

__all__ = ["prompt_batch"]


def prompt_batch(prompts: Sequence[str], *, seed: int, iteration: int, count: int) -> list[str]:
    """Choose an iteration's prompts: shuffled passes over the list, whatever the processes.

    Args:
        prompts: All training prompts.
        seed: Run seed.
        iteration: Index of the iteration.
        count: Number of prompts.

    Returns:
        ``count`` prompts; every prompt appears once per pass.

    Raises:
        ValueError: If there are no prompts.

    Examples:
        >>> sorted(prompt_batch(["a", "b"], seed=0, iteration=3, count=2))
        ['a', 'b']
    """
    if not prompts:
        msg = "`prompts` must hold at least one prompt; got none."
        raise ValueError(msg)
    batch: list[str] = []
    for position in range(iteration * count, (iteration + 1) * count):
        turn, place = divmod(position, len(prompts))
        if not batch or place == 0:
            order = torch.randperm(len(prompts), generator=derived_generator(seed, "prompts", turn))
        batch.append(prompts[int(order[place])])
    return batch
