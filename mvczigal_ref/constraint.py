"""The constraint: the joint reward is to stay at or above a threshold that follows it.

One frozen state, which each iteration hands to the next, and one pure transition.
"""

import math
from dataclasses import dataclass
from typing import Literal

from mvczigal_ref.errors import NonFiniteError

__all__ = ["ConstraintOrder", "ConstraintState", "constraint_step"]

ConstraintOrder = Literal["threshold_first", "multiplier_first"]
"""Order within a step: the number that moves first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstraintState:
    """Multiplier and threshold between two iterations.

    A fixed threshold is ``ConstraintState(threshold=7.5, initialised=True)`` stepped with
    ``threshold_decay=1.0``.

    Raises:
        ValueError: If ``multiplier`` is negative or non-finite, or ``threshold`` is not
            finite.
    """

    multiplier: float = 0.0
    """Weight of the joint reward, :math:`\\lambda` [1]; finite, not negative."""

    threshold: float = 0.0
    """Joint reward to reach, :math:`\\tau` [reward units]; finite, any sign."""

    initialised: bool = False
    """Whether ``threshold`` means anything yet; if not, the next mean becomes it."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.multiplier < math.inf:
            msg = (
                f"`multiplier` must be finite and not negative; got {self.multiplier!r}; "
                f"start at 0.0."
            )
            raise ValueError(msg)
        if not math.isfinite(self.threshold):
            msg = (
                f"`threshold` must be finite; got {self.threshold!r}; leave `initialised` "
                f"false to start at the first mean."
            )
            raise ValueError(msg)

    def slack(self, joint_mean: float) -> float:
        """Measure by how much the constraint is met.

        Args:
            joint_mean: Mean joint reward [reward units].

        Returns:
            ``joint_mean - threshold`` [reward units], negative when violated; 0.0 while
            there is no threshold.

        Examples:
            >>> ConstraintState(threshold=7.0, initialised=True).slack(6.5)
            -0.5
        """
        return joint_mean - self.threshold if self.initialised else 0.0


def constraint_step(
    state: ConstraintState,
    joint_mean: float,
    *,
    step_size_violated: float = 0.1,
    step_size_satisfied: float = 0.01,
    multiplier_max: float = 5.0,
    threshold_decay: float = 0.99,
    order: ConstraintOrder = "threshold_first",
) -> ConstraintState:
    r"""Move the threshold toward the policy's mean and the multiplier up its dual gradient.

    .. math::

        \tau' &= d \tau + (1 - d) \bar R \\
        \lambda' &= \mathrm{clip}(\lambda + \alpha (\tau^* - \bar R), 0, \lambda_{max})

    :math:`\tau^*` is :math:`\tau'` when the threshold moves first and :math:`\tau`
    otherwise; :math:`\alpha` is ``step_size_violated`` when :math:`\bar R < \tau^*`, else
    ``step_size_satisfied``. The first mean becomes the threshold, and the multiplier
    rests in that step.

    The multiplier is the price of missing joint reward: it rises while the mean is below the
    threshold, and falls, more slowly, while it is not. The threshold is a running mean, so the
    constraint says: do not fall below what was reached, and nobody has to guess a number.

    Source:
        arXiv:2505.20107, self-paced threshold and adaptive dual step. The released trainer
        moves the threshold first, and starts its average only at a positive one, so
        negative rewards freeze it; here a flag says that it has started, whatever the
        sign.

    Args:
        state: The state after the last iteration.
        joint_mean: :math:`\bar R`, mean of the raw joint rewards over both arms, all
            objects and all processes [reward units]; finite.
        step_size_violated: :math:`\alpha` below the threshold [1 / reward units]; finite,
            not negative. Both step sizes 0 hold the multiplier, which is how a warm-up is
            written; both equal is the fixed-step ablation.
        step_size_satisfied: :math:`\alpha` at or above the threshold [1 / reward units];
            finite, not negative.
        multiplier_max: :math:`\lambda_{max}` [1]; positive, ``math.inf`` for none.
        threshold_decay: :math:`d`, share of the threshold that stays [1], in [0, 1]; 1.0 fixes
            it.
        order: Number that moves first.

    Returns:
        The state for the next iteration.

    Raises:
        ValueError: If a setting is out of its range, or ``order`` is unknown.
        NonFiniteError: If ``joint_mean`` is NaN or infinite.

    Examples:
        >>> state = constraint_step(ConstraintState(), 7.0)
        >>> state
        ConstraintState(multiplier=0.0, threshold=7.0, initialised=True)
        >>> constraint_step(state, 6.0, threshold_decay=1.0).multiplier
        0.1
    """
    if not math.isfinite(joint_mean):
        raise NonFiniteError("joint_mean", value=joint_mean)
    _check_not_negative("step_size_violated", step_size_violated)
    _check_not_negative("step_size_satisfied", step_size_satisfied)
    if not multiplier_max > 0.0:
        msg = f"`multiplier_max` must be positive; got {multiplier_max!r}; use inf for none."
        raise ValueError(msg)
    if not 0.0 <= threshold_decay <= 1.0:
        msg = f"`threshold_decay` must be in [0, 1]; got {threshold_decay!r}; 1.0 fixes it."
        raise ValueError(msg)
    if order not in ("threshold_first", "multiplier_first"):
        msg = f"`order` must be 'threshold_first' or 'multiplier_first'; got {order!r}."
        raise ValueError(msg)
    threshold = joint_mean
    if state.initialised:
        threshold = threshold_decay * state.threshold + (1.0 - threshold_decay) * joint_mean
    moved = ConstraintState(multiplier=state.multiplier, threshold=threshold, initialised=True)
    slack = (moved if order == "threshold_first" else state).slack(joint_mean)
    step_size = step_size_violated if slack < 0.0 else step_size_satisfied
    multiplier = min(max(state.multiplier - step_size * slack, 0.0), multiplier_max)
    return ConstraintState(multiplier=multiplier, threshold=threshold, initialised=True)


def _check_not_negative(name: str, value: float) -> None:
    """Refuse a step size that would walk down the dual gradient."""
    if not 0.0 <= value < math.inf:
        msg = f"`{name}` must be finite and not negative; got {value!r}; 0.0 holds still."
        raise ValueError(msg)
