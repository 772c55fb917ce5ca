"""Measurements of a gate on weights, the claims that must hold, and their table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mvczigal_ref.shapes import Images
from mvczigal_ref.tiny_world.score import joint_view_score, per_view_score
from mvczigal_ref.tiny_world.visible import part_visible, views_showing_part

__all__ = [
    "VISIBLE",
    "WRONG",
    "Claim",
    "Gate",
    "GateRow",
    "check_settings",
    "ordered",
    "scored",
    "steps_name",
]

VISIBLE = 0.9
"""Least share of samples that must show the named part in its colour [1]."""


WRONG = ("wrong_prompt", "blank", "noise")
"""Kinds of images above which samples must score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRow:
    """Scores of one kind of images; standard errors are over prompts."""

    name: str
    """Kind of the images, such as ``real`` or ``8 steps``."""

    per_view: float
    """Mean of the per-view score over views, prompts and noises [dB]."""

    per_view_error: float
    """Standard error of the mean per-view score [dB]; NaN for a single prompt."""

    joint: float
    """Mean of the joint score [dB]; NaN for single views."""

    joint_error: float
    """Standard error of the mean joint score [dB]; NaN for a single prompt or single views."""

    part_visible: float
    """Fraction of objects, or of single views, that show the named part in its colour [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One condition that good weights must meet."""

    text: str
    """Condition in words, such as ``joint: autoencoder > 8 steps``."""

    margin: float
    """Margin by which the claim holds [dB, or share of objects]; negative if it fails."""

    @property
    def holds(self) -> bool:
        """Whether the claim holds."""
        return self.margin >= 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """Result of a gate: scores, claims and images."""

    rows: tuple[GateRow, ...]
    """Scores, one row per kind of images; with good weights the best comes first."""

    claims: tuple[Claim, ...]
    """All claims, also those that fail."""

    images: dict[str, Images]
    """Images of the first noise, by the name of the row."""

    @property
    def passed(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)

    def __str__(self) -> str:
        """Return the table and the claims as Markdown."""
        sets = not all(math.isnan(row.joint) for row in self.rows)
        titles = ["images", "per view [dB]", *["joint [dB]"] * sets, "part visible"]
        lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
        for row in self.rows:
            cells = [row.name, f"{row.per_view:.2f} +/- {row.per_view_error:.2f}"]
            cells += [f"{row.joint:.2f} +/- {row.joint_error:.2f}"] * sets
            lines.append(f"| {' | '.join(cells)} | {row.part_visible:.1%} |")
        lines.append("")
        for claim in self.claims:
            lines.append(
                f"- {'holds' if claim.holds else 'FAILS'} {claim.margin:+.2f}: {claim.text}"
            )
        return "\n".join(lines)


def check_settings(noises: int, steps: Sequence[int]) -> None:
    """Refuse settings that give no table.

    Args:
        noises: Initial noises per prompt [1]; at least 1.
        steps: Step counts, largest first; at least two.

    Raises:
        ValueError: If ``noises`` is below 1 or ``steps`` do not fall.
    """
    if noises < 1:
        msg = f"`noises` must be at least 1; got {noises}."
        raise ValueError(msg)
    if len(steps) < 2 or list(steps) != sorted(set(steps), reverse=True):
        msg = f"`steps` must hold two or more counts, largest first; got {tuple(steps)}."
        raise ValueError(msg)


def steps_name(count: int) -> str:
    """Name the row of samples that took this many steps."""
    return f"{count} steps"


def scored(
    name: str, rounds: Sequence[Images], prompts: Sequence[str], *, sets: bool = True
) -> GateRow:
    """Score one kind of images.

    Args:
        name: Kind of the images.
        rounds: Images of one object per prompt; one entry per noise.
        prompts: Prompts of the images.
        sets: Whether the views of an object belong together; if not, there is no joint score,
            and the visible part is counted per view instead of per object.

    Returns:
        The row.
    """
    per_view, per_view_error = _mean([per_view_score(x, prompts).mean(1) for x in rounds])
    joint, joint_error = math.nan, math.nan
    if sets:
        joint, joint_error = _mean([joint_view_score(x, prompts) for x in rounds])
    shows = part_visible if sets else views_showing_part
    seen = torch.stack([shows(x, prompts) for x in rounds])
    return GateRow(
        name=name,
        per_view=per_view,
        per_view_error=per_view_error,
        joint=joint,
        joint_error=joint_error,
        part_visible=float(seen.double().mean()),
    )


def _mean(scores: list[torch.Tensor]) -> tuple[float, float]:
    """Return the mean over noises and prompts, and its standard error over prompts."""
    by_prompt = torch.stack(scores).double().mean(0)
    count = len(by_prompt)
    error = float(by_prompt.std()) / math.sqrt(count) if count > 1 else math.nan
    return float(by_prompt.mean()), error


def ordered(
    table: Mapping[str, GateRow], pairs: Iterable[tuple[str, str]], scores: Sequence[str]
) -> list[Claim]:
    """Make the claims that one row scores above another.

    Args:
        table: Rows by name.
        pairs: Names of the better and the worse row.
        scores: ``per_view``, ``joint`` or both.

    Returns:
        One claim per score and pair.
    """
    pairs = list(pairs)
    return [
        Claim(
            text=f"{score.replace('_', '-')}: {better} > {worse}",
            margin=getattr(table[better], score) - getattr(table[worse], score),
        )
        for score in scores
        for better, worse in pairs
    ]
