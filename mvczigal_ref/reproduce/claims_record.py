"""Record of the claims: arms, intervals and verdicts as they are stored and shown."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from mvczigal_ref.reproduce.arms import ArmRuns, curves
from mvczigal_ref.reproduce.bootstrap import Interval, interval, resampled_means
from mvczigal_ref.reproduce.claims import ARM_SETS, CLAIMS
from mvczigal_ref.reproduce.methods import MethodRow
from mvczigal_ref.reproduce.summary import read_record
from mvczigal_ref.reproduce.verdicts import Judgement, judge
from mvczigal_ref.rollout.noise import derived_generator

__all__ = ["ArmRecord", "ClaimsRecord", "claims_record", "read_claims", "record_text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmRecord:
    """Runs of one arm in numbers."""

    arm: str
    """Name of its run folders, before the seed."""

    name: str
    """Method that it runs."""

    arm_set: str
    """Set whose settings and budget it shares."""

    seeds: tuple[int, ...]
    """Seeds of its finished runs."""

    iterations: float
    """Mean iterations of a run."""

    calls: float
    """Latents through the network in a run's training, forward passes alone; mean [latents]."""

    seconds: float
    """Mean wall time of a run's iterations [s]."""

    before: dict[str, float]
    """Held-out score before training, by score [dB]."""

    gains: dict[str, Interval]
    """Held-out gain by score, with its interval over seeds and prompts [dB]."""

    by_seed: dict[str, tuple[float, ...]]
    """Held-out gain by score and seed [dB]."""

    curves: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    """Mean and standard error over runs of training metrics, by iteration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimsRecord:
    """Outcome of all claims."""

    arms: tuple[ArmRecord, ...]
    """Arms that have finished runs."""

    claims: tuple[Judgement, ...]
    """Answer to every claim, in their order."""


_RECORD = TypeAdapter(ClaimsRecord)


def claims_record(arms: Mapping[str, ArmRuns]) -> ClaimsRecord:
    """Judge all claims by the runs that are there.

    Args:
        arms: Finished runs by arm.

    Returns:
        Numbers and verdicts.
    """
    return ClaimsRecord(
        arms=tuple(
            _arm(row, name, arms[row.arm])
            for name, arm_set in ARM_SETS.items()
            for row in arm_set.methods
            if row.arm in arms
        ),
        claims=tuple(judge(claim, arms) for claim in CLAIMS),
    )


def _arm(row: MethodRow, arm_set: str, runs: ArmRuns) -> ArmRecord:
    scores = ARM_SETS[arm_set].scores
    gains = {}
    for score in scores:
        table = runs.gains[score]
        means = resampled_means(table[None], generator=derived_generator(row.arm, score))[:, 0]
        gains[score] = interval(means, estimate=float(table.mean()), seeds=len(runs.seeds))
    return ArmRecord(
        arm=row.arm,
        name=row.name,
        arm_set=arm_set,
        seeds=runs.seeds,
        iterations=runs.mean("iterations"),
        calls=runs.mean("calls"),
        seconds=runs.mean("seconds"),
        before={score: runs.before(score) for score in scores},
        gains=gains,
        by_seed={score: tuple(runs.gains[score].mean(1).tolist()) for score in scores},
        curves={name: (tuple(m), tuple(s)) for name, (m, s) in curves(runs).items()},
    )


def record_text(record: ClaimsRecord) -> str:
    """Write a record as :func:`read_claims` reads it.

    Args:
        record: Numbers and verdicts.

    Returns:
        JSON.
    """
    return _RECORD.dump_json(record, indent=1).decode() + "\n"


def read_claims(path: Path) -> ClaimsRecord:
    """Read a record that was stored.

    Args:
        path: A JSON file.

    Returns:
        Numbers and verdicts.

    Raises:
        ConfigError: If the file is absent, or no such record.

    Examples:
        >>> read_claims(Path("absent.json"))
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: cannot read claims in 'absent.json': No such file or \
directory. Pass the claims.json that `mvczigal reproduce claims` wrote.
    """
    remedy = "Pass the claims.json that `mvczigal reproduce claims` wrote."
    return read_record(_RECORD.validate_json, path, kind="claims", remedy=remedy)
