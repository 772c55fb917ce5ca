"""Advantages of trees and branches: oracle, laws, gradients, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.advantage.branches import (
    depth_advantages,
    fuse_edge_rewards,
    fuse_leaf_rewards,
    granular_advantages,
)
from mvczigal_ref.advantage.group import group_advantages
from tests.strategies import randn
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import vectors


@st.composite
def trees(draw):
    """Draw branchings, and rewards and log-probabilities of a batch of their leaves."""
    branching = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    shape = (*draw(st.lists(st.integers(1, 2), max_size=1)), math.prod(branching))
    numbers = vectors(math.prod(shape), low=-5.0, high=5.0).map(lambda x: x.reshape(shape))
    return branching, draw(numbers), draw(numbers)


def fused(rewards, scores, branching, beta):
    """Walk one tree down from its root; return the weighted means by depth."""
    depths = [[] for _ in branching]

    def visit(leaves, depth):
        if depth:
            top = max(beta * scores[leaf] for leaf in leaves)
            shares = [math.exp(beta * scores[leaf] - top) for leaf in leaves]
            total = math.fsum(s * rewards[leaf] for s, leaf in zip(shares, leaves, strict=True))
            depths[depth - 1].append(total / math.fsum(shares))
        if depth < len(branching):
            width = len(leaves) // branching[depth]
            for k in range(branching[depth]):
                visit(leaves[k * width : (k + 1) * width], depth + 1)

    visit(range(len(rewards)), 0)
    return depths


# -- oracle --------------------------------------------------------------------------------


@given(trees(), st.floats(0.0, 2.0), st.integers(0, 99))
def test_a_node_has_the_mean_of_its_children_by_their_edges(tree, beta, seed):
    """Level by level from the leaves, each edge known to all leaves below it."""
    branching, reward, _ = tree
    leaves, batch = reward.shape[-1], reward.shape[:-1]
    edges, count = [], 1
    for width in branching:
        count *= width
        drawn = randn(*batch, count, seed=seed + count, dtype=torch.float64)
        edges.append(drawn.repeat_interleave(leaves // count, -1))
    depths = fuse_edge_rewards(
        reward, branching=branching, edge_log_prob=torch.stack(edges, -2),
        inverse_temperature=beta,
    )  # fmt: skip

    def value(row, depth, first, width):
        if depth == len(branching):
            return reward.reshape(-1, leaves)[row, first].item()
        part = width // branching[depth]
        starts = range(first, first + width, part)
        score = [edges[depth].reshape(-1, leaves)[row, start].item() for start in starts]
        shares = [math.exp(beta * s) for s in score]
        below = [value(row, depth + 1, start, part) for start in starts]
        return math.fsum(s * v for s, v in zip(shares, below, strict=True)) / math.fsum(shares)

    for depth, nodes in enumerate(depths):
        rows = nodes.reshape(-1, nodes.shape[-1]).tolist()
        width = leaves // nodes.shape[-1]
        for row, found in enumerate(rows):
            expected = [value(row, depth + 1, n * width, width) for n in range(len(found))]
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(trees())
def test_without_heat_both_forms_of_fusion_are_the_mean(tree):
    """And with one division the paths are the edges."""
    branching, reward, score = tree
    edges = score[..., None, :].expand(*reward.shape[:-1], len(branching), reward.shape[-1])
    by_edge = fuse_edge_rewards(
        reward, branching=branching, edge_log_prob=edges, inverse_temperature=0.0
    )
    for mine, theirs in zip(by_edge, fuse_leaf_rewards(reward, branching=branching), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_edges_of_another_tree_are_refused():
    """One number per depth and leaf."""
    with pytest.raises(ValueError, match=r"`edge_log_prob` must have shape \(2, 4\)"):
        fuse_edge_rewards(
            torch.ones(4), branching=(2, 2), edge_log_prob=torch.ones(1, 4),
            inverse_temperature=1.0,
        )  # fmt: skip


@given(trees(), st.floats(0.0, 2.0), st.booleans())
def test_a_node_has_the_weighted_mean_of_its_leaves(tree, beta, scored):
    """Depth by depth, each tree of a batch on its own; equal weights where nothing is known."""
    branching, reward, score = tree
    depths = fuse_leaf_rewards(
        reward,
        branching=branching,
        leaf_log_prob=score if scored else None,
        inverse_temperature=beta if scored else 0.0,
    )
    rows = zip(
        reward.reshape(-1, reward.shape[-1]).tolist(),
        score.reshape(-1, score.shape[-1]).tolist(),
        strict=True,
    )
    expected = [fused(*row, branching, beta if scored else 0.0) for row in rows]

    assert len(depths) == len(branching)
    for depth, nodes in enumerate(depths):
        assert nodes.shape == (*reward.shape[:-1], math.prod(branching[: depth + 1]))
        assert nodes.flatten().tolist() == pytest.approx(
            [value for tree_ in expected for value in tree_[depth]], rel=1e-10, abs=1e-12
        )


@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4), st.floats(-2.0, 2.0))
def test_granularities_and_rewards_are_standardised_one_by_one_and_added(
    steps, grids, size, weight
):
    """Nothing is shared between steps, grids or scorers but the sum; the clip is last."""
    one, two = 3.0 * randn(2, steps, grids, size, dtype=torch.float64)
    weights = {"one": 0.5, "two": weight}
    for clip in (math.inf, 0.4):
        total = granular_advantages({"one": one, "two": two}, weights=weights, clip=clip)
        for step in range(steps):
            expected = torch.zeros(size, dtype=torch.float64)
            for grid in range(grids):
                expected += 0.5 * group_advantages(one[step, grid])
                expected += weight * group_advantages(two[step, grid])
            torch.testing.assert_close(
                total[step], expected.clamp(-clip, clip), rtol=1e-10, atol=1e-12
            )


# -- laws ----------------------------------------------------------------------------------


@given(trees(), st.floats(-5.0, 5.0))
def test_what_leaves_share_of_their_paths_cancels(tree, shift):
    """One number per leaf, from the root, serves every depth."""
    branching, reward, score = tree
    how = {"branching": branching, "inverse_temperature": 0.7}
    one = fuse_leaf_rewards(reward, leaf_log_prob=score, **how)
    shared = torch.arange(branching[0], dtype=torch.float64).repeat_interleave(
        reward.shape[-1] // branching[0]
    )
    two = fuse_leaf_rewards(reward, leaf_log_prob=score + shift * shared, **how)

    for before, after in zip(one, two, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@given(trees())
def test_equal_leaves_pass_their_reward_up(tree):
    """A tree that was scored alike has that score at every node, and no advantage anywhere."""
    branching, reward, score = tree
    same = torch.full_like(reward, 0.1)
    for beta in (0.0, 1.3):
        depths = fuse_leaf_rewards(
            same, branching=branching, leaf_log_prob=score, inverse_temperature=beta
        )
        for nodes in depths:
            torch.testing.assert_close(nodes, torch.full_like(nodes, 0.1), rtol=1e-12, atol=0)
    for advantage in depth_advantages(fuse_leaf_rewards(same, branching=branching)):
        assert advantage.abs().max() < 1e-10


def test_a_sharp_temperature_follows_the_likeliest_leaf():
    """And a flat one the mean."""
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    score = torch.tensor([0.0, -1.0, -1.0, 0.0], dtype=torch.float64)
    sharp, _ = fuse_leaf_rewards(
        reward, branching=(2, 2), leaf_log_prob=score, inverse_temperature=100.0
    )
    flat, _ = fuse_leaf_rewards(reward, branching=(2, 2), leaf_log_prob=score)

    assert sharp.tolist() == pytest.approx([1.0, 4.0], rel=1e-12)
    assert flat.tolist() == pytest.approx([1.5, 3.5], rel=1e-12)


@given(trees())
def test_each_depth_is_its_own_group(tree):
    """With the settings it is given."""
    branching, reward, _ = tree
    depths = fuse_leaf_rewards(reward, branching=branching)
    for how in ({}, {"delta": 0.5}, {"clip": 0.3}):
        for nodes, advantage in zip(depths, depth_advantages(depths, **how), strict=True):
            assert torch.equal(advantage, group_advantages(nodes, **how))


def test_the_divisor_reaches_every_depth():
    """By n, or by n - 1."""
    depths = fuse_leaf_rewards(torch.arange(4.0), branching=(2, 2))
    for nodes, advantage in zip(depths, depth_advantages(depths, ddof=1), strict=True):
        assert torch.equal(advantage, group_advantages(nodes, ddof=1))


def test_settings_reach_every_granularity():
    """Divisor and guard."""
    table = torch.tensor([[5.0, 7.0, 4.0], [1.0, 2.0, 0.0]])
    for how in ({"ddof": 1}, {"delta": 0.5}):
        total = granular_advantages({"a": table}, weights={"a": 1.0}, **how)
        torch.testing.assert_close(total, group_advantages(table, **how).sum(dim=0))
        assert not torch.equal(total, group_advantages(table).sum(dim=0))


def test_a_grid_that_makes_all_images_worse_says_nothing_of_a_step():
    """Only the order within a grid counts, so an offset of the grid is gone."""
    table = randn(2, 4, dtype=torch.float64)
    offset = torch.tensor([[0.0], [-30.0]], dtype=torch.float64)

    torch.testing.assert_close(
        granular_advantages({"a": table + offset}, weights={"a": 1.0}),
        granular_advantages({"a": table}, weights={"a": 1.0}),
        rtol=1e-10,
        atol=1e-10,
    )


def test_branches_of_a_trunk_are_compared_at_their_step():
    """TempFlow's table ``(step, trunk, branch)`` has one group a step and trunk."""
    reward = randn(3, 4, 6, dtype=torch.float64)
    advantage = group_advantages(reward)
    for step in range(3):
        for trunk in range(4):
            torch.testing.assert_close(
                advantage[step, trunk],
                group_advantages(reward[step, trunk]),
                rtol=1e-12,
                atol=1e-12,
            )


