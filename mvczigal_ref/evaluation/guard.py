"""The held-out guard's rule and measure: pure arithmetic, without scorers or files."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "GuardCheck",
    "GuardState",
    "GuardVerdict",
    "MarginUnit",
    "guard_step",
    "mean_pairwise_distance",
]

MarginUnit = Literal["standard_errors", "reward"]
"""Unit of a fall: paired standard errors over prompts, or the score's own units."""


Scores = Mapping[str, tuple[float, ...]]
"""One number per prompt, by score [reward units]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardCheck:
    """Scores of one look at the held-out prompts, which are in one order throughout."""

    iteration: int
    """Iterations that were finished at the look [iterations]."""

    trained: Scores
    """Rewards that the run trains on."""

    watched: Scores
    """Scores that the run does not train on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardState:
    """Memory of the guard between two checks."""

    best: GuardCheck
    """Newest check at which no watched mean lay below that of the best check until then."""

    latest: GuardCheck
    """Last check."""

    fired: bool = False
    """Whether the rule fired at the latest check."""

    def as_json(self) -> dict[str, Any]:
        """Give the state as JSON values; `from_json` inverts it to the same bits.

        Returns:
            Nested mappings and lists.
        """
        return {
            "best": _plain(self.best),
            "latest": _plain(self.latest),
            "fired": self.fired,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "GuardState":
        """Read what `as_json` gave.

        Args:
            values: Nested mappings and lists.

        Returns:
            The state.
        """
        return cls(
            best=_check_from(values["best"]),
            latest=_check_from(values["latest"]),
            fired=values["fired"],
        )

    def gains(self) -> dict[str, tuple[float, float]]:
        """Compare the latest check with the best.

        Returns:
            By score, trained ones first, the mean of the paired differences and its standard
            error, which is NaN for a single prompt [reward units].
        """
        return {**_gains(self.best.trained, self.latest.trained),
                **_gains(self.best.watched, self.latest.watched)}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardVerdict:
    """Verdict of the rule on a check."""

    fired: bool
    """Whether to stop, or to return to the best check."""

    improved: bool
    """Whether this check is the best now."""

    risen: tuple[str, ...]
    """Trained rewards that lie above the best check's."""

    fallen: tuple[str, ...]
    """Watched scores that lie below the best check's by the margin or more."""


def guard_step(
    state: GuardState | None,
    check: GuardCheck,
    *,
    margin: float = 2.0,
    unit: MarginUnit = "standard_errors",
    fallen: Literal["any", "all"] = "any",
) -> tuple[GuardState, GuardVerdict]:
    r"""Judge a check against the best one: does the trained reward rise at the others' cost?

    .. math::
        d_k = \frac1P \sum_p (s_{kp} - s^{\ast}_{kp}), \qquad
        \text{fire} \iff \exists\, k \in T : d_k > 0 \;\text{ and }\;
        \exists\, k \in W : -d_k > 0,\ -d_k \ge m\, u_k

    with the best check :math:`s^\ast`, the margin :math:`m` and the unit :math:`u_k`: the
    standard error of :math:`d_k` over prompts, or 1 reward unit. With ``fallen="all"`` every
    watched score must have fallen so far. Differences are taken against the best check and not
    the one before, so that small falls add up. A check at which no watched mean lies below the
    best one's becomes the best; the first check is.

    Source:
        Made for this package: held-out early stopping against the over-optimisation that
        arXiv:2210.10760 (Gao et al.) measures.

    Args:
        state: After the last check; None before the first.
        check: Present scores.
        margin: :math:`m`, in ``unit``; positive.
        unit: ``standard_errors`` needs two prompts or more.
        fallen: Number of watched scores that must have fallen, one or every one.

    Returns:
        The new state, and the verdict.

    Raises:
        ValueError: If ``margin`` is not positive and finite, if a choice is unknown, if the
            check watches nothing, names other scores or counts other prompts than the best
            one, or has too few of them for standard errors.

    Examples:
        >>> def check(iteration, reward, watched):
        ...     return GuardCheck(
        ...         iteration=iteration, trained={"reward": reward}, watched={"other": watched}
        ...     )
        >>> state, verdict = guard_step(None, check(0, (1.0, 1.0), (5.0, 5.0)))
        >>> state, verdict = guard_step(state, check(5, (2.0, 2.0), (4.0, 4.5)), margin=2.0)
        >>> verdict.fired, verdict.fallen, state.best.iteration
        (True, ('other',), 0)
    """
    if not (margin > 0.0 and math.isfinite(margin)):
        msg = f"`margin` must be positive and finite; got {margin!r}; the default is 2.0."
        raise ValueError(msg)
    for name, value, choices in (
        ("unit", unit, ("standard_errors", "reward")),
        ("fallen", fallen, ("any", "all")),
    ):
        if value not in choices:
            msg = f"`{name}` must be one of {list(choices)}; got {value!r}."
            raise ValueError(msg)
    best = check if state is None else state.best
    _require_comparable(best, check, unit)
    trained, watched = (
        _gains(best.trained, check.trained),
        _gains(best.watched, check.watched),
    )
    risen = tuple(name for name, (gain, _) in trained.items() if gain > 0.0)
    low = tuple(
        name
        for name, (gain, error) in watched.items()
        if gain < 0.0 and -gain >= margin * (error if unit == "standard_errors" else 1.0)
    )
    enough = len(low) == len(watched) if fallen == "all" else bool(low)
    fired = bool(risen) and enough
    improved = all(gain >= 0.0 for gain, _ in watched.values())
    verdict = GuardVerdict(fired=fired, improved=improved, risen=risen, fallen=low)
    return GuardState(best=check if improved else best, latest=check, fired=fired), verdict


def mean_pairwise_distance(
    features: Float[Tensor, "prompt noise feature"],
) -> Float[Tensor, " prompt"]:
    r"""Measure how much the samples of each prompt differ.

    .. math:: D_p = \frac{2}{N (N - 1)} \sum_{i < j}
        \sqrt{\tfrac1F \sum_f (z_{pif} - z_{pjf})^2}

    Args:
        features: One vector per sample, in any feature space; two samples per prompt or more
            [feature units]. Gradient flows where samples differ.

    Returns:
        Mean over the pairs of a prompt's samples of their root-mean-square difference
        [feature units].

    Raises:
        ValueError: If a prompt has fewer than two samples, or a sample no feature.

    Examples:
        >>> mean_pairwise_distance(torch.tensor([[[0.0, 0.0], [3.0, 3.0], [0.0, 0.0]]])).tolist()
        [2.0]
    """
    count = features.shape[1]
    if count < 2 or features.shape[2] == 0:
        msg = (
            "`features` must hold two samples per prompt or more, each with a feature; got shape "
            f"{tuple(features.shape)}. Sample each prompt from several noises."
        )
        raise ValueError(msg)
    pairs = [
        (features[:, one] - features[:, other]).square().mean(-1).sqrt()
        for one, other in combinations(range(count), 2)
    ]
    return torch.stack(pairs).mean(0)


def _gains(before: Scores, after: Scores) -> dict[str, tuple[float, float]]:
    """Mean and standard error of the paired differences, exact sums: prompts have no order."""
    gains = {}
    for name, values in after.items():
        change = [a - b for a, b in zip(values, before[name], strict=True)]
        count = len(change)
        mean = math.fsum(change) / count
        error = math.nan
        if count > 1:
            squares = math.fsum((x - mean) ** 2 for x in change)
            error = math.sqrt(squares / (count * (count - 1)))
        gains[name] = (mean, error)
    return gains


def _require_comparable(best: GuardCheck, check: GuardCheck, unit: MarginUnit) -> None:
    if not check.trained or not check.watched:
        msg = "`check` must hold a trained reward and a watched score; got none of one of them."
        raise ValueError(msg)
    for kind in ("trained", "watched"):
        then, now = (
            {name: len(values) for name, values in getattr(one, kind).items()}
            for one in (best, check)
        )
        if then != now or min(now.values()) < (2 if unit == "standard_errors" else 1):
            msg = (
                f"`check` must count the prompts of the best check's {kind} scores, {then}, and "
                f"two or more for standard errors; got {now}. Check on the same prompts."
            )
            raise ValueError(msg)


def _plain(check: GuardCheck) -> dict[str, Any]:
    values = asdict(check)
    for kind in ("trained", "watched"):
        values[kind] = {name: list(scores) for name, scores in values[kind].items()}
    return values


def _check_from(values: Mapping[str, Any]) -> GuardCheck:
    kinds = {
        kind: {name: tuple(scores) for name, scores in values[kind].items()}
        for kind in ("trained", "watched")
    }
    return GuardCheck(iteration=values["iteration"], **kinds)
