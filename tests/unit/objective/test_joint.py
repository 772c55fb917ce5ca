"""Log-ratios of whole objects: oracle, laws, gradients."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.gaussian import log_prob
from mvczigal_ref.objective.joint import joint_gradients, joint_log_ratio
from mvczigal_ref.objective.preference import preference_gradients
from mvczigal_ref.objective.reward_difference import reward_difference_gradients
from tests.strategies import randn
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import vectors

VIEWS = 3


def tables(low=-1.0, high=1.0):
    """Draw numbers of four objects and three views."""
    return vectors(4 * VIEWS, low=low, high=high).map(lambda x: x.reshape(4, VIEWS))


def rdl(clip_range=0.2, temperature=1.0):
    """Bind the reward difference."""
    return partial(reward_difference_gradients, clip_range=clip_range, temperature=temperature)


# -- oracle ------------------------------------------------------------------------------


def test_it_is_the_log_ratio_of_the_joint_densities():
    """Views are independent given the state; both densities are summed."""
    action, mean, old = randn(3, 2, VIEWS, 1, 2, 2, dtype=torch.float64)
    each = [log_prob(action, mean=centre, std=0.5, reduction="sum") for centre in (mean, old)]
    joint = [
        torch.distributions.Normal(centre, 0.5).log_prob(action).sum(dim=(-4, -3, -2, -1))
        for centre in (mean, old)
    ]
    torch.testing.assert_close(joint_log_ratio(each[0] - each[1]), joint[0] - joint[1])


@given(tables(), tables(), tables(), st.floats(0.05, 2.0), st.floats(0.2, 3.0))
def test_every_view_has_the_derivative_of_the_sum(zigzag, standard, gap, clip_range, eta):
    """Against autograd through the sum, of the loss in plain numbers."""
    found = joint_gradients(rdl(clip_range, eta), zigzag, standard, gap)
    z, s = zigzag.clone().requires_grad_(), standard.clone().requires_grad_()
    loss = 0.0
    for row in range(4):
        a = gap[row].sum() / VIEWS
        both = z[row].sum(), s[row].sum()
        near = [x.clamp(-clip_range, clip_range) for x in both]
        errors = ((both[0] - both[1]) / eta - a, (near[0] - near[1]) / eta - a)
        loss = loss + torch.maximum(errors[0] ** 2, errors[1] ** 2) / 4
    by_zigzag, by_standard = torch.autograd.grad(loss, (z, s))

    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(found.zigzag, by_zigzag, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.standard, by_standard, rtol=1e-9, atol=1e-11)


# -- laws --------------------------------------------------------------------------------


@given(vectors(4, low=-2.0, high=2.0))
def test_on_policy_a_temperature_times_the_views_gives_the_same_gradient(gap):
    """Where all views of an object have one advantage: the unit is the sum's."""
    zero = torch.zeros(4, VIEWS, dtype=torch.float64)
    same = gap[:, None].expand(4, VIEWS)
    apart = rdl()(zero, zero, same)
    joint = joint_gradients(rdl(temperature=float(VIEWS)), zero, zero, same)
    torch.testing.assert_close(joint.zigzag, apart.zigzag, rtol=1e-12, atol=1e-15)


def test_the_views_of_an_object_are_decided_together():
    """By the mean of their gaps: a bad view of the better object is raised too."""
    zero = torch.zeros(1, VIEWS)
    loss = partial(preference_gradients, scale=1.0, clip_range=1.0)
    found = joint_gradients(loss, zero, zero, torch.tensor([[3.0, -1.0, 0.5]]))
    assert (found.zigzag < 0).all()
    assert torch.equal(found.standard, -found.zigzag)
    assert found.stats.clip_fraction.item() == 0.0


def test_one_view_is_the_loss_of_views():
    """There is nothing to add up."""
    zigzag, standard, gap = randn(3, 5, 1, dtype=torch.float64)
    joint, apart = joint_gradients(rdl(), zigzag, standard, gap), rdl()(zigzag, standard, gap)
    for mine, theirs in ((joint.loss, apart.loss), (joint.zigzag, apart.zigzag)):
        assert torch.equal(mine, theirs)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (4, 0)])
def test_refuses_an_object_without_views(shape):
    """A sum over none would be a ratio of 1, and their mean no number."""
    with without_shape_checks(), pytest.raises(ValueError, match="`log_prob` must have views as"):
        joint_log_ratio(torch.zeros(shape))
