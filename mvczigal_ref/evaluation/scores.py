"""Scores of an evaluation: their files, and the paired gain of one over another.

Tables and images are torch's or NumPy's: a report reads them without torch.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import finite_values, require_readable

__all__ = [
    "MEASURED",
    "Evaluation",
    "PairedGain",
    "mean",
    "mean_score",
    "paired_gain",
    "read_evaluation",
    "score_record",
    "seal_evaluation",
    "sealed_evaluation",
]

MEASURED = "measured"
"""Metadata that names the circumstances in which scores were measured."""

_SEALED = "; sha256 "

_Table = Float[Any, "noise prompt"]  # of torch or NumPy


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of every prompt under every initial noise."""

    per_view: _Table
    """Mean over views of the per-view score [reward units]."""

    joint: _Table
    """Joint-view score [reward units]."""

    images: Float[Any, "object view rgb height width"]
    """Images of the first noise, for the prompts asked for, in [0, 1]."""

    errors: UInt8[Any, "object view height width"] | None = None
    """Levels by which these images differ from the exact renders that a judge compares them with,
    see :func:`~mvczigal_ref.pictures.heat.error_levels`; None where no exact judge looked."""

    def means(self) -> dict[str, float]:
        """Average both scores over noises and prompts, as the metrics file names them.

        Returns:
            Both means [reward units].
        """
        return {
            "held_out/per_view": mean(_flat(self.per_view)),
            "held_out/joint": mean(_flat(self.joint)),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedGain:
    """Change of a mean score between two evaluations on the same prompts and noises."""

    before: float
    """Mean [reward units]."""

    after: float
    """Mean [reward units]."""

    gain: float
    """Mean of the paired differences [reward units]."""

    standard_error: float
    """Standard error of the gain over prompts [reward units]."""


def read_evaluation(
    path: Path, *, framework: Literal["pt", "np"] = "pt"
) -> tuple[Evaluation, dict[str, str]]:
    """Read scores that training has kept.

    Args:
        path: A safetensors file.
        framework: Library of the tables and images, "pt" for torch or "np" for NumPy.

    Returns:
        The scores, and what is written beside them.

    Raises:
        CheckpointError: If the file is damaged.
        PermissionError: If it may not be read.

    Examples:
        >>> read_evaluation(Path("absent/before_000000.safetensors"))
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: cannot read the scores in \
'absent/before_000000.safetensors': No such file or directory: absent/before_000000.safetensors. \
Remove the file.
    """
    require_readable(path)
    try:
        with safe_open(path, framework) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            metadata = file.metadata() or {}
        scores = Evaluation(**tensors)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        msg = f"cannot read the scores in {str(path)!r}: {error}. Remove the file."
        raise CheckpointError(msg) from error
    measured, sealed, seal = metadata.get(MEASURED, "").partition(_SEALED)
    if sealed and seal != seal_evaluation(scores, path, measured):
        msg = (
            f"cannot read the scores in {str(path)!r}: they are not what was written under that "
            "iteration. Remove the file."
        )
        raise CheckpointError(msg)
    return scores, metadata


def sealed_evaluation(scores: Evaluation, path: Path, measured: str) -> bytes:
    """Give scores as the content of a file that :func:`read_evaluation` checks.

    Args:
        scores: Scores to keep.
        path: File that they are for: under that of another iteration they are refused.
        measured: Circumstances of the measurement.

    Returns:
        Bytes of a safetensors file.
    """
    # One entry alone: several would be written in any order, and files would not be equal.
    metadata = {MEASURED: measured + _SEALED + seal_evaluation(scores, path, measured)}
    return _content(scores, metadata)


def seal_evaluation(scores: Evaluation, path: Path, measured: str) -> str:
    """Digest scores, their iteration and circumstances.

    Args:
        scores: Scores of an occasion.
        path: File of the scores; the iteration that ends its name is read.
        measured: Circumstances of the measurement.

    Returns:
        SHA-256 in hexadecimal.
    """
    iteration = path.stem.rpartition("_")[2]
    digest = hashlib.sha256(f"{iteration}\0{measured}\0".encode())
    digest.update(_content(scores))
    return digest.hexdigest()


def _content(scores: Evaluation, metadata: dict[str, str] | None = None) -> bytes:
    """Give the bytes of a file, equal ones for torch and NumPy."""
    if isinstance(scores.joint, np.ndarray):
        from safetensors.numpy import save
    else:
        from safetensors.torch import save
    tensors = {field.name: getattr(scores, field.name) for field in fields(scores)}
    content: bytes = save({k: v for k, v in tensors.items() if v is not None}, metadata=metadata)
    return content


def mean(values: Sequence[float]) -> float:
    """Average numbers; their sum is rounded once, so that its order does not matter.

    Args:
        values: Numbers.

    Returns:
        The mean; NaN of none.

    Examples:
        >>> mean([1e16, 1.0, 1.0, -1e16])
        0.5
    """
    return math.fsum(values) / len(values) if values else math.nan


def paired_gain(
    before: Float[Any, "noise prompt"], after: Float[Any, "noise prompt"]
) -> PairedGain:
    r"""Compare scores prompt by prompt.

    .. math::
        d_p = \frac1N \sum_n (a_{np} - b_{np}), \quad
        \mathrm{SE} = \sqrt{\frac{\sum_p (d_p - \bar d)^2}{P (P - 1)}}

    Args:
        before: Scores of one policy, of torch or NumPy [reward units].
        after: Scores of another, on the same noises and prompts.

    Returns:
        Both means, the gain and its standard error (NaN for a single prompt).

    Raises:
        ValueError: If the tables differ in shape.

    Examples:
        >>> import torch
        >>> gain = paired_gain(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 6.0]]))
        >>> gain.gain, gain.standard_error
        (2.0, 1.0)
    """
    if before.shape != after.shape:
        msg = (
            f"`after` must have the shape of `before`, {tuple(before.shape)}; got "
            f"{tuple(after.shape)}. Evaluate both on the same prompts and noises."
        )
        raise ValueError(msg)
    first, last = (list(zip(*table.tolist(), strict=True)) for table in (before, after))
    changes = [
        mean([new - old for old, new in zip(*columns, strict=True)])
        for columns in zip(first, last, strict=True)
    ]
    gain, prompts = mean(changes), len(changes)
    squares = math.fsum((change - gain) ** 2 for change in changes)
    return PairedGain(
        before=mean(_flat(before)),
        after=mean(_flat(after)),
        gain=gain,
        standard_error=math.sqrt(squares / (prompts * (prompts - 1))) if prompts > 1 else math.nan,
    )


def _flat(table: _Table) -> list[float]:
    return [value for row in table.tolist() for value in row]


def mean_score(scores: Float[Any, "noise prompt"]) -> tuple[float, float]:
    """Average scores over noises and prompts.

    Args:
        scores: Scores of one policy [reward units].

    Returns:
        Mean, and its standard error over prompts (NaN for a single prompt).

    Examples:
        >>> import torch
        >>> mean_score(torch.tensor([[1.0, 3.0]]))
        (2.0, 1.0)
    """
    gain = paired_gain(0 * scores, scores)
    return gain.gain, gain.standard_error


def score_record(scores: Float[Any, "noise prompt"]) -> dict[str, Any]:
    """Give scores as JSON values.

    Args:
        scores: Scores of one policy [reward units].

    Returns:
        Mean, standard error (None where it is not finite) and the mean of every prompt.

    Examples:
        >>> import torch
        >>> score_record(torch.tensor([[2.0]]))
        {'mean': 2.0, 'standard_error': None, 'per_prompt': [2.0]}
    """
    average, error = mean_score(scores)
    columns = [mean(column) for column in zip(*scores.tolist(), strict=True)]
    return finite_values({"mean": average, "standard_error": error, "per_prompt": columns})
