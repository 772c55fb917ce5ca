"""`update.loop.optimizer_step`: oracle, laws, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.update.loop import optimizer_step

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
@pytest.mark.parametrize("names", [("a", "b", "c"), None], ids=["names", "places"])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, names):
    """Neither parameters nor the optimiser's state; the error names the first such parameter."""
    parameters = parameters_with([1.0, 2.0], [bad], [bad])
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    named = dict(zip(names, parameters, strict=True)) if names else parameters
    with pytest.raises(NonFiniteError) as raised:
        optimizer_step(optimizer, named, max_grad_norm=5.0)

    assert raised.value.what == f"gradient_norm of {'b' if names else 'parameters[1]'}"
    assert not math.isfinite(raised.value.value)
    assert all(torch.equal(p.data, torch.zeros_like(p)) for p in parameters)
    assert all(p.grad is None for p in parameters)
    assert not optimizer.state


def test_finite_gradients_may_have_a_norm_that_is_not():
    """Then no parameter is named."""
    parameters = parameters_with([1e200], [1e200])
    with pytest.raises(NonFiniteError, match="`gradient_norm` must be finite; got inf"):
        optimizer_step(torch.optim.SGD(parameters, lr=0.1), parameters, max_grad_norm=5.0)


def test_only_a_gradient_of_exactly_zero_is_refused():
    """A norm of the smallest numbers rounds to 0; their step is taken."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    told = {"max_grad_norm": 5.0, "on_zero": pytest.fail}
    for gradient in ([1e-30, 0.0], [1.0, 0.0]):
        parameter.grad = torch.tensor(gradient)
        optimizer_step(torch.optim.SGD([parameter], lr=1.0), [parameter], **told)
    assert parameter.data[0] == -1.0
    parameter.grad = torch.zeros(2)
    with pytest.raises(pytest.fail.Exception):
        optimizer_step(torch.optim.SGD([parameter], lr=1.0), [parameter], **told)
