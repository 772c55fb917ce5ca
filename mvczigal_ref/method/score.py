"""Scores of one slice: every sample judged under every condition."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.condition.distinct import TextColumn, every_condition
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.shapes import Images
from mvczigal_ref.system import System

__all__ = ["score"]


@torch.no_grad()
def score(
    system: System,
    images: Float[Tensor, "prompt sample view rgb height width"],
    columns: Sequence[TextColumn],
    *,
    texts_per_call: int = 1,
) -> RewardTable:
    """Judge every sample under every condition; equal texts of a prompt are asked once.

    Args:
        system: System whose scorers are asked.
        images: Decoded samples in [0, 1].
        columns: Distinct texts of the prompts, their own first.
        texts_per_call: Columns that a scorer is asked about at once [1]. A scorer that treats each
            object by itself gives the same rewards for any number, to its rounding in a batch.

    Returns:
        Rewards on the CPU.

    Raises:
        ValueError: If a per-view and a joint scorer have one name.
        ScorerUnavailableError: If a scorer's service is out.
    """
    samples = images.shape[1]
    per_view, whole = system.mixtures
    rows: dict[str, list[Tensor]] = {}
    for first in range(0, len(columns), texts_per_call):
        batch = columns[first : first + texts_per_call]
        parts: list[Images] = [column.of(images).flatten(0, 1) for column in batch]
        flat: Images = parts[0] if len(parts) == 1 else torch.cat(parts)
        texts = [text for column in batch for text in column.texts for _ in range(samples)]
        tables = (*per_view.tables(flat, texts).items(), *whole.tables(flat, texts).items())
        for name, table in tables:
            each = table.split([len(part) for part in parts])
            rows.setdefault(name, []).extend(r.unflatten(0, (-1, samples)).cpu() for r in each)
    tables_of = {name: every_condition(columns, values) for name, values in rows.items()}
    return RewardTable(
        per_view={name: tables_of[name] for name in per_view.scorers},
        joint={name: tables_of[name] for name in whole.scorers},
        weights={**per_view.weights, **whole.weights},
    )
