"""Rewards of a group's samples under every condition, and the advantages made of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.condition.distinct import distinct_texts, every_condition
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.table import GroupRewards
from mvczigal_ref.shapes import Images
from mvczigal_ref.system import System

__all__ = ["score_groups"]


@torch.no_grad()
def score_groups(
    system: System,
    images: Float[Tensor, "prompt sample view rgb height width"],
    captions: Sequence[Sequence[str]],
) -> GroupRewards:
    """Judge every sample under every condition; equal texts of a prompt are asked once.

    Args:
        system: Its scorers are asked.
        images: In [0, 1].
        captions: Per condition one text a prompt, the prompts themselves first.

    Returns:
        Rewards on the CPU.

    Raises:
        ScorerUnavailableError: If a scorer's service is out.
    """
    samples = images.shape[1]
    columns = distinct_texts(captions)
    per_view, joint = Mixture.of(system.per_view, "per_view"), system.joint
    judged = Mixture(scorers={}, weights={}) if joint is None else Mixture.of(joint, "joint_view")
    rows: dict[str, list[Tensor]] = {}
    for column in columns:
        flat: Images = column.of(images).flatten(0, 1)
        said = [text for text in column.texts for _ in range(samples)]
        for name, table in (
            *per_view.tables(flat, said).items(),
            *judged.tables(flat, said).items(),
        ):
            rows.setdefault(name, []).append(table.unflatten(0, (-1, samples)).cpu())
    tables = {name: every_condition(columns, values) for name, values in rows.items()}
    return GroupRewards(
        per_view={name: tables[name] for name in per_view.scorers},
        joint={name: tables[name] for name in judged.scorers},
        weights={**per_view.weights, **judged.weights},
    )
