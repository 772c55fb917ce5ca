"""One ratio per trajectory: oracle, laws, gradients, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.objective.clipped import clipped_surrogate_loss
from mvczigal_ref.objective.sequence import sequence_log_ratio, sequence_loss, through_sequence
from tests.strategies import randn
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import vectors


@st.composite
def trajectories(draw):
    """Draw log-ratios of some trajectories' steps, and an advantage of each trajectory."""
    samples, steps = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    ratios = draw(vectors(samples * steps, low=-0.5, high=0.5)).reshape(samples, steps)
    return ratios, draw(vectors(samples, low=-3.0, high=3.0))


# -- oracle ------------------------------------------------------------------------------


@given(trajectories(), st.floats(1e-3, 0.5))
def test_a_trajectory_is_clipped_as_a_whole(drawn, clip_range):
    """By the geometric mean of its ratios, in plain floats."""
    log_ratio, advantage = drawn
    loss, stats = sequence_loss(log_ratio, advantage, clip_range=clip_range)
    terms, beyond = [], 0
    for row, a in zip(log_ratio.tolist(), advantage.tolist(), strict=True):
        ratio = math.prod(math.exp(x) for x in row) ** (1 / len(row))
        near = max(1 - clip_range, min(1 + clip_range, ratio))
        terms.append(max(-a * ratio, -a * near))
        beyond += abs(ratio - 1) > clip_range * (1 + 1e-9)

    assert loss.item() == pytest.approx(math.fsum(terms) / len(terms), rel=1e-9, abs=1e-12)
    assert stats.clip_fraction.item() == pytest.approx(beyond / len(terms), abs=0.26 / len(terms))


# -- laws --------------------------------------------------------------------------------


@given(trajectories(), st.floats(1e-3, 0.5))
def test_steps_one_by_one_have_the_value_and_gradient_of_the_whole(drawn, clip_range):
    """So that one step's graph is alive at a time."""
    log_ratio, advantage = drawn
    whole, apart = log_ratio.clone().requires_grad_(), log_ratio.clone().requires_grad_()
    loss, _ = sequence_loss(whole, advantage, clip_range=clip_range)
    loss.backward()
    sequence, steps = sequence_log_ratio(log_ratio), log_ratio.shape[-1]
    for step in range(steps):
        through = through_sequence(apart[:, step], sequence=sequence)
        part, _ = clipped_surrogate_loss(through, advantage, clip_range=clip_range)
        assert part.item() == pytest.approx(loss.item(), rel=1e-12, abs=1e-12)
        (part / steps).backward()

    torch.testing.assert_close(apart.grad, whole.grad, rtol=1e-10, atol=1e-13)


@given(trajectories())
def test_one_step_is_the_clipped_surrogate(drawn):
    """The mean of one ratio is the ratio."""
    log_ratio, advantage = drawn[0][:, :1], drawn[1]
    one, _ = sequence_loss(log_ratio, advantage, clip_range=0.1)
    plain, _ = clipped_surrogate_loss(log_ratio[:, 0], advantage, clip_range=0.1)
    assert torch.equal(one, plain)


def test_steps_that_cancel_are_not_clipped():
    """A ratio of 2 and one of a half are trusted together, and each alone is not."""
    log_ratio = torch.tensor([[math.log(2.0), -math.log(2.0)]])
    _, whole = sequence_loss(log_ratio, torch.ones(1), clip_range=0.1)
    _, each = clipped_surrogate_loss(log_ratio[0], torch.ones(2), clip_range=0.1)
    assert (whole.clip_fraction.item(), each.clip_fraction.item()) == (0.0, 1.0)


def test_on_policy_it_is_the_policy_gradient_of_the_mean_over_steps():
    """The same as that of single steps."""
    log_ratio, advantage = torch.zeros(3, 4).requires_grad_(), randn(3)
    loss, _ = sequence_loss(log_ratio, advantage, clip_range=0.1)
    loss.backward()
    torch.testing.assert_close(log_ratio.grad, (-advantage / 12)[:, None].expand(3, 4))


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.zeros(()), torch.zeros(3, 0)])
def test_no_step_is_refused(bad):
    """There is no mean of nothing."""
    with without_shape_checks(), pytest.raises(ValueError, match="`log_ratio` must have steps"):
        sequence_log_ratio(bad)


def test_half_precision_is_refused():
    """Ratios near 1 would round away."""
    with pytest.raises(ValueError, match="`sequence` must be float32 or float64"):
        through_sequence(torch.zeros(1), sequence=torch.zeros(1).half())


def test_a_sequence_that_would_broadcast_is_refused():
    """Trajectories of as many views as prompts would have another one's ratio."""
    with without_shape_checks(), pytest.raises(ValueError, match="`sequence` must have the shape"):
        through_sequence(torch.zeros(3, 3), sequence=torch.zeros(3))
