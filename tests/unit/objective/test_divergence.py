"""The trust region by divergence: oracle, laws, gradients, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.objective.clipped import clipped_surrogate_loss, reference_kl
from mvczigal_ref.objective.divergence import divergence_loss, outside_region
from tests.strategies import randn
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import vectors

STD = 0.4


def inputs(seed=0):
    """Give eight transitions, all signs of ratio and advantage, some far and some near."""
    mean, mean_old = randn(2, 8, 1, 2, 2, seed=seed, dtype=torch.float64)
    mean = mean_old + torch.linspace(0.1, 1.0, 8, dtype=torch.float64)[:, None, None, None] * mean
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]] * 2, dtype=torch.float64)
    size = randn(2, 8, seed=seed + 1, dtype=torch.float64).abs() + 0.1
    return {
        "log_ratio": 0.2 * signs[:, 0] * size[0],
        "advantage": signs[:, 1] * size[1],
        "mean": mean,
        "mean_old": mean_old,
        "std": STD,
    }


# -- oracle ------------------------------------------------------------------------------


@given(st.sampled_from(["mean", "sum"]), st.floats(0.01, 5.0), st.integers(0, 50))
def test_far_actions_that_go_on_are_left_out(reduction, bound, seed):
    """Walked in plain floats, with a weight each."""
    told, weight = inputs(seed), torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    loss, stats = divergence_loss(
        **told, reduction=reduction, divergence_range=bound, weight=weight
    )
    terms, held = [], 0
    for row in range(8):
        moved = (told["mean"][row] - told["mean_old"][row]).flatten().tolist()
        far = math.fsum(x * x for x in moved) / (len(moved) if reduction == "mean" else 1)
        ratio, a = math.exp(told["log_ratio"][row]), told["advantage"][row].item()
        drop = far / (2 * STD**2) >= bound and ((ratio > 1 and a > 0) or (ratio < 1 and a < 0))
        held += drop
        terms.append(0.0 if drop else -weight[row].item() * a * ratio)

    assert loss.item() == pytest.approx(math.fsum(terms) / 8, rel=1e-10, abs=1e-12)
    assert stats.clip_fraction.item() == held / 8


# -- laws --------------------------------------------------------------------------------


@given(vectors(6, low=-1.0, high=1.0), vectors(6, low=-2.0, high=2.0))
def test_what_is_pulled_back_or_near_stays(log_ratio, advantage):
    """However far, an action that comes back has its gradient."""
    far, near = torch.full((6,), 9.0), torch.full((6,), 0.5)
    region = {"divergence_range": 1.0}
    back = -advantage.sign() * log_ratio.abs()
    assert not outside_region(back, advantage, far, **region).any()
    assert not outside_region(log_ratio, advantage, near, **region).any()
    away = advantage.sign() * log_ratio.abs()
    held = outside_region(away, advantage, far, **region)
    assert torch.equal(held, (log_ratio != 0) & (advantage != 0))


def test_without_a_bound_it_is_the_surrogate_without_a_clip():
    """An infinite region trusts everything."""
    told = inputs()
    loss, _ = divergence_loss(**told, reduction="mean", divergence_range=math.inf)
    plain, _ = clipped_surrogate_loss(told["log_ratio"], told["advantage"], clip_range=math.inf)
    assert torch.equal(loss, plain)


def test_the_divergence_chooses_and_carries_no_gradient():
    """The mean moves the loss through the ratio alone."""
    told = inputs()
    told["mean"].requires_grad_()
    told["log_ratio"].requires_grad_()
    loss, _ = divergence_loss(**told, reduction="mean", divergence_range=0.5)
    loss.backward()
    divergence = reference_kl(told["mean"], told["mean_old"], std=STD, reduction="mean")
    held = outside_region(told["log_ratio"], told["advantage"], divergence, divergence_range=0.5)
    expected = -told["advantage"] * told["log_ratio"].exp() / 8

    assert told["mean"].grad is None
    assert held.any()
    assert not held.all()
    torch.testing.assert_close(told["log_ratio"].grad, expected.detach().masked_fill(held, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_action_held_back_counts_nothing_however_far_it_went(dtype):
    """A ratio that no float holds, times no advantage, is 0 and not a broken number."""
    log_ratio = torch.tensor([1e3, 0.1], dtype=dtype).requires_grad_()
    mean = torch.tensor([3.0, 0.0], dtype=dtype)[:, None, None, None]
    loss, stats = divergence_loss(
        log_ratio, torch.ones(2, dtype=dtype), mean=mean, mean_old=torch.zeros_like(mean),
        std=0.1, reduction="sum",
    )  # fmt: skip
    loss.backward()

    assert loss.item() == pytest.approx(-math.exp(0.1) / 2)
    assert log_ratio.grad.tolist() == [0.0, pytest.approx(-math.exp(0.1) / 2)]
    assert stats.clip_fraction.item() == 0.5


def test_a_penalty_is_added():
    """Towards a reference that never moves, as elsewhere."""
    told, kl = inputs(), torch.ones(8, dtype=torch.float64)
    without, _ = divergence_loss(**told, reduction="mean")
    loss, stats = divergence_loss(**told, reduction="mean", kl=kl, kl_weight=0.25)
    assert loss.item() == pytest.approx(without.item() + 0.25, rel=1e-12)
    assert stats.reference_kl.item() == 1.0


def test_the_default_range_is_the_published_one():
    """Of the mean over elements."""
    told = inputs() | {"log_ratio": torch.full((8,), 0.1).double(), "advantage": torch.ones(8)}
    told["advantage"] = told["advantage"].double()
    told["mean"] = told["mean_old"] + math.sqrt(2 * STD**2 * 1.1e-5)
    _, far = divergence_loss(**told, reduction="mean")
    told["mean"] = told["mean_old"] + math.sqrt(2 * STD**2 * 0.9e-5)
    _, near = divergence_loss(**told, reduction="mean")
    assert (far.clip_fraction.item(), near.clip_fraction.item()) == (1.0, 0.0)


@pytest.mark.parametrize("name", ["log_ratio", "advantage", "mean", "mean_old"])
def test_a_nan_is_passed_on(name):
    """The mask does not hide a broken number from whoever looks at the loss."""
    told = {key: value.clone() if key == name else value for key, value in inputs().items()}
    told[name].view(-1)[0] = math.nan
    loss, _ = divergence_loss(**told, reduction="mean")

    assert loss.isnan()


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_a_region_of_nothing_is_refused(bound):
    """It would hold back what has not moved."""
    with pytest.raises(ValueError, match="`divergence_range` must be positive; got"):
        divergence_loss(**inputs(), reduction="mean", divergence_range=bound)


def test_a_spread_of_nothing_is_refused():
    """Its divergence has no value."""
    with pytest.raises(ValueError, match="`std` must be positive"):
        divergence_loss(**(inputs() | {"std": 0.0}), reduction="mean")


def test_a_divergence_that_would_broadcast_is_refused():
    """As many views as prompts would be held back by another one's divergence."""
    told = inputs()
    told |= {name: told[name].expand(8, 8) for name in ("log_ratio", "advantage")}
    with (
        without_shape_checks(),
        pytest.raises(ValueError, match=r"`divergence` must have the shape of `log_ratio`"),
    ):
        divergence_loss(**told, reduction="mean")


@pytest.mark.parametrize("place", range(3))
def test_a_region_of_other_shapes_is_refused(place):
    """Each action has one advantage and one divergence."""
    three = [torch.ones(3, 3)] * 3
    three[place] = torch.ones(3)
    with without_shape_checks(), pytest.raises(ValueError, match="must have the shape of"):
        outside_region(*three, divergence_range=1.0)