def test_a_batch_of_nothing_stays_one():
    """Of the shape that its trees would have."""
    fused = fuse_leaf_rewards(torch.ones(0, 8), branching=(2, 2, 2))

    assert [tuple(depth.shape) for depth in fused] == [(0, 2), (0, 4), (0, 8)]


# -- gradients -----------------------------------------------------------------------------


def test_derivative_agrees_with_finite_differences():
    """By the rewards; paths only weigh."""
    score = randn(4, dtype=torch.float64).requires_grad_()
    reward = randn(4, seed=1, dtype=torch.float64).requires_grad_()

    def nodes(leaves):
        return fuse_leaf_rewards(
            leaves, branching=(2, 2), leaf_log_prob=score, inverse_temperature=0.5
        )[0]

    assert torch.autograd.gradcheck(nodes, (reward,))
    assert torch.autograd.grad(nodes(reward).sum(), score, allow_unused=True) == (None,)


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("branching", [(), (2,), (2, 3), (4, 0), (-2, -2)])
def test_refuses_branches_that_do_not_make_the_leaves(branching):
    """Their product is the number of leaves."""
    with pytest.raises(ValueError, match=r"`branching` must hold positive .* the 4 leaves; got \("):
        fuse_leaf_rewards(torch.ones(4), branching=branching)


