"""Advantages of a pair: oracle, laws, gradients, golden values, errors."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mvczigal_ref.advantage import PairAdvantages, advantage_gap, joint_share, pair_advantages
from mvczigal_ref.advantage.pair import standardise_arms
from mvczigal_ref.errors import NonFiniteError
from tests.golden import constants, tensors
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import pair_rewards

TABLES = ("per_view_zigzag", "per_view_standard", "joint_view_zigzag", "joint_view_standard")
SHARE = st.floats(0.0, 1.0)
MULTIPLIER = st.floats(0.0, 100.0)


def whiten(first, second, eps):
    """Standardise two lists of floats together."""
    both = [*first, *second]
    centre, scale = statistics.fmean(both), statistics.pstdev(both) + eps
    return [(x - centre) / scale for x in first], [(x - centre) / scale for x in second]


def mixed(rewards, share):
    """Gap of a pair's rewards in one call."""
    return advantage_gap(pair_advantages(**rewards), share=share)


def ones():
    """Return tables of one object fewer than views, all rewards equal."""
    return {name: torch.ones(2, 3) if "per_view" in name else torch.ones(2) for name in TABLES}


# -- oracle --------------------------------------------------------------------------------


@given(pair_rewards(), st.floats(0.01, 1.0))
def test_arms_are_standardised_together_and_kinds_apart(rewards, eps):
    """Per-view and joint rewards never share a mean or a deviation."""
    advantages = pair_advantages(**rewards, eps=eps)
    for kind in ("per_view", "joint_view"):
        names = f"{kind}_zigzag", f"{kind}_standard"
        expected = whiten(*(rewards[name].flatten().tolist() for name in names), eps)
        for name, values in zip(names, expected, strict=True):
            actual = getattr(advantages, name)
            assert actual.shape == rewards[name].shape
            assert actual.flatten().tolist() == pytest.approx(values, rel=1e-12, abs=1e-11)


@given(pair_rewards(), MULTIPLIER)
def test_constrained_gap_is_the_difference_of_constrained_advantages(rewards, multiplier):
    """(A + lambda M) / (1 + lambda), zigzag minus standard, view by view."""
    advantages = PairAdvantages(**rewards)
    gap = advantage_gap(advantages, share=joint_share("constrained", multiplier=multiplier))
    per_view, joint = (
        (rewards[f"{kind}_zigzag"] - rewards[f"{kind}_standard"]).tolist()
        for kind in ("per_view", "joint_view")
    )
    for row, views, one in zip(gap.tolist(), per_view, joint, strict=True):
        expected = [(x + multiplier * one) / (1.0 + multiplier) for x in views]
        assert row == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("mode", "settings", "share"),
    [
        ("constrained", {"multiplier": 0.0}, 0.0),
        ("constrained", {"multiplier": 3.0, "joint_weight": 0.1}, 0.75),
        ("joint", {"multiplier": 3.0, "joint_weight": 0.1}, 1.0),
        ("per_view", {"multiplier": 3.0, "joint_weight": 0.1}, 0.0),
        ("weighted_sum", {"multiplier": 3.0, "joint_weight": 0.1}, 0.1),
        ("weighted_sum", {"joint_weight": 0.0}, 0.0),
        ("weighted_sum", {"joint_weight": 1.0}, 1.0),
        ("weighted_sum", {}, 0.0),
        ("constrained", {}, 0.0),
    ],
)
def test_each_mode_is_one_share(mode, settings, share):
    """A mode reads its own setting and no other."""
    assert joint_share(mode, **settings) == share


# -- laws ----------------------------------------------------------------------------------


@given(pair_rewards(), SHARE)
def test_swapping_the_arms_negates_the_gap(rewards, share):
    """Which arm did better is a sign."""
    swapped = {name: rewards[_partner(name)] for name in TABLES}

    torch.testing.assert_close(mixed(swapped, share), -mixed(rewards, share), rtol=1e-9, atol=1e-6)


@given(pair_rewards(), SHARE, st.randoms(use_true_random=False))
def test_permuting_the_objects_permutes_the_gap(rewards, share, random):
    """An object's place says nothing."""
    order = list(range(len(rewards["joint_view_zigzag"])))
    random.shuffle(order)
    permuted = {name: table[order] for name, table in rewards.items()}

    torch.testing.assert_close(
        mixed(permuted, share), mixed(rewards, share)[order], rtol=1e-9, atol=1e-6
    )


@given(pair_rewards())
def test_multiplier_zero_is_per_view_only(rewards):
    """A satisfied constraint leaves no trace of the joint rewards."""
    share = joint_share("constrained", multiplier=0.0)
    advantages = pair_advantages(**rewards)

    assert torch.equal(
        advantage_gap(advantages, share=share),
        advantages.per_view_zigzag - advantages.per_view_standard,
    )


