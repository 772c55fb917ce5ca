"""Windows: the steps of a rollout that draw noise and are trained; the others follow the ODE.

Every schedule is a pure function of the iteration: nothing is stored, so a resumed run goes on
as if it had never stopped. A window is never cut short by the end of the grid.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from mvczigal_ref.rollout.group_plan import require_at_least
from mvczigal_ref.rollout.noise import derived_generator

__all__ = [
    "WindowEnd",
    "decaying_window",
    "fixed_window",
    "moving_steps",
    "random_steps",
    "random_window",
    "sliding_window",
]

WindowEnd = Literal["stay", "restart"]
"""Behaviour of a moving window after its last place: stay there, or go back to the first."""


def fixed_window(*, start: int, size: int, num_steps: int, spacing: int = 1) -> tuple[int, ...]:
    """Return the same steps in every iteration.

    Source:
        Flow-GRPO with all steps but the last; MV-GRPO's proxy settings are 4 steps from 0,
        2 apart.

    Args:
        start: First stochastic step, 0 the noisiest.
        size: Number of stochastic steps; positive.
        num_steps: Steps of the grid.
        spacing: From one stochastic step to the next; positive.

    Returns:
        Indices of the stochastic steps, increasing.

    Raises:
        ValueError: If a number is out of its range or the window does not fit the grid.

    Examples:
        >>> fixed_window(start=0, size=4, num_steps=16, spacing=2)
        (0, 2, 4, 6)
    """
    require_at_least(1, size=size, num_steps=num_steps, spacing=spacing)
    require_at_least(0, start=start)
    window = tuple(range(start, start + size * spacing, spacing))
    if window[-1] >= num_steps:
        msg = (
            f"`start` must leave room for the window in {num_steps} steps; got {start}, which "
            f"puts its last step at {window[-1]}; start earlier or take a smaller window."
        )
        raise ValueError(msg)
    return window


def random_window(
    *, seed: int, iteration: int, size: int, num_steps: int, last_start: int, first_start: int = 0
) -> tuple[int, ...]:
    r"""Return a window whose start is drawn anew each iteration.

    .. math:: k \sim \mathrm{U}\{k_{first}, \dots, k_{last}\}

    Source:
        Flow-GRPO-Fast; its window form has 3 steps and starts in [0, T/2), so ``last_start``
        is ceil(T/2) - 1, while its released configuration ends there too, so that it is
        T // 2 - 3; its branching form has 1 step and ``last_start`` T // 2.

    Args:
        seed: Run seed.
        iteration: Index of the iteration; all processes draw the same.
        size: Number of stochastic steps; positive.
        num_steps: Steps of the grid.
        last_start: Last place at which the window may start; it must fit there.
        first_start: First such place.

    Returns:
        Indices of the stochastic steps, increasing.

    Raises:
        ValueError: If a number is out of its range or the window does not fit the grid.

    Examples:
        >>> window = random_window(seed=0, iteration=3, size=3, num_steps=10, last_start=4)
        >>> len(window), 0 <= window[0] <= 4
        (3, True)
    """
    require_at_least(0, first_start=first_start, iteration=iteration)
    require_at_least(first_start, last_start=last_start)
    fixed_window(start=last_start, size=size, num_steps=num_steps)
    generator = derived_generator(seed, iteration, "window")
    start = int(torch.randint(first_start, last_start + 1, (), generator=generator))
    return fixed_window(start=start, size=size, num_steps=num_steps)


def random_steps(*, seed: int, iteration: int, size: int, num_steps: int) -> tuple[int, ...]:
    """Return some steps anywhere in the grid, drawn anew each iteration.

    Source:
        arXiv:2505.07818 (DanceGRPO), which trains a random 60 % of the steps.

    Args:
        seed: Run seed.
        iteration: Index of the iteration; all processes draw the same.
        size: Number of stochastic steps; positive, at most ``num_steps``.
        num_steps: Steps of the grid.

    Returns:
        Indices of the stochastic steps, increasing.

    Raises:
        ValueError: If a number is out of its range.

    Examples:
        >>> random_steps(seed=0, iteration=0, size=4, num_steps=4)
        (0, 1, 2, 3)
    """
    require_at_least(0, iteration=iteration)
    fixed_window(start=0, size=size, num_steps=num_steps)
    order = torch.randperm(num_steps, generator=derived_generator(seed, iteration, "steps"))
    return tuple(sorted(order[:size].tolist()))


def moving_steps(
    steps: Sequence[int], *, iteration: int, interval: int = 0, first: int = 0
) -> tuple[int, ...]:
    r"""Return some steps that move together towards the noise.

    .. math:: t_j - \min\big(\lfloor n / \tau \rfloor,\ \max(t_0 - t_{first}, 0)\big)

    Source:
        arXiv:2509.06040 (BranchGRPO), its depth pruning: first the steps near the image are not
        trained, later ones nearer to the noise. Released: 30 iterations at each place, down to
        depth 9.

    Args:
        steps: Steps at first :math:`t`; one at least.
        iteration: Index of the iteration :math:`n`, from 0.
        interval: Iterations at each place :math:`\tau`; 0 stays.
        first: First step that they move to :math:`t_{first}`.

    Returns:
        Increasing steps.

    Raises:
        ValueError: If a number is out of its range.

    Examples:
        >>> moving_steps((15, 16), iteration=65, interval=30, first=9)
        (13, 14)
    """
    require_at_least(0, iteration=iteration, interval=interval, first=first)
    if not steps or min(steps) < 0:
        msg = f"`steps` must be at least 0, and one or more; got {list(steps)}."
        raise ValueError(msg)
    shift = iteration // interval if interval else 0
    shift = min(shift, max(min(steps) - first, 0))
    return tuple(step - shift for step in sorted(steps))


def sliding_window(
    *,
    iteration: int,
    size: int,
    num_steps: int,
    interval: int,
    stride: int = 1,
    end: WindowEnd = "stay",
) -> tuple[int, ...]:
    r"""Return a window that moves from noise to image at a steady pace.

    .. math:: k = s \lfloor n / \tau \rfloor, \qquad k \le T - w

    Source:
        arXiv:2507.21802 (MixGRPO): 4 steps, stride 1, every 25 iterations, of 25. Its
        released code lets the window run out of the grid; here its last place is flush with
        the end.

    Args:
        iteration: Index of the iteration :math:`n`, from 0.
        size: Number of stochastic steps :math:`w`; positive.
        num_steps: Steps of the grid :math:`T`.
        interval: Iterations at each place :math:`\tau`; positive.
        stride: Steps from a place to the next :math:`s`; positive.
        end: Behaviour after the last place.

    Returns:
        Indices of the stochastic steps, increasing.

    Raises:
        ValueError: If a number is out of its range or the window does not fit the grid.

    Examples:
        >>> sliding_window(iteration=60, size=4, num_steps=25, interval=25)
        (2, 3, 4, 5)
    """
    require_at_least(1, interval=interval)
    return _moving(iteration, size, num_steps, stride, end, lambda start: interval)


def decaying_window(
    *,
    iteration: int,
    size: int,
    num_steps: int,
    interval: int,
    decay: float,
    decay_after: int,
    stride: int = 1,
    end: WindowEnd = "stay",
) -> tuple[int, ...]:
    r"""Return a window that hurries through the steps near the image.

    .. math:: \tau_k = \Big\lceil \tau_0\, e^{-\lambda \max(k - k_0, 0)} \Big\rceil

    iterations at the place that starts at step :math:`k`; otherwise
    :func:`sliding_window`.

    Source:
        arXiv:2507.21802 (MixGRPO), its decaying strategy, rounded as its released code does.

    Args:
        iteration: Index of the iteration, from 0.
        size: Number of stochastic steps; positive.
        num_steps: Steps of the grid.
        interval: Iterations at the first places :math:`\tau_0`; positive.
        decay: :math:`\lambda` [1 / step]; finite, not negative.
        decay_after: :math:`k_0`, the last start at which the full interval is spent; not
            negative.
        stride: Steps from a place to the next; positive.
        end: Behaviour after the last place.

    Returns:
        Indices of the stochastic steps, increasing.

    Raises:
        ValueError: If a number is out of its range or the window does not fit the grid.

    Examples:
        >>> [
        ...     decaying_window(
        ...         iteration=n, size=1, num_steps=9, interval=4, decay=0.7, decay_after=0
        ...     )[0]
        ...     for n in range(9)
        ... ]
        [0, 0, 0, 0, 1, 1, 2, 3, 4]
    """
    require_at_least(1, interval=interval)
    require_at_least(0, decay_after=decay_after)
    if not 0.0 <= decay < math.inf:
        msg = f"`decay` must be finite and not negative; got {decay!r}; 0.0 slides steadily."
        raise ValueError(msg)

    def stay(start: int) -> int:
        # A number above 0 that the exponential rounds to 0 is rounded up all the same.
        return max(math.ceil(interval * math.exp(-decay * max(start - decay_after, 0))), 1)

    return _moving(iteration, size, num_steps, stride, end, stay)


def _moving(
    iteration: int,
    size: int,
    num_steps: int,
    stride: int,
    end: str,
    stay: Callable[[int], int],
) -> tuple[int, ...]:
    """Walk the window's places until the iteration's is reached."""
    require_at_least(0, iteration=iteration)
    require_at_least(1, stride=stride)
    fixed_window(start=0, size=size, num_steps=num_steps)
    if end not in ("stay", "restart"):
        msg = f"`end` must be 'stay' or 'restart'; got {end!r}."
        raise ValueError(msg)
    last = num_steps - size
    starts = [*range(0, last, stride), last]
    if end == "restart":
        iteration %= sum(stay(start) for start in starts)
    for start in starts:
        iteration -= stay(start)
        if iteration < 0:
            return fixed_window(start=start, size=size, num_steps=num_steps)
    return fixed_window(start=last, size=size, num_steps=num_steps)