@pytest.mark.parametrize("beta", [-0.1, math.inf, math.nan])
def test_refuses_a_temperature_out_of_range(beta):
    """Unlikely paths are not the ones to follow."""
    with pytest.raises(ValueError, match=f"`inverse_temperature` must be finite .*; got {beta}"):
        fuse_leaf_rewards(
            torch.ones(2),
            branching=(2,),
            leaf_log_prob=torch.ones(2),
            inverse_temperature=beta,
        )


def test_refuses_a_temperature_without_paths():
    """It would do nothing."""
    with pytest.raises(
        ValueError, match=r"`leaf_log_prob` must be given where .*; got None and 0.5"
    ):
        fuse_leaf_rewards(torch.ones(2), branching=(2,), inverse_temperature=0.5)


def test_refuses_paths_of_another_shape_and_half_precision():
    """One log-probability a leaf, in full precision, as the rewards."""
    with without_shape_checks(), pytest.raises(ValueError, match="`leaf_log_prob` must have the"):
        fuse_leaf_rewards(torch.ones(2, 4), branching=(4,), leaf_log_prob=torch.ones(4))
    with pytest.raises(ValueError, match="`leaf_log_prob` must be float32 or float64"):
        fuse_leaf_rewards(torch.ones(2), branching=(2,), leaf_log_prob=torch.ones(2).half())
    with pytest.raises(ValueError, match="`leaf_reward` must be float32 or float64"):
        fuse_leaf_rewards(torch.ones(2).half(), branching=(2,))


def test_refuses_granular_rewards_without_their_axis_or_a_clip():
    """The finishing grids are one axis."""
    with (
        without_shape_checks(),
        pytest.raises(ValueError, match=r"`rewards` must end in granularity .*\(3,\) for 'a'"),
    ):
        granular_advantages({"a": torch.ones(3)}, weights={"a": 1.0})
    with pytest.raises(ValueError, match=r"`clip` must be positive; got 0.0"):
        granular_advantages({"a": torch.ones(1, 3)}, weights={"a": 1.0}, clip=0.0)
    with pytest.raises(ValueError, match="`weights` must name the scorers"):
        granular_advantages({"a": torch.ones(1, 3)}, weights={})


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_without_heat_no_path_is_read(bad):
    """A step that drew no noise has no density, and equal weights need none."""
    leaves = torch.tensor([1.0, 3.0, 5.0, 9.0])
    paths = torch.tensor([0.0, bad, 0.0, bad])
    by_path = fuse_leaf_rewards(leaves, branching=(2, 2), leaf_log_prob=paths)
    by_edge = fuse_edge_rewards(
        leaves, branching=(2, 2), edge_log_prob=paths.expand(2, 4), inverse_temperature=0.0
    )

    assert by_path[0].tolist() == by_edge[0].tolist() == [2.0, 7.0]


def test_refuses_leaves_without_an_axis():
    """One number is no tree."""
    with without_shape_checks(), pytest.raises(ValueError, match="`branching` must hold positive"):
        fuse_leaf_rewards(torch.tensor(1.0), branching=(1,))
