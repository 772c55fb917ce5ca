"""Several scorers as one: a table per scorer, and the weighted sum of the tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.reward.aggregate import weighted_sum
from mvczigal_ref.shapes import Images

__all__ = ["Mixture", "Scorer"]

Scorer = Callable[[Images, Sequence[str]], Float[Tensor, " object *view"]]
"""A per-view or a joint-view scorer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    r"""A scorer that is the weighted sum of others, all per view or all joint.

    .. math:: R = \sum_k w_k R_k

    The scorers are called in the order of their names, so that no bit of the sum depends on the
    order in the settings. A single scorer of weight 1 gives its own rewards, bit for bit.

    Examples:
        >>> import torch
        >>> halves = Mixture(
        ...     scorers={"white": lambda images, prompts: images.mean((2, 3, 4))},
        ...     weights={"white": 0.5},
        ... )
        >>> halves(torch.ones(1, 2, 3, 4, 4), ["a cube"]).tolist()
        [[0.5, 0.5]]
    """

    scorers: Mapping[str, Scorer]
    """Scorers by name."""

    weights: Mapping[str, float]
    """Weights by name of the scorer [1 / reward units]."""

    @classmethod
    def of(cls, scorer: Scorer, name: str) -> "Mixture":
        """Turn any scorer into a mixture.

        Args:
            scorer: A mixture, or a scorer of another class.
            name: Name of a scorer that is not a mixture.

        Returns:
            The mixture itself, or a mixture of this scorer alone.
        """
        if isinstance(scorer, Mixture):
            return scorer
        return cls(scorers={name: scorer}, weights={name: 1.0})

    def tables(self, images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Call every scorer.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt per object.

        Returns:
            Raw rewards by scorer, each in its own units [reward units].
        """
        return {name: self.scorers[name](images, prompts) for name in sorted(self.scorers)}

    def total(self, tables: Mapping[str, Tensor]) -> Float[Tensor, "*entry"]:
        """Add tables of these scorers, each times its weight.

        Args:
            tables: Tables of one shape by scorer: raw rewards, or numbers made of them.

        Returns:
            Weighted sum of the tables.

        Raises:
            ValueError: If names or shapes disagree, or a weight is not finite.
        """
        return weighted_sum(tables, weights=self.weights)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " object *view"]:
        """Score by the weighted sum of the raw rewards; see `PerViewScorer`, `JointViewScorer`."""
        return self.total(self.tables(images, prompts))
