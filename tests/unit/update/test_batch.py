"""`update.batch`: laws, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.objective.reward_difference import reward_difference_gradients
from mvczigal_ref.update.pairs import PairGradients
from mvczigal_ref.update.replay import UpdateSettings
from tests.policies import LinearPolicy
from tests.trajectories import sampler_of
from tests.unit.update.pairs import gaps, sampled

# -- laws --------------------------------------------------------------------------------


@given(st.integers(0, 3), st.integers(1, 4))
def test_narrowing_takes_the_same_objects_of_everything(start, length):
    """And remembers where they are in the iteration."""
    first, second = BATCHES
    index = slice(start, min(start + length, 4))
    part = second.objects(index)

    assert first.first_object == 0
    assert part.first_object == 2 + start
    assert torch.equal(part.advantage_gap, gaps(6)[2:][index])
    assert torch.equal(part.rollout.zigzag.state, second.rollout.zigzag.state[:, index])
    assert torch.equal(part.rollout.zigzag.action, second.rollout.zigzag.action[:, index])
    assert torch.equal(part.rollout.standard.log_prob, second.rollout.standard.log_prob[:, index])
    assert torch.equal(part.rollout.standard.denoised, second.rollout.standard.denoised[index])
    numbers = part.conditioning.prompt_embeds[:, 0, 0].tolist()
    assert numbers == list(range(2, 6))[index]


def test_narrowing_copies_nothing():
    """The parts look into the whole's memory."""
    batch = BATCHES[1]
    part = batch.objects(slice(None, 2))

    assert part.first_object == 2
    assert part.rollout.zigzag.state.untyped_storage().data_ptr() == (
        batch.rollout.zigzag.state.untyped_storage().data_ptr()
    )


def test_the_pair_loss_is_an_objective():
    """It is known by its loss and two derivatives."""
    zero = torch.zeros(2)

    assert isinstance(reward_difference_gradients(zero, zero, zero, clip_range=1.0), PairGradients)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["steps_per_microbatch", "objects_per_microbatch", "epochs", "optimizer_steps"]
)
@pytest.mark.parametrize("count", [0, -1])
def test_rejects_a_count_below_one(name, count):
    """By its name."""
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got {count}"):
        UpdateSettings(steps=[0], guidance_scale=1.0, **{name: count})


def test_rejects_an_update_of_no_step():
    """Such as a grid of one step whose last action is not trained."""
    with pytest.raises(ValueError, match="`steps` must name at least one sampling step; got none"):
        UpdateSettings(steps=[], guidance_scale=1.0)


BATCHES = sampled(LinearPolicy(0.5), sampler_of("lcm", 2), [2, 4])
