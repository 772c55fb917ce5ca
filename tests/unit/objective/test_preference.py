"""The preference loss: oracle, laws, gradients, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.objective.preference import preference_gradients, preference_loss
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import same_shape

SCALE = st.floats(0.1, 20.0)


def vector(*values):
    """Make one fp64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def tensors():
    """Return arguments that are valid."""
    return {
        "log_ratio_zigzag": vector(0.3, -0.2, 0.1),
        "log_ratio_standard": vector(0.1, 0.4, 0.0),
        "advantage_gap": vector(2.0, -0.5, 0.0),
    }


# -- oracle --------------------------------------------------------------------------------


@given(same_shape(3), SCALE)
def test_loss_is_that_of_the_logistic_model(three, scale):
    """Pair by pair in plain floats; the winner is the arm with the larger advantage."""
    zigzag, standard, gap = three
    loss, stats = preference_loss(zigzag, standard, gap, scale=scale, clip_range=0.5)
    rows = list(zip(*(t.flatten().tolist() for t in three), strict=True))
    terms = []
    for first, second, wins in rows:
        winner, loser = (first, second) if wins > 0 else (second, first)
        terms.append(math.log1p(math.exp(-scale * (winner - loser))) if wins != 0 else 0.0)
    both = [x for row in rows for x in row[:2]]

    assert loss.item() == pytest.approx(math.fsum(terms) / len(rows), rel=1e-12, abs=1e-15)
    assert stats.approx_kl.item() == pytest.approx(math.fsum(x * x for x in both) / len(both) / 2)
    assert stats.clip_fraction.item() == pytest.approx(sum(abs(x) > 0.5 for x in both) / len(both))


# -- laws ----------------------------------------------------------------------------------


@given(same_shape(3), SCALE, st.floats(1e-3, 1e3))
def test_only_the_sign_of_the_gap_counts(three, scale, factor):
    """And the arms may change places."""
    zigzag, standard, gap = three
    plain, _ = preference_loss(zigzag, standard, gap, scale=scale, clip_range=1.0)
    larger, _ = preference_loss(zigzag, standard, factor * gap, scale=scale, clip_range=1.0)
    swapped, _ = preference_loss(standard, zigzag, -gap, scale=scale, clip_range=1.0)

    assert torch.equal(plain, larger)
    assert torch.equal(plain, swapped)


def test_a_tie_teaches_nothing_and_is_counted():
    """At the snapshot a decided pair's loss is log 2, so that of two, one tied, is half of it."""
    zero = torch.zeros(2, dtype=torch.float64)
    found = preference_gradients(zero, zero, vector(1e-300, 0.0), scale=3.0, clip_range=1.0)

    assert found.loss.item() == pytest.approx(math.log(2) / 2, rel=1e-12)
    assert found.zigzag.tolist() == [-0.75, 0.0]


def test_a_gap_that_is_no_number_is_no_tie():
    """It shows in the loss, which the update refuses."""
    gap = vector(1.0, math.nan, 0.0)
    loss, _ = preference_loss(**{**tensors(), "advantage_gap": gap}, scale=1.0, clip_range=1.0)

    assert loss.isnan()


# -- gradients -----------------------------------------------------------------------------


@given(same_shape(3), SCALE)
def test_gradient_is_the_chance_that_the_loser_wins(three, scale):
    """Times the scale, toward the winner; the arms' derivatives are opposite."""
    found = preference_gradients(*three, scale=scale, clip_range=1.0)
    zigzag, standard, gap = three
    sign = gap.sign()
    margin = scale * sign * (zigzag - standard)
    expected = -scale * sign / (1.0 + margin.exp()) / gap.numel()

    torch.testing.assert_close(found.zigzag, expected, rtol=1e-10, atol=1e-14)
    assert torch.equal(found.zigzag, -found.standard)
    assert not found.loss.requires_grad
    assert not found.zigzag.requires_grad


def test_no_gradient_reaches_the_gap():
    """Nor the diagnostics."""
    told = tensors()
    for tensor in told.values():
        tensor.requires_grad_()
    loss, stats = preference_loss(**told, scale=2.0, clip_range=1.0)
    loss.backward()

    assert told["advantage_gap"].grad is None
    assert told["log_ratio_standard"].grad.abs().sum() > 0
    assert not stats.approx_kl.requires_grad
    assert not stats.clip_fraction.requires_grad


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_scale_that_is_not_positive(scale):
    """By name and value."""
    with pytest.raises(ValueError, match="`scale` must be positive and finite; got"):
        preference_loss(**tensors(), scale=scale, clip_range=1.0)


@pytest.mark.parametrize("clip_range", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("function", [preference_loss, preference_gradients])
def test_refuses_a_range_that_is_not_positive(function, clip_range):
    """It would count every log-ratio as clipped, or none."""
    with pytest.raises(ValueError, match="`clip_range` must be positive; got"):
        function(**tensors(), scale=1.0, clip_range=clip_range)


@pytest.mark.parametrize("name", ["log_ratio_standard", "advantage_gap"])
def test_refuses_what_would_broadcast(name):
    """One number for all pairs would pass for each one's own."""
    told = {**tensors(), name: vector(1.0)}
    with without_shape_checks(), pytest.raises(ValueError, match=rf"`{name}` must have the shape"):
        preference_loss(**told, scale=1.0, clip_range=1.0)


@pytest.mark.parametrize("name", sorted(tensors()))
def test_refuses_half_precision(name):
    """Of any argument."""
    told = {**tensors(), name: tensors()[name].half()}
    with pytest.raises(ValueError, match=f"`{name}` must be float32 or float64"):
        preference_loss(**told, scale=1.0, clip_range=1.0)


def test_refuses_a_loss_of_nothing():
    """Its mean would be NaN."""
    empty = {name: tensor[:0] for name, tensor in tensors().items()}
    with pytest.raises(ValueError, match="`log_ratio_zigzag` must not be empty"):
        preference_loss(**empty, scale=1.0, clip_range=0.1)