@pytest.mark.parametrize("multiplier", [1e17, 1e308])
@given(rewards=pair_rewards())
def test_a_huge_multiplier_is_joint_only(multiplier, rewards):
    """Every view then gets the object's joint gap, and nothing overflows."""
    share = joint_share("constrained", multiplier=multiplier)
    advantages = pair_advantages(**rewards)
    joint = advantages.joint_view_zigzag - advantages.joint_view_standard

    assert share == joint_share("joint")
    assert torch.equal(
        advantage_gap(advantages, share=share),
        joint[:, None].expand_as(advantages.per_view_zigzag),
    )


@given(MULTIPLIER, MULTIPLIER)
def test_share_grows_with_the_multiplier_and_stays_below_one(one, two):
    """More violation, more weight on the joint reward."""
    low, high = sorted((one, two))

    assert (
        0.0
        <= joint_share("constrained", multiplier=low)
        <= joint_share("constrained", multiplier=high)
        < 1.0
    )


@given(pair_rewards(), SHARE)
def test_an_arm_that_wins_everywhere_has_a_positive_gap(rewards, share):
    """Standardising both arms together keeps the sign of their difference."""
    for kind in ("per_view", "joint_view"):
        rewards[f"{kind}_zigzag"] = rewards[f"{kind}_standard"] + 1.0

    assert (mixed(rewards, share) > 0.0).all()


@given(SHARE, st.floats(-10.0, 10.0, allow_subnormal=False))
def test_constant_rewards_give_exactly_zero(share, value):
    """Where nothing is better, nothing is learnt."""
    rewards = {name: torch.full_like(table, value) for name, table in ones().items()}

    assert torch.equal(mixed(rewards, share), torch.zeros(2, 3))


def test_one_object_with_one_view_still_compares_its_arms():
    """The smallest batch has two samples, so the better arm gets +1 and the other -1."""
    rewards = {
        "per_view_zigzag": torch.tensor([[0.4]]),
        "per_view_standard": torch.tensor([[0.2]]),
        "joint_view_zigzag": torch.tensor([3.0]),
        "joint_view_standard": torch.tensor([7.0]),
    }
    advantages = pair_advantages(**rewards)

    assert [getattr(advantages, name).item() for name in TABLES] == pytest.approx(
        [1.0, -1.0, -1.0, 1.0], rel=1e-6
    )
    assert mixed(rewards, 0.0).item() == pytest.approx(2.0, rel=1e-6)
    assert mixed(rewards, 1.0).item() == pytest.approx(-2.0, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_of_rewards_equal_up_to_rounding_has_a_gap_of_zero(dtype):
    """Also where other pairs differ, for an objective may read the sign of a gap alone."""
    first, last = torch.tensor(20.0, dtype=dtype), torch.tensor(30.0, dtype=dtype)
    near = torch.nextafter(first, last)
    rewards = {
        "per_view_zigzag": torch.stack([torch.stack([near, last]), torch.stack([first, first])]),
        "per_view_standard": torch.full((2, 2), 20.0, dtype=dtype),
        "joint_view_zigzag": torch.stack([first, last]),
        "joint_view_standard": torch.stack([near, first]),
    }
    gap = mixed(rewards, 0.0)
    advantages = pair_advantages(**rewards)

    assert gap[0, 1] > 1.0
    assert gap.flatten()[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]
    assert mixed(rewards, 1.0)[0].tolist() == [0.0, 0.0]
    assert mixed(rewards, 1.0)[1, 0] > 1.0
    assert advantages.per_view_standard[0, 0] == advantages.per_view_zigzag[0, 0]


@given(pair_rewards(), SHARE)
def test_raw_rewards_give_the_unscaled_gap(rewards, share):
    """The paper's R(z) - R(s), without standardising."""
    gap = advantage_gap(PairAdvantages(**rewards), share=share)
    per_view = rewards["per_view_zigzag"] - rewards["per_view_standard"]
    joint = rewards["joint_view_zigzag"] - rewards["joint_view_standard"]

    torch.testing.assert_close(gap, per_view.lerp(joint[:, None], share), rtol=1e-9, atol=1e-9)


# -- gradients -----------------------------------------------------------------------------


def test_the_gap_carries_no_gradient():
    """A differentiable scorer does not turn the regression's target into a parameter."""
    rewards = {name: table.requires_grad_() for name, table in ones().items()}

    assert not mixed(rewards, 0.5).requires_grad


# -- golden --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", "ab")
def test_released_trainer(case):
    """Recorded arms: 1 is standard, 2 is zigzag; joint values there repeat over views."""
    golden = tensors("objective", f"advantages_{case}")
    made_with = constants("objective", f"advantages_{case}")
    processes, views = int(made_with["num_processes"]), int(made_with["num_views"])
    per_view = golden["rewards"].reshape(processes, 2, -1, views)
    joint = golden["mv_rewards"].reshape(processes, 2, -1)
    advantages = pair_advantages(
        per_view_zigzag=per_view[:, 1].flatten(0, 1),
        per_view_standard=per_view[:, 0].flatten(0, 1),
        joint_view_zigzag=joint[:, 1].flatten(),
        joint_view_standard=joint[:, 0].flatten(),
    )
    recorded = {
        "per_view_zigzag": golden["adv2"],
        "per_view_standard": golden["adv1"],
        "joint_view_zigzag": golden["mv_adv2"],
        "joint_view_standard": golden["mv_adv1"],
    }
    for name, table in recorded.items():
        actual = getattr(advantages, name)
        by_view = actual if actual.ndim == 2 else actual[:, None].expand(-1, views)
        # fp32, of numbers of size 1 that are differences.
        torch.testing.assert_close(by_view, table.reshape(-1, views), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("case", "abc")
def test_released_trainer_gap(case):
    """The recorded difference is standard minus zigzag, a view at a time."""
    golden = tensors("objective", f"mvzigal_loss_{case}")
    made_with = constants("objective", f"mvzigal_loss_{case}")
    # There each view has a joint advantage of its own: an object per view.
    advantages = PairAdvantages(
        per_view_zigzag=golden["adv2"][:, None],
        per_view_standard=golden["adv1"][:, None],
        joint_view_zigzag=golden["mv_adv2"],
        joint_view_standard=golden["mv_adv1"],
    )
    share = joint_share("constrained", multiplier=made_with["lam"])

    assert golden["lam"].item() == made_with["lam"]
    torch.testing.assert_close(
        advantage_gap(advantages, share=share)[:, 0],
        -golden["advantage_diff"],
        rtol=1e-12,
        atol=1e-15,
    )


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", TABLES)
def test_refuses_a_reward_that_is_not_finite(name, bad):
    """The message says whose reward it is: arm, kind, object and view."""
    rewards = ones()
    per_view = rewards[name].ndim == 2
    rewards[name][(1, 2) if per_view else (1,)] = bad
    with pytest.raises(NonFiniteError) as caught:
        pair_advantages(**rewards)

    assert caught.value.what == name
    assert (caught.value.object, caught.value.view) == (1, 2 if per_view else None)


@pytest.mark.parametrize("name", TABLES)
def test_refuses_half_precision(name):
    """Of every table."""
    rewards = ones()
    rewards[name] = rewards[name].half()
    with pytest.raises(ValueError, match=f"`{name}` must be float32 or float64"):
        pair_advantages(**rewards)


@pytest.mark.parametrize("name", TABLES[1:])
def test_refuses_tables_that_do_not_pair(name):
    """With and without the annotations' own check."""
    rewards = ones()
    rewards[name] = rewards[name][:1]
    with pytest.raises(TypeCheckError):
        pair_advantages(**rewards)
    with without_shape_checks(), pytest.raises(ValueError, match=rf"`{name}` must have shape \(2,"):
        pair_advantages(**rewards)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan])
