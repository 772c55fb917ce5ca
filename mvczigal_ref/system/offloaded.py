"""Scorers whose networks wait on the CPU between two judgements."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.models.placement import at_work
from mvczigal_ref.shapes import Images

__all__ = ["Offloaded"]


class Offloaded:
    """A scorer whose networks are on their device only while it judges.

    Args:
        scorer: A scorer with a method ``to``; its networks are on the CPU.
        device: Device on which they work.
    """

    def __init__(self, scorer: Any, device: torch.device) -> None:  # noqa: ANN401 - either kind
        self.scorer, self.device = scorer, device

    def __call__(self, images: Images, prompts: Sequence[str]) -> Any:  # noqa: ANN401 - either kind
        """Score as the scorer does.

        Args:
            images: Images in [0, 1].
            prompts: One per object.

        Returns:
            The scorer's rewards [reward units].
        """
        with at_work(self.scorer, device=self.device):
            return self.scorer(images, prompts)

    @property
    def image_features(self) -> Callable[[Images], Tensor]:
        """Image features of the scorer; missing where it has none."""
        describe = self.scorer.image_features

        def described(images: Images) -> Tensor:
            with at_work(self.scorer, device=self.device):
                features: Tensor = describe(images)
            return features

        return described
