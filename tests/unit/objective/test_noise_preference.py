"""Diffusion-DPO's loss: oracle, laws, gradients, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.schedule import noised_latent
from mvczigal_ref.objective.noise_preference import noise_error, noise_preference_loss
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import same_shape

SCALE = st.floats(0.1, 20.0)
KINDS = ("epsilon", "v_prediction", "sample")


def loss_of(zigzag, standard, home_zigzag, home_standard, gap, scale=2.0, **changes):
    """Call the loss with all errors in order."""
    settings = {"scale": scale, "clip_range": 0.5, **changes}
    return noise_preference_loss(
        zigzag, standard, reference_zigzag=home_zigzag, reference_standard=home_standard,
        advantage_gap=gap, **settings,
    )  # fmt: skip


# -- oracle --------------------------------------------------------------------------------


@given(same_shape(5), SCALE)
def test_loss_is_diffusion_dpo_s(five, scale):
    """Winner and loser by the gap's sign; both errors less the reference's, in plain floats."""
    loss, stats = loss_of(*five, scale)
    rows = list(zip(*(t.flatten().tolist() for t in five), strict=True))
    terms, ratios = [], []
    for z, s, rz, rs, gap in rows:
        win, lose = (z - rz, s - rs) if gap > 0 else (s - rs, z - rz)
        terms.append(math.log1p(math.exp(0.5 * scale * (win - lose))) if gap != 0 else 0.0)
        ratios += [(rz - z) / 2, (rs - s) / 2]

    assert loss.item() == pytest.approx(math.fsum(terms) / len(rows), rel=1e-12, abs=1e-15)
    assert stats.approx_kl.item() == pytest.approx(
        math.fsum(x * x for x in ratios) / len(ratios) / 2
    )
    clipped = sum(abs(x) > 0.5 for x in ratios)
    assert stats.clip_fraction.item() == pytest.approx(clipped / len(ratios))


@pytest.mark.parametrize("kind", KINDS)
def test_error_is_that_of_the_noise(kind):
    """Element by element; whatever the network predicts, its noise is compared."""
    torch.manual_seed(0)
    clean, noise, output = (torch.randn(2, 3, 2, 2, dtype=torch.float64) for _ in range(3))
    alpha_bar = torch.tensor([0.3, 0.8], dtype=torch.float64)
    latent_t = noised_latent(clean, noise, alpha_bar_t=alpha_bar)
    errors = noise_error(
        output, latent_t=latent_t, noise=noise, alpha_bar_t=alpha_bar, prediction_type=kind
    )

    for row, a in enumerate(alpha_bar.tolist()):
        squares = []
        parts = [t[row].flatten().tolist() for t in (clean, noise, output)]
        for x0, e, o in zip(*parts, strict=True):
            x = math.sqrt(a) * x0 + math.sqrt(1 - a) * e
            predicted = {
                "epsilon": o,
                "v_prediction": math.sqrt(a) * o + math.sqrt(1 - a) * x,
                "sample": (x - math.sqrt(a) * o) / math.sqrt(1 - a),
            }[kind]
            squares.append((predicted - e) ** 2)
        assert errors[row].item() == pytest.approx(math.fsum(squares) / len(squares), rel=1e-12)


# -- laws ----------------------------------------------------------------------------------


@given(same_shape(3), SCALE)
def test_at_the_reference_every_decided_pair_costs_log_2(three, scale):
    """Whatever the errors are; a tie costs nothing."""
    zigzag, standard, gap = three
    loss, stats = loss_of(zigzag, standard, zigzag, standard, gap, scale)

    assert loss.item() == pytest.approx(math.log(2) * (gap != 0).double().mean().item(), rel=1e-12)
    assert stats.approx_kl == stats.clip_fraction == 0


@given(same_shape(5), SCALE)
def test_relabelling_the_samples_changes_nothing(five, scale):
    """The winner is the winner on either side."""
    zigzag, standard, home_zigzag, home_standard, gap = five
    one, _ = loss_of(*five, scale)
    other, _ = loss_of(standard, zigzag, home_standard, home_zigzag, -gap, scale)

    assert one.item() == pytest.approx(other.item(), rel=1e-12)


# -- gradients -----------------------------------------------------------------------------


def test_the_winner_s_error_falls_and_the_loser_s_rises():
    """By half the scale times what the logistic leaves; references get no gradient."""
    errors = [torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    loss, _ = loss_of(*errors, torch.ones(1, dtype=torch.float64), 8.0)
    loss.backward()

    assert [e.grad if e.grad is None else e.grad.item() for e in errors] == [2.0, -2.0, None, None]
    home, gap = torch.ones(3, dtype=torch.float64), torch.tensor([1.0, -1.0, 2.0]).double()
    inputs = [torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda z, s: loss_of(z, s, home, home, gap)[0], inputs)


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_rejects_a_scale_that_is_not_positive(bad):
    """It would prefer the worse sample, or none."""
    with pytest.raises(ValueError, match="`scale` must be positive"):
        loss_of(*[torch.ones(1, dtype=torch.float64)] * 5, bad)


def test_rejects_errors_that_would_broadcast():
    """One error is of one sample."""
    one, three = torch.ones(1), torch.ones(3)
    with without_shape_checks(), pytest.raises(ValueError, match="must have the shape of"):
        loss_of(one, three, one, three, one)
