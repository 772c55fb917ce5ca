"""`update.step`: oracle, laws, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.update import locate_non_finite_gradient, optimizer_step
from tests.policies import LinearPolicy
from tests.trajectories import sampler_of
from tests.unit.update.pairs import sampled

NUMBERS = st.lists(st.floats(-10, 10), min_size=1, max_size=4)


def parameters_with(*gradients):
    """Build parameters at zero that hold these gradients."""
    found = []
    for gradient in gradients:
        parameter = torch.nn.Parameter(torch.zeros(len(gradient), dtype=torch.float64))
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        found.append(parameter)
    return found


# -- oracle ------------------------------------------------------------------------------


@settings(max_examples=15)
@given(NUMBERS, NUMBERS, st.floats(0.1, 20.0), st.floats(0.01, 1.0))
def test_equals_clipped_gradient_descent(one, two, limit, rate):
    """Over all parameters together; the norm is that before clipping."""
    parameters = parameters_with(one, two)
    optimizer = torch.optim.SGD(parameters, lr=rate)
    norm = optimizer_step(optimizer, parameters, max_grad_norm=limit)

    expected = math.sqrt(sum(x * x for x in [*one, *two]))
    scale = min(1.0, limit / (expected + 1e-6))  # torch's own guard against a norm of zero
    assert norm == pytest.approx(expected, rel=1e-12)
    for parameter, gradient in zip(parameters, (one, two), strict=True):
        torch.testing.assert_close(
            parameter.data, -rate * scale * torch.tensor(gradient, dtype=torch.float64)
        )


# -- laws --------------------------------------------------------------------------------


def test_forgets_the_gradient():
    """So that the next step adds to nothing."""
    parameters = parameters_with([1.0])
    optimizer_step(torch.optim.SGD(parameters, lr=0.1), parameters, max_grad_norm=1.0)

    assert parameters[0].grad is None


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("located", [True, False])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, located):
    """Neither parameters nor the optimiser's state; who made it is asked only then."""
    parameters = parameters_with([1.0, 2.0], [bad])
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    found = NonFiniteError("gradient", object=3, view=1, step=0)
    with pytest.raises(NonFiniteError) as raised:
        optimizer_step(
            optimizer,
            parameters,
            max_grad_norm=5.0,
            locate=(lambda: found) if located else None,
        )

    assert raised.value is found if located else raised.value.what == "gradient_norm"
    assert all(torch.equal(p.data, torch.zeros_like(p)) for p in parameters)
    assert all(p.grad is None for p in parameters)
    assert not optimizer.state


def test_a_finite_gradient_asks_nobody():
    """The search is slow."""
    parameters = parameters_with([1.0])
    optimizer_step(
        torch.optim.SGD(parameters, lr=0.1), parameters, max_grad_norm=5.0, locate=pytest.fail
    )


class _SpoilsBackward(torch.autograd.Function):
    """The identity, but for a gradient that is not finite where it is told."""

    @staticmethod
    def forward(context, value, spoilt):
        """Pass the value on."""
        context.save_for_backward(spoilt)
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        """Spoil."""
        (spoilt,) = context.saved_tensors
        return torch.where(spoilt & (gradient != 0), math.inf, gradient), None


@pytest.mark.parametrize("arm", ["zigzag", "standard"])
def test_finds_the_log_density_whose_gradient_is_not_finite(arm):
    """In the second batch of two, by object within the iteration, view and step of the grid."""
    sampler, policy = sampler_of("lcm", 4), LinearPolicy(0.5)
    batches = sampled(policy, sampler, [2, 3])
    work = [(batch, steps) for batch in batches for steps in ([0, 1], [2, 3])]

    def replay(batch, trajectory, steps):
        log_prob = policy.gain * trajectory.log_prob[steps]
        spoilt = torch.zeros_like(log_prob, dtype=torch.bool)
        if trajectory is getattr(batches[1].rollout, arm) and 3 in steps:
            spoilt[1, 2, 1] = True
        return _SpoilsBackward.apply(log_prob, spoilt)

    error = locate_non_finite_gradient(work, [policy.gain], replay)

    assert (error.what, error.object, error.view, error.step) == ("gradient", 4, 1, 3)
    assert policy.gain.grad is None


def test_says_so_if_no_log_density_is_at_fault():
    """Such as where finite gradients add up to an infinite one."""
    sampler, policy = sampler_of("lcm", 2), LinearPolicy(0.5)
    (batch,) = sampled(policy, sampler, [1])
    unused = torch.nn.Parameter(torch.zeros(1))
    error = locate_non_finite_gradient(
        [(batch, [0, 1])],
        [unused, policy.gain],
        lambda batch, trajectory, steps: policy.gain * trajectory.log_prob[steps],
    )

    assert (error.what, error.object) == ("gradient_norm", None)
