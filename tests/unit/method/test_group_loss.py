"""`group_objective`: what the settings make of a replayed decision, in plain floats."""

import math

import pytest
import torch

from mvczigal_ref.method.group_loss import group_objective, step_weights
from mvczigal_ref.records import GroupDecision
from mvczigal_ref.system.sampler import build_sampler
from mvczigal_ref.update.group_batch import ReplayedDecision
from tests.iterations import FLOW, GROUP, config_of
from tests.strategies import randn
from tests.unit.diffusion.flow_cases import step_oracle

STD, STEP, CLIP, KL = 0.4, 1, 0.05, 0.3
SHIFTED = {**FLOW, **GROUP, "flow.shift": 3.0}  # no two steps are equally long
LEVELS = [1.0, 0.9, 0.75, 0.5, 0.0]
SHAPE = (2, 2, 1)


def replayed(*, reference=True, old=True):
    """Give log-ratios on both sides of the clip, unequal weights, and three means apart."""
    numbers = randn(2, *SHAPE, seed=4, dtype=torch.float64)
    means = randn(3, *SHAPE, 1, 2, 2, seed=2, dtype=torch.float64)
    return ReplayedDecision(
        log_ratio=0.1 * numbers[0],
        advantage=numbers[1],
        weight=torch.linspace(0.5, 2.0, 4, dtype=torch.float64).reshape(SHAPE),
        share=torch.tensor([2.0, 0.5], dtype=torch.float64)[:, None].expand(SHAPE),
        repeats=torch.tensor([0.5, 1.5], dtype=torch.float64)[:, None].expand(SHAPE),
        mean=means[0],
        std=torch.full(SHAPE, STD, dtype=torch.float64),
        step=STEP,
        mean_old=means[1] if old else None,
        mean_reference=means[2] if reference else None,
    )


def apart(one, other, reduction):
    """Give half the squared distance of two means, an entry per member."""
    rows = (one - other).flatten(-3).flatten(0, -2).tolist()
    return [sum(x * x for x in row) / (len(row) if reduction == "mean" else 1) / 2 for row in rows]


def slow(decision, *, guard, clip, reduction, kl_form):
    """Walk the members in plain floats; give the loss and the fraction that is clipped."""
    length = LEVELS[STEP] - LEVELS[STEP + 1]
    log_ratio = decision.log_ratio.flatten().tolist()
    if guard:
        bias = apart(decision.mean, decision.mean_old, reduction)
        log_ratio = [(x + b / STD**2) * STD for x, b in zip(log_ratio, bias, strict=True)]
    terms, repeats, clipped = [], decision.repeats.flatten().tolist(), 0.0
    shares = decision.share.flatten().tolist()
    for x, a, w, often in zip(
        log_ratio, decision.advantage.flatten().tolist(),
        (decision.weight * decision.share).flatten().tolist(),
        repeats, strict=True,
    ):  # fmt: skip
        ratio = math.exp(x)
        clipped += often * (abs(ratio - 1) > clip)
        near = max(1 - clip, min(1 + clip, ratio))
        terms.append(w * max(-a * ratio, -a * near) / (length if guard else 1.0))
    penalty = 0.0
    if decision.mean_reference is not None:
        squares = apart(decision.mean, decision.mean_reference, reduction)
        unit = length if kl_form == "without_step_length" else 1.0
        total = sum(map(math.prod, zip(repeats, squares, shares, strict=True)))
        penalty = KL * total / len(squares) / STD**2 * unit
    return sum(terms) / len(terms) + penalty, clipped / len(terms)


