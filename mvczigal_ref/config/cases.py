"""Cases in which a setting acts, and the questions that they are made of."""

import dataclasses
from collections.abc import Callable

from mvczigal_ref.config.train import TrainConfig

__all__ = [
    "Case",
    "compares_pairs",
    "is_flow",
    "is_forward",
    "is_nft",
    "is_tree",
    "learns_groups",
    "prefers_noise",
]


@dataclasses.dataclass(frozen=True)
class Case:
    """Case in which some settings act."""

    acts: Callable[[TrainConfig], bool]
    """Whether they act in a configuration."""

    words: str
    """The case as a message ends: `... is read only {words}`."""


def compares_pairs(config: TrainConfig) -> bool:
    """Tell whether the loss compares the arms of pairs."""
    return config.objective.compares_pairs


def is_forward(config: TrainConfig) -> bool:
    """Tell whether the loss is one on the forward process."""
    return config.objective.kind == "forward_process"


def prefers_noise(config: TrainConfig) -> bool:
    """Tell whether the loss is Diffusion-DPO's, on samples that are noised again."""
    return config.objective.prefers_noise


def learns_groups(config: TrainConfig) -> bool:
    """Tell whether the loss learns groups by ratios of densities."""
    return config.objective.is_policy_gradient


def is_nft(config: TrainConfig) -> bool:
    """Tell whether the loss is DiffusionNFT's."""
    return is_forward(config) and config.forward.loss == "nft"


def is_tree(config: TrainConfig) -> bool:
    """Tell whether groups are trees."""
    return config.rollout.kind == "tree"


def is_flow(config: TrainConfig) -> bool:
    """Tell whether the sampler is a flow's."""
    return config.sampler.is_flow
