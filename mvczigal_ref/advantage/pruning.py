"""Samples that are left out of the update: their advantages are 0, and the others count more."""

import math
from fractions import Fraction
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_choice, require_full_precision

__all__ = ["PrunedLeaves", "prune_nodes", "prune_samples", "spread_weights"]

PrunedLeaves = Literal["siblings", "extremes"]
"""Nodes of a tree that stay: the best of each node's children, or the best and the worst of all."""


def spread_weights(advantage: Float[Tensor, "*group sample"]) -> Float[Tensor, "*group"]:
    r"""Weigh groups so that those without spread are left out of a mean.

    .. math:: w_g = \frac{N\, [\exists i: A_{g i} \ne 0]}
        {\sum_h [\exists i: A_{h i} \ne 0]}

    A group whose samples were all scored alike has advantages of exactly 0. Counted, it makes
    the mean over groups smaller; left out, the others weigh what they would alone.

    Source:
        arXiv:2505.05470 (Flow-GRPO), the filter of its released trainer. The calls of such groups
        are made here all the same, so that slices stay those of the rollout.

    Args:
        advantage: Advantages, the group's samples last [1].

    Returns:
        One weight per group [1], 1 on average; all 0 where no group has spread.

    Raises:
        ValueError: If ``advantage`` is of half precision.

    Examples:
        >>> import torch
        >>> spread_weights(torch.tensor([[1.0, -1.0], [0.0, 0.0]])).tolist()
        [2.0, 0.0]
    """
    require_full_precision(advantage=advantage)
    spread = (advantage != 0.0).any(dim=-1).to(advantage.dtype)
    return spread * (spread.numel() / spread.sum().clamp_min(1.0))


def prune_samples(
    advantage: Float[Tensor, "*group sample"], *, share: float
) -> Float[Tensor, "*group sample"]:
    r"""Keep the samples of each group that did most unlike the others.

    .. math:: A'_i = \frac{G}{k} A_i\,[i \in \mathrm{top}_k |A|], \qquad
        k = \max(1, \lfloor G (1 - P) \rfloor)

    so that a mean over the group is one over what stays.

    Source:
        arXiv:2503.22342 (CPPO), its pruning of completions by absolute advantage; its released
        trainer takes those of a whole batch, and G - k = floor(G P) of them go. The calls of what
        is left out are made all the same.

    Args:
        advantage: :math:`A`, the group's samples last [1].
        share: :math:`P` [1], in [0, 1), read as the decimal that it is written as; 0 keeps all.

    Returns:
        Advantages of the same shape [1]; of equal ones the earlier stay.

    Raises:
        ValueError: If ``share`` is outside [0, 1), or ``advantage`` is of half precision or holds
            no sample.

    Examples:
        >>> import torch
        >>> prune_samples(torch.tensor([0.5, -2.0, 0.1, 1.0]), share=0.5).tolist()
        [0.0, -4.0, 0.0, 2.0]
    """
    _check(advantage, share)
    count = advantage.shape[-1]
    rest = max(1, _left(count, share))
    order = advantage.abs().argsort(dim=-1, descending=True, stable=True)
    return _keep(advantage, order[..., :rest])


def prune_nodes(
    advantage: Float[Tensor, "*tree node"],
    *,
    keep: PrunedLeaves,
    siblings: int,
    share: float = 0.5,
) -> Float[Tensor, "*tree node"]:
    r"""Keep a part of the nodes of a tree's last depth.

    .. math:: A'_n = \frac{N}{|K|} A_n\,[n \in K]

    with :math:`K` the best :math:`\max(1, \lfloor b (1 - P) \rfloor)` of each node's :math:`b`
    children, or the best and the worst :math:`\max(2, \lfloor N (1 - P) \rfloor)` of the tree's
    :math:`N` nodes, half and half, the worst one more of an odd number.

    Source:
        arXiv:2509.06040 (BranchGRPO), its width pruning, ``siblings`` with b = 2 its
        "Parent-Top1" and ``extremes`` its other mode. Rewards of inner nodes are those of all
        leaves.

    Args:
        advantage: :math:`A`, the nodes of one tree last, children of one node adjacent [1].
        keep: "siblings" or "extremes".
        siblings: :math:`b`, children of each node [nodes]; divides the nodes.
        share: :math:`P` [1], in [0, 1).

    Returns:
        Advantages of the same shape [1]; of equal ones the earlier count as better.

    Raises:
        ValueError: If ``keep`` is unknown, ``share`` outside [0, 1), ``siblings`` does not divide
            the nodes, or there are none.

    Examples:
        >>> import torch
        >>> nodes = torch.tensor([1.0, -1.0, 3.0, 2.0])
        >>> (prune_nodes(nodes, keep="siblings", siblings=2) + 0.0).tolist()
        [2.0, 0.0, 6.0, 0.0]
        >>> prune_nodes(nodes, keep="extremes", siblings=2).tolist()
        [0.0, -2.0, 6.0, 0.0]
    """
    require_choice("keep", keep, get_args(PrunedLeaves))
    _check(advantage, share)
    count = advantage.shape[-1]
    if siblings < 1 or count % siblings:
        msg = f"`siblings` must divide the {count} nodes of a tree; got {siblings}."
        raise ValueError(msg)
    if keep == "siblings":
        rest = max(1, _left(siblings, share))
        families = advantage.unflatten(-1, (-1, siblings))
        order = families.argsort(dim=-1, descending=True, stable=True)
        return _keep(families, order[..., :rest]).flatten(-2)
    rest = min(count, max(2, _left(count, share)))
    order = advantage.argsort(dim=-1, descending=True, stable=True)
    best = rest // 2
    return _keep(advantage, torch.cat([order[..., :best], order[..., count - rest + best :]], -1))


def _keep(advantage: Tensor, places: Tensor) -> Tensor:
    """Set all but some places to 0, and raise those so that a mean is one over them."""
    mask = torch.zeros_like(advantage).scatter(-1, places, 1.0)
    return advantage * mask * (advantage.shape[-1] / places.shape[-1])


def _left(count: int, share: float) -> int:
    """Count what a share leaves: 2 of 10 for 0.8, where floats would say 1."""
    return math.floor(count * (1 - Fraction(str(share))))


def _check(advantage: Tensor, share: float) -> None:
    require_full_precision(advantage=advantage)
    if not advantage.ndim or not advantage.shape[-1]:
        msg = "`advantage` must hold at least one sample of each group; got none."
        raise ValueError(msg)
    if not 0.0 <= share < 1.0:
        msg = f"`share` must be in [0, 1); got {share!r}; 0.0 keeps all."
        raise ValueError(msg)
