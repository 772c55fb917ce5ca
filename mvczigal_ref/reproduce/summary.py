"""Summary of a comparison: the numbers of its table and picture, as they are stored."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.reproduce.comparison import Comparison, Outcome, gain_over_seeds

__all__ = [
    "Gain",
    "MethodSummary",
    "Summary",
    "read_record",
    "read_summary",
    "summarise",
    "to_text",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """Gain of one method in one score."""

    mean: float
    """Mean over seeds and held-out prompts [dB]."""

    error: float
    """Standard error that counts seeds and prompts as random [dB]."""

    prompts_error: float
    """Standard error over prompts alone, the runs being what they are [dB]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodSummary:
    """One method's row."""

    name: str
    """Name in the paper."""

    recipe: str
    """Recipe that runs it here."""

    iterations: int
    """Iterations of a run."""

    calls: int
    """Latents through the network in a run's training, forward passes alone."""

    seconds: float
    """Wall time of a run's iterations [s]."""

    before: dict[str, float]
    """Score before training, by score [dB]."""

    gains: dict[str, Gain]
    """Gains by score."""

    published: tuple[float | None, ...] = ()
    """Gains of the paper, one per column of its table; None where it has none."""

    drift: tuple[float, ...] = ()
    """Share of captions in each bin of drift, below its first edge and then over
    ``DRIFT_EDGES`` [%]; empty without captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """All methods of one paper."""

    title: str
    """Subject of the comparison, and its paper."""

    paper: str
    """Identifier of the paper."""

    full: str
    """Recipe of the paper's full method."""

    rival: str
    """Recipe with which the full method is compared by a paired test."""

    published: tuple[str, ...]
    """Measures of the paper, one per column."""

    scores: tuple[str, ...]
    """Scores that were measured, by their fields of an evaluation."""

    methods: tuple[MethodSummary, ...]
    """Methods in the paper's order."""

    paired: dict[str, tuple[float, float]]
    """Full method's gain minus its rival's, and the standard error, by score [dB]; empty where one
    of the two was not run."""


_SUMMARY = TypeAdapter(Summary)
_Record = TypeVar("_Record")


def summarise(comparison: Comparison) -> Summary:
    """Reduce a comparison to the numbers that are shown.

    Args:
        comparison: Comparison of one paper's methods.

    Returns:
        Numbers of the comparison.
    """
    methods = comparison.methods
    rival, full = methods.pair
    pairs = {score: comparison.paired(score) for score in methods.scores}
    return Summary(
        title=methods.title,
        paper=methods.paper,
        full=full,
        rival=rival,
        published=methods.published,
        scores=methods.scores,
        methods=tuple(_method(outcome, methods.scores) for outcome in comparison.outcomes),
        paired={score: pair for score, pair in pairs.items() if pair is not None},
    )


def _method(outcome: Outcome, scores: tuple[str, ...]) -> MethodSummary:
    gains = {}
    for score in scores:
        mean, error = gain_over_seeds(outcome.gains[score])
        _, over_prompts = gain_over_seeds(outcome.gains[score].mean(0, keepdim=True))
        gains[score] = Gain(mean=mean, error=error, prompts_error=over_prompts)
    total = sum(outcome.drift) or 1
    return MethodSummary(
        name=outcome.method.name,
        recipe=outcome.method.recipe,
        iterations=outcome.iterations,
        calls=outcome.calls,
        seconds=outcome.seconds,
        before={score: outcome.before[score] for score in scores},
        gains=gains,
        published=outcome.method.published,
        drift=tuple(100 * count / total for count in outcome.drift),
    )


def to_text(summary: Summary) -> str:
    """Write a summary as :func:`read_summary` reads it.

    Args:
        summary: Numbers of a comparison.

    Returns:
        JSON, one value per line.
    """
    return _SUMMARY.dump_json(summary, indent=1).decode() + "\n"


def read_summary(path: Path) -> Summary:
    """Read a summary that was stored.

    Args:
        path: A JSON file.

    Returns:
        The numbers.

    Raises:
        ConfigError: If the file is absent, or no summary.

    Examples:
        >>> read_summary(Path("absent.json"))
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: cannot read a comparison in 'absent.json': No such file \
or directory. Pass what `mvczigal reproduce` wrote.
    """
    return read_record(
        _SUMMARY.validate_json,
        path,
        kind="a comparison",
        remedy="Pass what `mvczigal reproduce` wrote.",
    )


def read_record(read: Callable[[bytes], _Record], path: Path, *, kind: str, remedy: str) -> _Record:
    """Read a stored record; an absent or other file is a ConfigError that ends in ``remedy``."""
    try:
        return read(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise ConfigError(f"cannot read {kind} in {str(path)!r}: {reason}. {remedy}") from error
