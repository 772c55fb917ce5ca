"""Verdicts: every requirement of a claim with its interval, and what follows from them."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from mvczigal_ref.reproduce.arms import ArmRuns
from mvczigal_ref.reproduce.bootstrap import Interval, improvement, interval, resampled_means
from mvczigal_ref.reproduce.claims import LEAST_SEEDS, Claim, Requirement
from mvczigal_ref.reproduce.comparison import gain_over_seeds

__all__ = ["UNITS", "Finding", "Judgement", "Verdict", "judge"]

Verdict: TypeAlias = Literal["holds", "does not", "open"]
"""Answer to a claim, or to one of its requirements."""

UNITS: Final = {"errors": "standard errors", "small_drift": "of captions"}
"""Unit of each measure that is not in dB."""

_DIRECTIONS = 41  # weights of the per-view lead between 0 and 1 by which a front is searched


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Outcome of one requirement."""

    requirement: Requirement
    """Requirement that was put to the test."""

    seeds: int
    """Seeds that all its arms have."""

    interval: Interval | None = None
    """Estimate with its 95 % interval; None without runs."""

    improvement: Interval | None = None
    """Probability that a run of the first arm gains more than one of the second, of plain
    differences alone."""

    verdict: Verdict = "open"
    """Whether the whole interval lies on the required side, on the other, or neither."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Outcome of one claim."""

    letter: str
    """Name of the claim."""

    verdict: Verdict
    """Answer."""

    findings: tuple[Finding, ...]
    """One per requirement, in their order."""


def judge(claim: Claim, arms: Mapping[str, ArmRuns]) -> Judgement:
    """Evaluate every requirement of a claim.

    Args:
        claim: Claim.
        arms: Finished runs by arm; those of absent arms have not been made.

    Returns:
        ``holds`` if all requirements are met, ``does not`` if one is missed, ``open`` otherwise.
    """
    findings = tuple(_finding(one, arms) for one in claim.requirements)
    verdicts = {one.verdict for one in findings}
    verdict: Verdict = "open"
    if "does not" in verdicts:
        verdict = "does not"
    elif verdicts == {"holds"}:
        verdict = "holds"
    return Judgement(letter=claim.letter, verdict=verdict, findings=findings)


def _finding(requirement: Requirement, arms: Mapping[str, ArmRuns]) -> Finding:
    runs = [arms[name] for name in requirement.arms if name in arms]
    seeds = sorted(set.intersection(*(set(one.seeds) for one in runs))) if runs else []
    if len(runs) < len(requirement.arms) or not seeds:
        return Finding(requirement=requirement, seeds=0)
    common = [ArmRuns(seeds=tuple(seeds), runs=tuple(_runs_of(one, seeds))) for one in runs]
    measured = _interval(requirement, common)
    return Finding(
        requirement=requirement,
        seeds=len(seeds),
        interval=measured,
        improvement=_improvement(requirement, common),
        verdict=_verdict(requirement, measured) if len(seeds) >= LEAST_SEEDS else "open",
    )


def _runs_of(arm: ArmRuns, seeds: Sequence[int]) -> list[Mapping[str, object]]:
    by_seed = dict(zip(arm.seeds, arm.runs, strict=True))
    return [by_seed[seed] for seed in seeds]


def _verdict(requirement: Requirement, measured: Interval) -> Verdict:
    above, below = measured.low > requirement.bound, measured.high < requirement.bound
    if not above and not below:
        return "open"
    return "holds" if above == (requirement.side == "above") else "does not"


def _interval(requirement: Requirement, arms: Sequence[ArmRuns]) -> Interval:
    seeds = len(arms[0].seeds)
    if requirement.measure == "errors":  # a ratio to its own error has no interval of its own
        mean, error = gain_over_seeds(arms[0].gains[requirement.score])
        return Interval(*[mean / error] * 3)
    tables = torch.stack(_tables(requirement, arms))
    means = resampled_means(tables, generator=torch.Generator().manual_seed(0))
    whole = tables.double().mean((1, 2))[None]
    estimate = float(_value(requirement, whole))
    return interval(_value(requirement, means), estimate=estimate, seeds=seeds)


def _tables(
    requirement: Requirement, arms: Sequence[ArmRuns]
) -> list[Float[Tensor, "seed prompt"]]:
    """Give the tables whose means a measure is made of."""
    first, score = arms[0], requirement.score
    match requirement.measure:
        case "slack":
            return [first.slack()]
        case "small_drift":
            return [first.small_drift()]
        case "zigzag":
            return [first.zigzag(score, last=False)]
        case "zigzag_change":
            return [first.zigzag(score, last=True) - first.zigzag(score, last=False)]
        case "front":
            return [arm.gains[name] for arm in arms for name in ("per_view", "joint")]
        case _:
            return [arm.gains[score] for arm in arms]


def _value(requirement: Requirement, means: Float[Tensor, "draw table"]) -> Float[Tensor, " draw"]:
    if requirement.measure == "difference":
        return means[:, 0] - requirement.factor * means[:, 1]
    if requirement.measure == "front":
        return _beyond(means.unflatten(1, (-1, 2)))
    return means[:, 0]


def _beyond(gains: Float[Tensor, "draw arm score"]) -> Float[Tensor, " draw"]:
    r"""Measure how far the first arm lies beyond all mixtures of the others.

    .. math:: \max_{w \in [0, 1]} \min_i \left(w\, d_i^{\text{per view}}
        + (1 - w)\, d_i^{\text{joint}}\right)
        = \min_{\text{mixtures}} \max_{\text{scores}} d

    with :math:`d_i` the first arm's leads over arm i; both sides are equal by the minimax theorem.
    """
    leads = gains[:, :1] - gains[:, 1:]
    weight = torch.linspace(0.0, 1.0, _DIRECTIONS, dtype=gains.dtype)
    mixed = weight * leads[..., :1] + (1.0 - weight) * leads[..., 1:]
    return mixed.amin(1).amax(-1)


def _improvement(requirement: Requirement, arms: Sequence[ArmRuns]) -> Interval | None:
    if requirement.measure != "difference" or requirement.factor != 1.0:
        return None
    first, second = (arm.gains[requirement.score] for arm in arms)
    return improvement(first, second, generator=torch.Generator().manual_seed(0))
