"""`update.step`: oracle, laws, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.update.loop import locate_non_finite_gradient, optimizer_step

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


def test_only_a_gradient_of_exactly_zero_is_refused():
    """A norm of the smallest numbers rounds to 0; their step is taken."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    told = {"max_grad_norm": 5.0, "refuse_zero": pytest.fail}
    for gradient in ([1e-30, 0.0], [1.0, 0.0]):
        parameter.grad = torch.tensor(gradient)
        optimizer_step(torch.optim.SGD([parameter], lr=1.0), [parameter], **told)
    assert parameter.data[0] == -1.0
    parameter.grad = torch.zeros(2)
    with pytest.raises(pytest.fail.Exception):
        optimizer_step(torch.optim.SGD([parameter], lr=1.0), [parameter], **told)


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


def _culprit(name):
    """Name the table and the index of the entry at fault."""
    return lambda index: NonFiniteError(f"{name}{index}")


@pytest.mark.parametrize("first", [0, 1])
def test_finds_the_number_whose_gradient_is_not_finite(first):
    """In the second table of two, at the first of its bad entries."""
    gain = torch.nn.Parameter(torch.tensor(0.5))
    spoilt = torch.zeros(2, 3, dtype=torch.bool)
    spoilt[first, 2] = spoilt[1, 2] = True
    tables = [torch.zeros_like(spoilt), spoilt]
    error = locate_non_finite_gradient(
        (
            (_SpoilsBackward.apply(gain * torch.ones(2, 3), bad), _culprit(name))
            for name, bad in zip("ab", tables, strict=True)
        ),
        [gain],
    )

    assert error.what == f"b[{first}, 2]"
    assert gain.grad is None


def test_says_so_if_no_number_is_at_fault():
    """Such as where finite gradients add up to an infinite one."""
    gain, unused = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    error = locate_non_finite_gradient([(gain * torch.ones(2), _culprit("a"))], [unused, gain])

    assert (error.what, error.object) == ("gradient_norm", None)
