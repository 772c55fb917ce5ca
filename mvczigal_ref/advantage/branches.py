"""Advantages of rollouts that branch: trees, and single branches off one trunk.

A tree's nodes of one depth lie in order along one axis: the children of node ``n`` are the
nodes ``n * b`` to ``n * b + b - 1`` of the next depth, ``b`` branches per node.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.advantage.group import combined_group_advantages, group_advantages
from mvczigal_ref.diffusion.precision import require_full_precision

__all__ = [
    "depth_advantages",
    "fuse_edge_rewards",
    "fuse_leaf_rewards",
    "granular_advantages",
]


def fuse_leaf_rewards(
    leaf_reward: Float[Tensor, "*batch leaf"],
    *,
    branching: Sequence[int],
    leaf_log_prob: Float[Tensor, "*batch leaf"] | None = None,
    inverse_temperature: float = 0.0,
) -> tuple[Float[Tensor, "*batch node"], ...]:
    r"""Give every inner node of a tree the weighted mean reward of its leaves.

    .. math:: R(n) = \sum_{\ell \in L(n)} q_\ell R_\ell, \qquad
        q_\ell = \frac{e^{\beta s_\ell}}{\sum_{m \in L(n)} e^{\beta s_m}}

    with :math:`s_\ell` the log-probability of the path to the leaf. What the leaves of a node
    share of their paths cancels, so one number per leaf serves all depths. At
    :math:`\beta = 0` the weights are equal.

    Source:
        arXiv:2509.06040 (BranchGRPO), reward fusion.

    Args:
        leaf_reward: :math:`R_\ell`, leaves of one tree last and in order, fp32 or fp64
            [reward units]. Gradient flows.
        branching: Branches of each node, one number per depth from the root; 16 leaves are
            ``(2, 2, 2, 2)``.
        leaf_log_prob: :math:`s_\ell`, from the root [nats]; needed where
            ``inverse_temperature`` is positive. No gradient flows.
        inverse_temperature: :math:`\beta` [1 / nats]; finite, not negative.

    Returns:
        Rewards of the nodes of depth 1, 2, ..., the leaves last; the root is of no use, as it
        has nothing to be compared with.

    Raises:
        ValueError: If ``branching`` does not multiply to the number of leaves, if a setting
            is out of its range, or if a tensor is half precision or of another shape.

    Examples:
        >>> depths = fuse_leaf_rewards(torch.tensor([1.0, 3.0, 5.0, 9.0]), branching=(2, 2))
        >>> [depth.tolist() for depth in depths]
        [[2.0, 7.0], [1.0, 3.0, 5.0, 9.0]]
    """
    require_full_precision(leaf_reward=leaf_reward)
    _check_branching(branching, leaf_reward)
    _check_inverse_temperature(inverse_temperature)
    if leaf_log_prob is None:
        if inverse_temperature > 0.0:
            msg = (
                "`leaf_log_prob` must be given where `inverse_temperature` is positive; got "
                f"None and {inverse_temperature!r}; pass each path's log-probability."
            )
            raise ValueError(msg)
        score = torch.zeros_like(leaf_reward)
    else:
        require_full_precision(leaf_log_prob=leaf_log_prob)
        if leaf_log_prob.shape != leaf_reward.shape:
            msg = (
                f"`leaf_log_prob` must have the shape of `leaf_reward`, "
                f"{tuple(leaf_reward.shape)}; got {tuple(leaf_log_prob.shape)}; one per leaf."
            )
            raise ValueError(msg)
        score = _heated(leaf_log_prob, inverse_temperature).to(leaf_reward.dtype)
    fused = []
    for depth in range(1, len(branching)):
        leaves = math.prod(branching[depth:])
        by_node = (*leaf_reward.shape[:-1], math.prod(branching[:depth]), leaves)
        share = score.reshape(by_node).softmax(dim=-1)
        fused.append((share * leaf_reward.reshape(by_node)).sum(dim=-1))
    return (*fused, leaf_reward)


def fuse_edge_rewards(
    leaf_reward: Float[Tensor, "*batch leaf"],
    *,
    branching: Sequence[int],
    edge_log_prob: Float[Tensor, "*batch depth leaf"],
    inverse_temperature: float,
) -> tuple[Float[Tensor, "*batch node"], ...]:
    r"""Give every inner node the mean reward of its children, weighed by their own steps.

    .. math:: R(n) = \sum_{c \in C(n)} q_c R(c), \qquad
        q_c = \frac{e^{\beta s_c}}{\sum_{d \in C(n)} e^{\beta s_d}}

    with :math:`s_c` the log-probability of the one step that drew child :math:`c` where its
    parent divided. :func:`fuse_leaf_rewards` weighs leaves by their whole paths instead; at
    :math:`\beta = 0` both are the mean.

    Source:
        The released trainer of arXiv:2509.06040 (BranchGRPO), its child-edge softmax with
        :math:`\beta = 1` and log-probabilities per element.

    Args:
        leaf_reward: :math:`R` of the leaves of one tree, last and in order, fp32 or fp64 [reward
            units]. Gradient flows.
        branching: Branches of each node, one number per depth from the root.
        edge_log_prob: :math:`s` of every leaf's ancestor at each depth, the leaf's own last
            [nats, or nats/element]. No gradient flows.
        inverse_temperature: :math:`\beta` [1 / unit of ``edge_log_prob``]; finite, not negative.

    Returns:
        Rewards of the nodes of depth 1, 2, ..., the leaves last.

    Raises:
        ValueError: If ``branching`` does not multiply to the number of leaves, shapes differ, a
            setting is out of its range, or a tensor is half precision.

    Examples:
        >>> edges = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 9e9, 0.0, 0.0]])
        >>> depths = fuse_edge_rewards(
        ...     torch.tensor([1.0, 3.0, 5.0, 9.0]), branching=(2, 2), edge_log_prob=edges,
        ...     inverse_temperature=1.0,
        ... )
        >>> [depth.tolist() for depth in depths]
        [[3.0, 7.0], [1.0, 3.0, 5.0, 9.0]]
    """
    require_full_precision(leaf_reward=leaf_reward, edge_log_prob=edge_log_prob)
    _check_branching(branching, leaf_reward)
    _check_inverse_temperature(inverse_temperature)
    expected = (*leaf_reward.shape[:-1], len(branching), leaf_reward.shape[-1])
    if tuple(edge_log_prob.shape) != expected:
        msg = (
            f"`edge_log_prob` must have shape {expected}, one number per depth and leaf; got "
            f"{tuple(edge_log_prob.shape)}."
        )
        raise ValueError(msg)
    score = _heated(edge_log_prob, inverse_temperature).to(leaf_reward.dtype)
    fused = [leaf_reward]
    for depth in range(len(branching) - 1, 0, -1):
        children, below = branching[depth], math.prod(branching[depth + 1 :])
        # The edge into a child is that of any leaf below it.
        edges = score[..., depth, ::below].unflatten(-1, (-1, children))
        rewards = fused[0].unflatten(-1, (-1, children))
        fused.insert(0, (edges.softmax(dim=-1) * rewards).sum(dim=-1))
    return tuple(fused)


def depth_advantages(
    node_rewards: Sequence[Float[Tensor, "*batch _"]],
    *,
    ddof: int = 0,
    delta: float = 1e-4,
    clip: float = math.inf,
) -> tuple[Float[Tensor, "*batch _"], ...]:
    r"""Compare the nodes of a tree with the others of their depth.

    .. math:: A_d(n) = c\Big(\frac{R(n) - \bar R_d}{s_d + \delta}\Big)

    The advantage of a node is that of the step that drew it from its parent, and of the
    steps from there to its own branching.

    Source:
        arXiv:2509.06040 (BranchGRPO), depth-wise estimation.

    Args:
        node_rewards: As :func:`fuse_leaf_rewards` returns them [reward units].
        ddof: 0 to divide by n, 1 by n - 1.
        delta: Added to each deviation [reward units]; positive.
        clip: Largest magnitude kept [1]; positive, ``math.inf`` for no clip.

    Returns:
        Advantages [1], one table per depth.

    Raises:
        ValueError: As :func:`~mvczigal_ref.advantage.group.group_advantages`.
        NonFiniteError: If a reward is NaN or infinite.

    Examples:
        >>> (depth,) = depth_advantages([torch.tensor([2.0, 7.0])], delta=1e-8)
        >>> depth.tolist()
        [-1.0, 1.0]
    """
    return tuple(group_advantages(row, ddof=ddof, delta=delta, clip=clip) for row in node_rewards)


def granular_advantages(
    rewards: Mapping[str, Float[Tensor, "*batch granularity sample"]],
    *,
    weights: Mapping[str, float],
    ddof: int = 0,
    delta: float = 1e-4,
    clip: float = math.inf,
) -> Float[Tensor, "*batch sample"]:
    r"""Add the advantages that a sample has when its rollout is finished in several ways.

    .. math:: A_i = c\Big(\sum_g \sum_k w_k
        \frac{R_k^{g i} - \bar R_k^g}{s_k^g + \delta}\Big)

    with :math:`g` the grid that finishes the rollout, each standardised on its own: a coarse
    grid's images are all worse, which says nothing of the step.

    Source:
        arXiv:2510.01982 (Granular-GRPO, G2RPO), sums over granularities; standardised per
        step, granularity and reward.

    Args:
        rewards: Tables by scorer, of one shape: the step that branched among the leading
            axes, the finishing grid, the group's samples last [reward units].
        weights: One finite weight for every name in ``rewards`` [1].
        ddof: 0 to divide by n, 1 by n - 1.
        delta: Added to each deviation [reward units]; positive.
        clip: Largest magnitude of the sum [1]; positive, ``math.inf`` for no clip.

    Returns:
        Advantages [1], granularities summed.

    Raises:
        ValueError: As :func:`~mvczigal_ref.advantage.group.combined_group_advantages`.
        NonFiniteError: If a reward is NaN or infinite.

    Examples:
        >>> rewards = {"sharp": torch.tensor([[5.0, 7.0], [1.0, 2.0]])}
        >>> granular_advantages(rewards, weights={"sharp": 0.5}, delta=1e-8).tolist()
        [-1.0, 1.0]
    """
    for name, table in rewards.items():
        if table.ndim < 2:
            msg = (
                f"`rewards` must end in granularity and sample; got shape {tuple(table.shape)} for "
                f"{name!r}; stack the grids' rewards."
            )
            raise ValueError(msg)
    if not clip > 0.0:
        msg = f"`clip` must be positive; got {clip!r}; `math.inf` keeps every advantage."
        raise ValueError(msg)
    each = combined_group_advantages(rewards, weights=weights, ddof=ddof, delta=delta)
    return each.sum(dim=-2).clamp(-clip, clip)


def _check_inverse_temperature(inverse_temperature: float) -> None:
    if not 0.0 <= inverse_temperature < math.inf:
        msg = (
            f"`inverse_temperature` must be finite and not negative; got {inverse_temperature!r}; "
            "0.0 weighs leaves alike."
        )
        raise ValueError(msg)


def _heated(log_prob: Tensor, inverse_temperature: float) -> Tensor:
    """Multiply log-probabilities; at 0 none is read, and one may be no number."""
    if inverse_temperature == 0.0:
        return torch.zeros_like(log_prob)
    return inverse_temperature * log_prob.detach()


def _check_branching(branching: Sequence[int], leaf_reward: Tensor) -> None:
    """Refuse a tree that has not these leaves."""
    leaves = leaf_reward.shape[-1] if leaf_reward.ndim else 0
    if not branching or any(count < 1 for count in branching) or math.prod(branching) != leaves:
        msg = (
            f"`branching` must hold positive counts that multiply to the {leaves} leaves; got "
            f"{tuple(branching)}; name the branches of each depth."
        )
        raise ValueError(msg)
