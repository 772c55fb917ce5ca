"""The table of MV-GRPO's paper: one policy under many scorers, every image made once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.advantage.standardise import check_rewards
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.evaluate import sample_objects
from mvczigal_ref.evaluation.slices import OCCASION, SampleSlices
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.system import System

__all__ = ["COLUMNS", "PUBLISHED", "benchmark"]

COLUMNS: Final[Mapping[str, str]] = {
    "HPS-v3": "hpsv3",
    "UR-v2-A": "chat_judge.alignment",
    "UR-v2-C": "chat_judge.coherence",
    "UR-v2-S": "chat_judge.style",
    "HPS-v2": "hpsv2",
    "CLIP": "clip_score",
    "IR": "image_reward",
    "UR-v1": "unified_reward_v1",
}
"""Scorer of each column, in the paper's order. ``unified_reward_v1`` is no scorer of this package:
name its service in ``reward.url``."""

PUBLISHED: Final[Mapping[str, tuple[float, ...]]] = {
    "FLUX.1-dev": (0.133, 3.250, 3.634, 3.223, 0.305, 0.389, 1.042, 3.604),
    "Flow-GRPO": (0.147, 3.235, 3.670, 3.236, 0.326, 0.380, 1.149, 3.548),
    "DanceGRPO": (0.145, 3.238, 3.663, 3.224, 0.322, 0.381, 1.165, 3.585),
    "TempFlow-GRPO": (0.150, 3.240, 3.683, 3.299, 0.332, 0.376, 1.184, 3.559),
    "DiffusionNFT": (0.149, 3.244, 3.676, 3.259, 0.330, 0.364, 1.161, 3.551),
    "MV-GRPO (LLM)": (0.153, 3.232, 3.692, 3.313, 0.336, 0.373, 1.176, 3.557),
    "MV-GRPO (VLM)": (0.155, 3.229, 3.701, 3.320, 0.340, 0.370, 1.193, 3.569),
}
"""Rows of the paper's table, of FLUX.1-dev trained on HPS-v3, in the order of ``COLUMNS``."""


def benchmark(
    system: System,
    prompts: Sequence[str],
    *,
    config: TrainConfig,
    world: World,
    num_noises: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Float[Tensor, "noise prompt"]]:
    """Score a policy on every prompt by each of its per-view scorers.

    The noises are those of :func:`~mvczigal_ref.evaluation.evaluate.evaluate`.

    Source:
        arXiv:2603.12648 (MV-GRPO), its table of eight measures.

    Args:
        system: Network, sampler and per-view scorers.
        prompts: Prompts, at least one.
        config: Sampling and objects per slice are read.
        world: Processes share out the slices where they divide evenly, and all do everything where
            not.
        num_noises: Initial noises per prompt; at least 1.
        seed: Seed of the noises.
        progress: Called with the slices that this process has scored, and with all of its own.

    Returns:
        Mean over views of each scorer's numbers [its unit], by its name; the same in every process.

    Raises:
        ValueError: If there is no prompt or no noise.
        NonFiniteError: If a score is not finite; names its scorer, prompt, noise and view.
    """
    scorers = Mixture.of(system.per_view, "per_view")
    slices = SampleSlices(
        prompts=prompts, num_noises=num_noises, size=config.run.objects_per_slice, world=world
    )
    mine, parts = slices.mine, []
    for place, part in enumerate(mine):
        texts, noise = slices.texts(part), system.noise(part, OCCASION, seed=seed)
        with torch.no_grad():
            images = sample_objects(system, texts, noise, config=config)
            parts.append(scorers.tables(images, texts))
        if progress is not None:
            progress(place + 1, len(mine))
    scores = slices.gathered(parts)
    slices.require_finite("reward", scores)
    check_rewards(**scores)
    return {name: table.mean(-1).view(num_noises, -1).cpu() for name, table in scores.items()}
