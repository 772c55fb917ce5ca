"""Captions of an iteration: other texts to judge and learn samples under, and their record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.condition.distinct import TextColumn, distinct_texts
from mvczigal_ref.condition.drift_bins import DRIFT_EDGES, drift_histogram
from mvczigal_ref.condition.protocol import Caption, ConditionEnhancer, stream
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.method.slices import Part
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.system import System

__all__ = [
    "DRIFT_EDGES",
    "Conditions",
    "caption_log",
    "caption_record",
    "caption_seed",
    "captioned",
    "describe",
    "drift_entries",
    "drift_histogram",
    "drift_metrics",
    "encoded",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """Texts that one slice's samples are judged and learnt under, the prompts' own first."""

    captions: list[tuple[Caption, ...]]
    """Captions of each prompt; empty without an enhancer."""

    columns: tuple[TextColumn, ...]
    """Distinct texts of the prompts: equal texts of a prompt are judged and learnt once."""

    conditioning: tuple[Conditioning, ...]
    """Features of each column's texts."""


def describe(
    system: System,
    enhancer: ConditionEnhancer | None,
    part: Part,
    images: Float[Tensor, "prompt sample view rgb height width"],
    config: TrainConfig,
    iteration: int,
) -> Conditions:
    """Describe one slice's samples by captions, and encode them beside the prompts.

    Source:
        arXiv:2603.12648 (MV-GRPO), the augmented condition space.

    Args:
        system: System whose text encoders encode.
        enhancer: Makes the captions; None is the prompts alone.
        part: The slice.
        images: Decoded samples in [0, 1].
        config: ``run.seed`` is read.
        iteration: Index of the iteration; names the captions' seed.

    Returns:
        The prompts, and the captions beside them.

    Raises:
        CaptionError: If captions cannot be made.
    """
    return encoded(system, captioned(enhancer, part, images, config, iteration))


Captions = list[tuple[Caption, ...]]
"""Captions of each prompt; empty without an enhancer."""


def captioned(
    enhancer: ConditionEnhancer | None,
    part: Part,
    images: Float[Tensor, "prompt sample view rgb height width"],
    config: TrainConfig,
    iteration: int,
) -> tuple[Captions, tuple[TextColumn, ...]]:
    """Make one slice's captions, in any thread; see :func:`describe`.

    Args:
        enhancer: Makes the captions; None is the prompts alone.
        part: The slice.
        images: Decoded samples in [0, 1].
        config: ``run.seed`` is read.
        iteration: Index of the iteration; names the captions' seed.

    Returns:
        Captions, and the distinct texts of the prompts.
    """
    captions: Captions = [() for _ in part.prompts]
    if enhancer is not None:
        views = images.cpu() if enhancer.needs_images else None
        seed = caption_seed(config.run.seed, iteration)
        captions = enhancer(part.prompts, views, seed=seed)
    rows = [[c.caption for c in row] for row in zip(*captions, strict=True)]
    return captions, distinct_texts([part.prompts, *rows])


def encoded(system: System, texts: tuple[Captions, tuple[TextColumn, ...]]) -> Conditions:
    """Encode what :func:`captioned` gives; see :func:`describe`.

    Args:
        system: System whose text encoders encode.
        texts: Captions, and the distinct texts of the prompts.

    Returns:
        The prompts, and the captions beside them.
    """
    captions, columns = texts
    return Conditions(
        captions=captions,
        columns=columns,
        conditioning=tuple(
            system.conditioning(column.texts, remember=place == 0)
            for place, column in enumerate(columns)
        ),
    )


def caption_seed(run_seed: int, iteration: int) -> int:
    """Seed an iteration's captions by the names of both numbers.

    Source:
        Ours. Their sum would give a seed the captions that the next seed had one iteration earlier.

    Args:
        run_seed: ``run.seed``.
        iteration: Index of the iteration.

    Returns:
        A seed in [0, 2^63), another one for every pair.

    Examples:
        >>> caption_seed(0, 1) == caption_seed(1, 0)
        False
    """
    return stream(run_seed, iteration, "captions").getrandbits(63)


def caption_log(
    parts: Sequence[Part],
    conditions: Sequence[Conditions],
    rewards: RewardTable,
    drift: Sequence[Float[Tensor, "prompt caption _ view"]] | None,
) -> dict[str, Any] | None:
    """Record an iteration's captions, where there are some.

    Args:
        parts: Slices of this process.
        conditions: Captions of each slice.
        rewards: Rewards of all prompts, under every condition.
        drift: Change of every sample's log-density, of all processes; None without captions
            [unit of the log-density].

    Returns:
        The record of :func:`caption_record`; None without captions.
    """
    if drift is None:
        return None
    places = [i for part in parts for i in part.objects]
    return caption_record(
        [prompt for part in parts for prompt in part.prompts],
        [row for condition in conditions for row in condition.captions],
        rewards.per_view_total().mean(-1)[:, places],
        drift_entries(drift),
        torch.stack([table[places].flatten(2).mean(-1) for table in drift]),
    )


def caption_record(
    prompts: Sequence[str],
    captions: Sequence[Sequence[Caption]],
    reward: Float[Tensor, "condition prompt sample"],
    drift: Float[Tensor, " entry"],
    by_step: Float[Tensor, "step prompt caption"],
) -> dict[str, Any]:
    """Put an iteration's captions into JSON values.

    Args:
        prompts: Prompts of this process.
        captions: K captions of each prompt.
        reward: Rewards of every sample, under the prompt and then each caption [reward units].
        drift: Change of log-density under captions, of all processes [unit of the log-density].
        by_step: Mean drift over each group's samples, of these captions [unit of the
            log-density].

    Returns:
        A list of captions, each with its group's mean reward under prompt and caption and its
        drift at every trained step, and the histogram of the drift over ``DRIFT_EDGES``, whose
        first and last bins are open.
    """
    edges = torch.tensor(DRIFT_EDGES, dtype=torch.float64)
    bins = torch.bucketize(drift.double(), edges)
    counts = torch.bincount(bins, minlength=len(edges) + 1).tolist()
    rows = [
        {
            "prompt": prompt,
            "caption": caption.caption,
            "instruction": caption.instruction,
            "sample": caption.sample,
            "reward_under_prompt": float(reward[0, place].mean()),
            "reward_under_caption": float(reward[1 + index, place].mean()),
            "drift": by_step[:, place, index].tolist(),
        }
        for place, (prompt, row) in enumerate(zip(prompts, captions, strict=True))
        for index, caption in enumerate(row)
    ]
    return {"captions": rows, "drift_counts": counts}


def drift_metrics(drift: Float[Tensor, " entry"]) -> dict[str, float]:
    """Summarise the drift for the metrics file.

    Args:
        drift: Change of log-density of every caption, sample and step [unit of the log-density].

    Returns:
        Mean, median and 95th percentile.
    """
    quantiles = torch.quantile(drift.double(), torch.tensor([0.5, 0.95], dtype=torch.float64))
    return {
        "drift/mean": float(drift.mean()),
        "drift/median": float(quantiles[0]),
        "drift/p95": float(quantiles[1]),
    }


def drift_entries(drift: Sequence[Tensor]) -> Float[Tensor, " entry"]:
    """Lay every table's entries along one axis.

    Args:
        drift: One table per decision [unit of the log-density].

    Returns:
        All entries.
    """
    return torch.cat([table.flatten() for table in drift])
