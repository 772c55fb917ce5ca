"""`group_records`: laws."""

import pytest
import torch

from mvczigal_ref.records import BranchTrajectory, GroupDecision, GroupTrajectory
from tests.strategies import randn


def decision(parents, members, step=1, prompts=3):
    """Make a decision whose numbers all differ."""
    shape = (2, 1, 2, 2)
    return GroupDecision(
        step=step,
        depth=0,
        state=randn(prompts, parents, *shape, seed=step),
        action=randn(prompts, members, *shape, seed=step + 10),
        log_prob=randn(prompts, members, 2, seed=step + 20),
    )


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize(("parents", "members"), [(1, 4), (2, 6), (3, 3)])
def test_a_parent_s_members_lie_side_by_side(parents, members):
    """Repeated for them, it stands at each of their places."""
    record = decision(parents, members)
    repeated = record.members_of(record.network_state())

    assert record.branches == members // parents
    assert record.network_steps().tolist() == [1] * parents
    for member in range(members):
        parent = member * parents // members
        assert torch.equal(repeated[member], record.state[:, parent])


def test_states_are_not_copied_for_the_network():
    """Its order is a view."""
    record = decision(2, 4)

    assert record.network_state().data_ptr() == record.state.data_ptr()


def test_leaves_repeat_what_they_share():
    """A row a stochastic step, a column a leaf."""
    tree = GroupTrajectory(
        decisions=(decision(1, 2, 0), decision(2, 6, 3)),
        denoised=randn(3, 6, 2, 1, 2, 2),
        branching=(2, 3),
    )
    first, last = tree.decisions
    leaves = tree.leaf_log_prob()

    assert tree.stochastic_steps == (0, 3)
    assert leaves.shape == (2, 3, 6, 2)
    for leaf in range(6):
        assert torch.equal(leaves[0, :, leaf], first.log_prob[:, leaf // 3])
        assert torch.equal(leaves[1, :, leaf], last.log_prob[:, leaf])


def test_without_decisions_there_is_an_empty_table():
    """Of no steps and all leaves."""
    record = GroupTrajectory(decisions=(), denoised=randn(3, 6, 2, 1, 2, 2), branching=(6,))

    assert record.leaf_log_prob().shape == (0, 3, 6, 2)


def test_narrowing_takes_the_prompts_of_every_tensor():
    """As views onto the same memory; the rest stays."""
    index, final = slice(1, 3), randn(3, 4, 2, 1, 2, 2)
    group = GroupTrajectory(decisions=(decision(2, 4),), denoised=final, branching=(4,))
    branch = BranchTrajectory(decisions=group.decisions, denoised=final[None, None], num_trunks=2)
    for whole, narrow in ((group, group.prompts(index)), (branch, branch.prompts(index))):
        for name in ("state", "action", "log_prob"):
            mine, all_of_it = (getattr(r.decisions[0], name) for r in (narrow, whole))
            assert torch.equal(mine, all_of_it[index])
            assert mine.data_ptr() == all_of_it[1].data_ptr()
        assert narrow.decisions[0].step == 1
        assert torch.equal(narrow.denoised.reshape(2, 4, 2, 1, 2, 2), final[index])
    assert group.prompts(index).branching == (4,)
    assert branch.prompts(index).num_trunks == 2


def test_a_reward_table_keeps_every_reward_in_its_group():
    """Member ``trunk * branches + branch`` of a step, grid and prompt."""
    reward = torch.arange(2 * 3 * 2 * 8.0).reshape(2, 3, 2, 8)
    record = BranchTrajectory(
        decisions=(), denoised=reward[..., None, None, None, None], num_trunks=2
    )
    table = record.reward_table(reward)

    assert table.shape == (2, 2, 2, 3, 4)
    for step, prompt, trunk, grid, branch in torch.cartesian_prod(
        *map(torch.arange, table.shape)
    ).tolist():
        member = trunk * 4 + branch
        assert table[step, prompt, trunk, grid, branch] == reward[step, grid, prompt, member]
