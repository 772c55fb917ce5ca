"""PerViewScorer and JointViewScorer: the protocols by which the package calls scorers.

Any callable with these arguments is a scorer; nothing needs to be subclassed.
A scorer holds its own cameras, weights and device, computes without gradients, and
scores an object from that object's images and prompt alone, so objects may be scored
in any order and in any slices.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mvczigal_ref.shapes import Images, JointViewReward, PerViewReward

__all__ = ["JointViewScorer", "PerViewScorer"]


@runtime_checkable
class PerViewScorer(Protocol):
    """Scorer that judges every image on its own against its prompt."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> PerViewReward:
        """Score each view of each object.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt per object, in the order of ``images``.

        Returns:
            One reward per view; higher is better [reward units].
        """
        ...


@runtime_checkable
class JointViewScorer(Protocol):
    """Scorer that judges all views of an object together against its prompt."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> JointViewReward:
        """Score each object by the whole set of its views.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt per object, in the order of ``images``.

        Returns:
            One reward per object; higher is better [reward units].
        """
        ...
