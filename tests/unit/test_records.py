"""`records`, `policy.Conditioning`: laws, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mvczigal_ref.policy import Conditioning
from mvczigal_ref.records import (
    BranchTrajectory,
    GroupDecision,
    GroupTrajectory,
    PairedRollout,
    Trajectory,
)
from tests.strategies import randn
from tests.unannotated import without_shape_checks


def record(objects=3, views=2, negative=None, **changes):
    """Build a conditioning whose entries tell the objects apart."""
    number = torch.arange(float(objects))
    fields = {
        "prompt_embeds": number[:, None, None].expand(objects, 4, 5),
        "pooled_prompt_embeds": number[:, None].expand(objects, 6) + 10,
        "time_ids": number[:, None].expand(objects, 6) + 20,
        "camera_features": (torch.zeros(views, 7, 2, 2), torch.zeros(views, 8, 1, 1)),
        "num_views": views,
    }
    if negative is not None:
        fields["negative_prompt_embeds"] = torch.arange(float(negative))[:, None, None].expand(
            -1, 4, 5
        )
        fields["negative_pooled_prompt_embeds"] = torch.arange(float(negative))[:, None].expand(
            -1, 6
        )
    with without_shape_checks():
        return Conditioning(**{**fields, **changes})


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


@given(st.integers(0, 3), st.integers(0, 3))
def test_narrowing_takes_the_same_objects_of_everything(start, length):
    """Text and sizes follow the slice; cameras and the number of views stay."""
    whole, index = record(4, negative=4), slice(start, start + length)
    part = whole.objects(index)
    expected = list(range(4))[index]

    assert part.num_objects == len(expected)
    assert part.prompt_embeds[:, 0, 0].tolist() == expected
    assert part.pooled_prompt_embeds[:, 0].tolist() == [n + 10 for n in expected]
    assert part.time_ids[:, 0].tolist() == [n + 20 for n in expected]
    assert part.negative_prompt_embeds[:, 0, 0].tolist() == expected
    assert part.negative_pooled_prompt_embeds[:, 0].tolist() == expected
    assert part.camera_features is whole.camera_features
    assert part.num_views == whole.num_views


def test_narrowing_keeps_a_shared_negative_prompt():
    """One for all is still one for all."""
    part = record(3, negative=1).objects(slice(1, 3))

    assert part.num_objects == 2
    assert part.negative_prompt_embeds.shape[0] == part.negative_pooled_prompt_embeds.shape[0] == 1


def test_narrowing_twice_is_narrowing_once():
    """Slices compose."""
    once, twice = (
        record(4).objects(slice(2, 3)),
        record(4).objects(slice(1, 4)).objects(slice(1, 2)),
    )
    assert torch.equal(once.prompt_embeds, twice.prompt_embeds)


@given(st.integers(1, 3), st.sampled_from([None, 1, 2]))
def test_repeating_lays_the_objects_end_to_end(times, negative):
    """All of them, then all again; what is shared stays shared."""
    whole = record(2, negative=negative)
    many = whole.repeat(times)

    assert many.num_objects == 2 * times
    assert many.prompt_embeds[:, 0, 0].tolist() == [0, 1] * times
    assert many.prompt_embeds.shape[1:] == whole.prompt_embeds.shape[1:]
    assert many.pooled_prompt_embeds[:, 0].tolist() == [10, 11] * times
    assert many.time_ids[:, 0].tolist() == [20, 21] * times
    assert many.camera_features is whole.camera_features
    if negative is None:
        assert many.negative_prompt_embeds is many.negative_pooled_prompt_embeds is None
    else:
        expected = [0, 1] * times if negative == 2 else [0]
        assert many.negative_prompt_embeds[:, 0, 0].tolist() == expected
        assert many.negative_pooled_prompt_embeds[:, 0].tolist() == expected


def test_moving_casts_every_tensor():
    """None is left behind; without arguments nothing is copied."""
    whole = record(negative=1)
    cast = whole.to("cpu", torch.float64)

    assert cast.prompt_embeds.dtype == cast.pooled_prompt_embeds.dtype == torch.float64
    assert cast.time_ids.dtype == torch.float64
    assert {f.dtype for f in cast.camera_features} == {torch.float64}
    assert cast.negative_prompt_embeds.dtype == torch.float64
    assert cast.negative_pooled_prompt_embeds.dtype == torch.float64
    assert whole.to().prompt_embeds is whole.prompt_embeds
    assert record().to().negative_prompt_embeds is None


def trajectory(offset=0.0):
    """Build a trajectory of two steps and four objects whose entries name their object."""
    number = torch.arange(4.0) + offset
    latent = number[:, None, None, None, None].expand(2, 4, 3, 1, 2, 2)
    return Trajectory(
        state=latent,
        action=latent + 10,
        log_prob=latent[..., 0, 0, 0] + 20,
        denoised=latent[0] + 30,
    )


@given(st.integers(0, 3), st.integers(1, 4))
def test_narrowing_a_rollout_takes_the_same_objects_of_both_arms(start, length):
    """Of states, actions, log-densities and final latents, at every step."""
    index = slice(start, min(start + length, 4))
    expected = torch.arange(4.0)[index]
    part = PairedRollout(zigzag=trajectory(), standard=trajectory(100.0)).objects(index)
    for arm, offset in ((part.zigzag, 0.0), (part.standard, 100.0)):
        assert arm.state.shape == (2, len(expected), 3, 1, 2, 2)
        assert torch.equal(arm.state[1, :, 2, 0, 1, 1], expected + offset)
        assert torch.equal(arm.action[0, :, 0, 0, 0, 0], expected + offset + 10)
        assert torch.equal(arm.log_prob[1, :, 2], expected + offset + 20)
        assert torch.equal(arm.denoised[:, 2, 0, 1, 1], expected + offset + 30)


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


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_views": 0}, "`num_views` must be at least 1; got 0"),
        ({"num_views": 3}, "`camera_features` must hold one map per view; level 0 holds 2"),
        ({"pooled_prompt_embeds": torch.zeros(2, 6)}, "`pooled_prompt_embeds` must hold one row"),
        (
            {"time_ids": torch.zeros(4, 6)},
            "`time_ids` must hold one row per object; got 4 rows for 3",
        ),
        ({"negative_prompt_embeds": torch.zeros(1, 4, 5)}, "must be given together"),
        ({"negative_pooled_prompt_embeds": torch.zeros(1, 6)}, "must be given together"),
    ],
)
def test_rejects_parts_that_disagree(changes, message):
    """Each fault is found where the record is made."""
    with pytest.raises(ValueError, match=message):
        record(**changes)


def test_rejects_negative_prompts_for_some_objects():
    """One for all, or one each."""
    with pytest.raises(
        ValueError, match=r"`negative_prompt_embeds` must hold one row for all.*got 2"
    ):
        record(3, negative=2)
    pooled = {"negative_pooled_prompt_embeds": torch.zeros(2, 6)}
    with pytest.raises(
        ValueError, match="`negative_pooled_prompt_embeds` must hold one row for all"
    ):
        record(3, negative=1, **pooled)


@pytest.mark.parametrize("times", [0, -1])
def test_rejects_no_repetition(times):
    """A record holds at least one object."""
    with pytest.raises(ValueError, match=f"`times` must be at least 1; got {times}"):
        record().repeat(times)


@pytest.mark.parametrize("name", ["action", "log_prob", "denoised"])
def test_rejects_a_trajectory_of_other_objects(name):
    """Shapes are part of the record's type, checked while tests run."""
    whole = trajectory()
    fields = {name: getattr(whole, name) for name in ("state", "action", "log_prob", "denoised")}
    fields[name] = fields[name][:3] if name == "denoised" else fields[name][:, :3]
    with pytest.raises(TypeCheckError):
        Trajectory(**fields)
