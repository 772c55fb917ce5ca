"""`rollout.group_plan`: oracle, laws, errors."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.advantage.branches import depth_advantages, fuse_leaf_rewards
from mvczigal_ref.rollout.group_plan import GroupPlan, require_steps
from mvczigal_ref.rollout.windows import fixed_window
from tests.unit.rollout.flow_cases import plans

# -- oracle ------------------------------------------------------------------------------


@given(plans())
def test_nodes_are_counted_by_walking_the_tree(plan):
    """One list of paths a step, each node followed by its branches."""
    paths = [(root,) for root in range(plan.num_roots)]
    for step, width in enumerate(plan.widths):
        assert plan.paths(step) == paths
        assert plan.nodes[step] == len(paths)
        paths = [(*path, branch) for path in paths for branch in range(width)]
    assert plan.paths(plan.num_steps) == paths
    assert plan.num_leaves == len(paths)


@pytest.mark.parametrize("shared_noise", [False, True])
@given(st.integers(2, 9), st.integers(2, 9), st.data())
def test_a_group_divides_once(shared_noise, size, num_steps, data):
    """At its initial noise, or at its first stochastic step and from there on has all members."""
    start = data.draw(st.integers(0, num_steps - 1))
    window = fixed_window(start=start, size=1, num_steps=num_steps)
    plan = GroupPlan.group(
        size, stochastic_steps=window, num_steps=num_steps, shared_noise=shared_noise
    )
    before = start + 1 if shared_noise else 0

    assert plan.nodes == (1,) * before + (size,) * (num_steps - before)
    assert (plan.num_leaves, plan.branching, plan.depth(start)) == (size, (size,), 0)


# -- laws --------------------------------------------------------------------------------


@given(plans())
def test_leaves_are_the_product_of_the_branches(plan):
    """And the branches are those of the reward tree, a table per depth."""
    rewards = fuse_leaf_rewards(
        torch.arange(plan.num_leaves, dtype=torch.float64), branching=plan.branching
    )
    tables = depth_advantages(rewards)

    assert math.prod(plan.branching) == plan.num_leaves
    for step in plan.stochastic_steps:
        assert tables[plan.depth(step)].shape[-1] == len(plan.paths(step + 1))


def test_a_tree_with_roots_has_a_depth_more():
    """Draws before it divides are compared between roots; with one root there are none."""
    many, one = (
        GroupPlan.tree({1: 3}, stochastic_steps=steps, num_steps=3, num_roots=roots)
        for roots, steps in ((2, (0, 1, 2)), (1, (1, 2)))
    )

    assert (many.branching, [many.depth(step) for step in range(3)]) == ((2, 3), [0, 1, 1])
    assert (one.branching, [one.depth(step) for step in (1, 2)]) == ((3,), [0, 0])
    assert (many.nodes, one.nodes) == ((2, 2, 6), (1, 1, 3))


@pytest.mark.parametrize("shared_noise", [False, True])
def test_a_group_of_one_need_not_divide(shared_noise):
    """Nor be the last of its steps."""
    plan = GroupPlan.group(1, stochastic_steps=(0, 2), num_steps=4, shared_noise=shared_noise)

    assert (plan.nodes, plan.branching, plan.depth(2)) == ((1, 1, 1, 1), (1,), 0)


@given(plans(), st.integers(0, 3))
def test_fewer_branches_are_a_part_of_the_same_tree(plan, step):
    """The nodes that are left keep their names."""
    step = min(step, plan.num_steps - 1)
    widths = tuple(1 if i == step else width for i, width in enumerate(plan.widths))
    kept = itertools.product(*map(range, (plan.num_roots, *widths)))

    assert set(kept) <= set(plan.paths(plan.num_steps))


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_roots": 0}, "`num_roots` must be at least 1; got 0"),
        ({"widths": ()}, r"`widths` must hold a number of at least 1 per step; got \(\)"),
        ({"widths": (1, 0, 1)}, r"`widths` must hold a number of at least 1 per step; got \(1, 0"),
        ({"widths": (1, 1, 2)}, r"outside `stochastic_steps` = \(0, 1\); got 2 at step 2"),
        ({"widths": (1, 2, 1)}, "must not begin before the group divides; got step 0"),
        ({"stochastic_steps": (1, 0)}, r"`stochastic_steps` must increase .* got \[1, 0\]"),
        ({"stochastic_steps": (1, 1)}, r"`stochastic_steps` must increase .* got \[1, 1\]"),
        ({"stochastic_steps": (3,)}, r"must increase within 0..2; got \[3\]"),
        ({"stochastic_steps": (-1,)}, r"must increase within 0..2; got \[-1\]"),
    ],
)
def test_rejects_a_tree_that_teaches_nothing(settings, message):
    """Equal leaves, draws that nobody is compared by, steps of another grid."""
    plan = {"num_roots": 1, "widths": (1, 1, 1), "stochastic_steps": (0, 1)}
    with pytest.raises(ValueError, match=message):
        GroupPlan(**{**plan, **settings})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda **grid: GroupPlan.group(0, shared_noise=True, **grid), "`size` must be at least 1"),
        (
            lambda **grid: GroupPlan.group(2, shared_noise=True, **grid),
            "`stochastic_steps` must hold a step where `shared_noise` is True; got none. The 2",
        ),
        (lambda **grid: GroupPlan.tree({4: 2}, **grid), r"`branching` .* 0..3; got \[4\]"),
    ],
)
def test_rejects_a_group_that_cannot_divide(make, message):
    """No members, no noise, no such step."""
    with pytest.raises(ValueError, match=message):
        make(stochastic_steps=(), num_steps=4)


def test_steps_are_called_by_the_caller_s_name():
    """In any message."""
    with pytest.raises(ValueError, match=r"`start` must increase within 0..1; got \[2\]"):
        require_steps("start", (2,), num_steps=2)