def test_refuses_an_eps_that_does_not_guard(eps):
    """The setting reaches the standardisation."""
    with pytest.raises(ValueError, match="`eps` must be positive"):
        pair_advantages(**ones(), eps=eps)


@pytest.mark.parametrize("mode", ["constrained", "joint"])
@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_refuses_a_multiplier_out_of_range(mode, bad):
    """In every mode, so that a bad number does not hide until the mode changes."""
    with pytest.raises(
        ValueError, match=f"`multiplier` must be finite and not negative; got {bad}"
    ):
        joint_share(mode, multiplier=bad)


@pytest.mark.parametrize("mode", ["weighted_sum", "per_view"])
@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_refuses_a_weight_out_of_range(mode, bad):
    """A weighted sum interpolates, it does not extrapolate."""
    with pytest.raises(ValueError, match=rf"`joint_weight` must be in \[0, 1\]; got {bad}"):
        joint_share(mode, joint_weight=bad)


def test_refuses_an_unknown_mode():
    """And names the known ones."""
    with (
        without_shape_checks(),
        pytest.raises(ValueError, match=r"`mode` must be one of .*'joint'"),
    ):
        joint_share("both")


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_refuses_a_share_out_of_range(share):
    """A multiplier passed by mistake is caught as soon as it exceeds 1."""
    with pytest.raises(ValueError, match=rf"`share` must be in \[0, 1\]; got {share}"):
        advantage_gap(PairAdvantages(**ones()), share=share)


def _partner(name):
    """Name the other arm's table."""
    kind, arm = name.rsplit("_", 1)
    return f"{kind}_{'standard' if arm == 'zigzag' else 'zigzag'}"


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("shape", [(2,), (2, 2)])
def test_refuses_a_gap_of_tables_that_would_broadcast(name, shape):
    """Such as joint advantages that are repeated over views already, as many as objects."""
    tables = ones() | {"per_view_zigzag": torch.ones(2, 2), "per_view_standard": torch.ones(2, 2)}
    tables[name] = torch.ones(shape)
    with without_shape_checks():
        if shape == ((2, 2) if "per_view" in name else (2,)):
            advantage_gap(PairAdvantages(**tables), share=0.5)
            return
        with pytest.raises(ValueError, match=f"`{name}` must have"):
            advantage_gap(PairAdvantages(**tables), share=0.5)


def test_refuses_arms_of_other_shapes():
    """By their names, and not by an error of torch."""
    with without_shape_checks(), pytest.raises(ValueError, match="`standard` must have the shape"):
        standardise_arms(torch.ones(2), torch.ones(3))