@pytest.mark.parametrize("kind", ["policy_gradient", "guard"])
@pytest.mark.parametrize(
    ("clip", "reduction", "kl_form", "reference"),
    [
        (True, "mean", "divergence", True),
        (False, "mean", "without_step_length", True),
        (True, "sum", "without_step_length", True),
        (True, "mean", "divergence", False),
    ],
)
def test_the_loss_is_the_settings(kind, clip, reduction, kl_form, reference):
    """Weights, repeats, clip, reduction and divergence, of either kind."""
    how = {
        "objective.kind": kind, "objective.clip_range": CLIP, "objective.clip": clip,
        "objective.reduction": reduction, "objective.kl_form": kl_form,
        "objective.kl_weight": KL if reference else 0.0,
    }  # fmt: skip
    config, decision = config_of(SHIFTED, how), replayed(reference=reference)
    loss, stats = group_objective(config, build_sampler(config))(decision)
    expected, clipped = slow(
        decision, guard=kind == "guard", clip=CLIP if clip else math.inf, reduction=reduction,
        kl_form=kl_form,
    )  # fmt: skip

    assert loss.item() == pytest.approx(expected, rel=1e-6)  # the grid is in fp32
    assert (stats.reference_kl > 0) == reference
    assert stats.clip_fraction.item() == pytest.approx(clipped)
    assert (clipped > 0) == clip


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_what_a_trust_region_holds_back_counts_as_often_as_it_stands(reduction):
    """A term of several conditions is several elements, in the fraction as elsewhere."""
    bound = 4.0
    how = {
        "objective.kind": "divergence", "objective.divergence_range": bound,
        "objective.reduction": reduction,
    }  # fmt: skip
    config, decision = config_of(SHIFTED, how), replayed(reference=False)
    _, stats = group_objective(config, build_sampler(config))(decision)
    far = [x / STD**2 >= bound for x in apart(decision.mean, decision.mean_old, reduction)]
    rows = (decision.log_ratio, decision.advantage, decision.repeats)
    ratios, advantages, repeats = (row.flatten().tolist() for row in rows)
    held = [
        often * (away and x * a > 0)
        for away, x, a, often in zip(far, ratios, advantages, repeats, strict=True)
    ]

    assert stats.clip_fraction.item() == pytest.approx(sum(held) / len(held))
    assert 0.0 < sum(held) < len(held)
    assert sum(held) != sum(x > 0 for x in held)


def test_cps_has_the_divergence_in_either_form():
    """The released form leaves out a step's length, which is no part of this spread."""
    how = {"flow.kernel": "cps", "objective.kl_weight": KL, "objective.clip_range": CLIP}
    losses = []
    for form in ("divergence", "without_step_length"):
        config = config_of(SHIFTED, how, {"objective.kl_form": form})
        losses.append(group_objective(config, build_sampler(config))(replayed())[0].item())

    assert losses[0] == losses[1]


@pytest.mark.parametrize("sampler", ["lcm", "ddim"])
def test_a_diffusion_sampler_has_the_divergence(sampler):
    """Its steps have no length that a form could leave out."""
    how = {"sampler.kind": sampler, "objective.kl_weight": KL, "objective.clip_range": CLIP}
    config, decision = config_of(GROUP, how), replayed(old=False)
    loss, _ = group_objective(config, build_sampler(config))(decision)
    expected, _ = slow(decision, guard=False, clip=CLIP, reduction="mean", kl_form="divergence")

    assert loss.item() == pytest.approx(expected, rel=1e-12)


# -- the weights of steps ----------------------------------------------------------------


def decisions_at(*steps):
    """Give decisions of these steps; nothing else of them counts."""
    zero = torch.zeros(1, 1, 1, 1, 1, 1)
    return tuple(
        GroupDecision(step=step, depth=0, state=zero, action=zero, log_prob=zero[..., 0, 0, 0])
        for step in steps
    )


@pytest.mark.parametrize("kernel", ["sde", "constant", "cps"])
@pytest.mark.parametrize("steps", [(0, 1, 2), (2,), (0, 2)])
def test_steps_are_weighed_by_the_noise_they_add(kernel, steps):
    """Each step's spread over the mean of those that are trained."""
    config = config_of(SHIFTED, {"flow.kernel": kernel, "objective.step_weight": "noise"})
    found = step_weights(config, build_sampler(config), decisions_at(*steps))
    spreads = [step_oracle(kernel, 0.0, 0.0, LEVELS[s], LEVELS[s + 1], 0.7)[1] for s in steps]
    mean = sum(spreads) / len(spreads)

    assert found == pytest.approx([spread / mean for spread in spreads], rel=1e-5)


def test_steps_are_alike_by_default():
    """Whatever noise they add."""
    config = config_of(FLOW, GROUP)

    assert step_weights(config, build_sampler(config), decisions_at(0, 3)) == (1.0, 1.0)
