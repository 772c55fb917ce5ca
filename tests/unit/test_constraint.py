"""Threshold curriculum and dual step: oracle, laws, golden values, errors. No gradients."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mvczigal_ref.constraint import ConstraintState, constraint_step
from mvczigal_ref.errors import NonFiniteError
from tests.golden import constants, tensors
from tests.unannotated import without_shape_checks

REWARD = st.floats(-10.0, 10.0)
DECAY = st.floats(0.0, 1.0)
STEP_SIZE = st.floats(0.0, 2.0)
MAXIMUM = st.floats(0.1, 10.0)
ORDER = st.sampled_from(["threshold_first", "multiplier_first"])
STARTED = st.builds(
    ConstraintState, multiplier=st.floats(0.0, 5.0), threshold=REWARD, initialised=st.just(True)
)
SETTINGS = st.fixed_dictionaries(
    {
        "step_size_violated": STEP_SIZE,
        "step_size_satisfied": STEP_SIZE,
        "multiplier_max": MAXIMUM,
        "threshold_decay": DECAY,
        "order": ORDER,
    }
)


# -- oracle --------------------------------------------------------------------------------


@given(STARTED, REWARD, SETTINGS)
def test_step_is_an_average_and_a_clipped_dual_ascent(state, mean, settings):
    """Written out once more, with every setting named."""
    decay = settings["threshold_decay"]
    threshold = state.threshold * decay + mean * (1.0 - decay)
    used = threshold if settings["order"] == "threshold_first" else state.threshold
    size = settings["step_size_violated" if mean < used else "step_size_satisfied"]
    multiplier = state.multiplier + size * (used - mean)
    after = constraint_step(state, mean, **settings)

    assert after.initialised
    assert after.threshold == pytest.approx(threshold, rel=1e-12, abs=1e-13)
    assert after.multiplier == pytest.approx(
        max(0.0, min(settings["multiplier_max"], multiplier)), rel=1e-12, abs=1e-13
    )


@given(STARTED, REWARD)
def test_slack_is_the_mean_above_the_threshold(state, mean):
    """Negative means violated."""
    assert state.slack(mean) == mean - state.threshold


def test_defaults_are_the_papers():
    """0.1 on violation, 0.01 on slack, 0.99 kept, at most 5, threshold first."""
    state = ConstraintState(multiplier=1.0, threshold=4.0, initialised=True)

    below = constraint_step(state, 3.0)
    assert below.threshold == pytest.approx(3.99, rel=1e-12)
    assert below.multiplier == pytest.approx(1.0 + 0.1 * 0.99, rel=1e-12)
    above = constraint_step(state, 5.0)
    assert above.threshold == pytest.approx(4.01, rel=1e-12)
    assert above.multiplier == pytest.approx(1.0 - 0.01 * 0.99, rel=1e-12)
    assert constraint_step(state, -1000.0).multiplier == 5.0
    assert ConstraintState() == ConstraintState(multiplier=0.0, threshold=0.0, initialised=False)


# -- laws ----------------------------------------------------------------------------------


@given(STARTED, st.lists(REWARD, min_size=1, max_size=10), SETTINGS)
def test_stays_in_the_box(state, means, settings):
    """The multiplier never leaves [0, maximum], nor the threshold the range of what it saw."""
    seen = [state.threshold, *means]
    for mean in means:
        state = constraint_step(state, mean, **settings)
        assert 0.0 <= state.multiplier <= settings["multiplier_max"]
        assert min(seen) - 1e-12 <= state.threshold <= max(seen) + 1e-12


@given(STARTED, REWARD, SETTINGS)
def test_violation_never_lowers_and_slack_never_raises(state, mean, settings):
    """The sign law, away from the upper bound."""
    assume(state.multiplier <= settings["multiplier_max"])
    after = constraint_step(state, mean, **settings)
    slack = (after if settings["order"] == "threshold_first" else state).slack(mean)

    if slack < 0.0:
        assert after.multiplier >= state.multiplier
    else:
        assert after.multiplier <= state.multiplier


@given(STARTED, SETTINGS)
def test_a_mean_on_the_threshold_is_a_fixed_point(state, settings):
    """Nothing moves where the constraint is just met."""
    assume(state.multiplier <= settings["multiplier_max"])
    after = constraint_step(state, state.threshold, **settings)

    assert after.threshold == pytest.approx(state.threshold, rel=1e-12, abs=1e-13)
    assert after.multiplier == pytest.approx(state.multiplier, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("order", ["threshold_first", "multiplier_first"])
def test_full_step_on_violation_and_relaxed_on_slack(order):
    """With a fixed threshold the two step sizes show alone."""
    state = ConstraintState(multiplier=1.0, threshold=2.0, initialised=True)
    settings = {
        "step_size_violated": 0.5,
        "step_size_satisfied": 0.125,
        "threshold_decay": 1.0,
        "order": order,
    }

    assert constraint_step(state, 1.0, **settings).multiplier == 1.5
    assert constraint_step(state, 3.0, **settings).multiplier == 0.875


def test_the_orders_differ_in_the_threshold_that_the_multiplier_sees():
    """The new one, already moved half way, or the old one."""
    state = ConstraintState(multiplier=0.0, threshold=4.0, initialised=True)
    settings = {"step_size_violated": 1.0, "threshold_decay": 0.5}
    threshold_first = constraint_step(state, 2.0, order="threshold_first", **settings)
    multiplier_first = constraint_step(state, 2.0, order="multiplier_first", **settings)

    assert threshold_first.threshold == multiplier_first.threshold == 3.0
    assert (threshold_first.multiplier, multiplier_first.multiplier) == (1.0, 2.0)


@given(STARTED, st.lists(REWARD, min_size=1, max_size=5), SETTINGS)
def test_a_fixed_threshold_does_not_move(state, means, settings):
    """Decay 1 is the ablation with a constant threshold."""
    start = state.threshold
    for mean in means:
        state = constraint_step(state, mean, **{**settings, "threshold_decay": 1.0})

    assert state.threshold == start


@given(STARTED, REWARD, STEP_SIZE, SETTINGS)
def test_equal_step_sizes_are_one_step_size(state, mean, size, settings):
    """Equal and opposite slack then moves the multiplier equally and oppositely."""
    settings |= {"step_size_violated": size, "step_size_satisfied": size, "threshold_decay": 1.0}
    settings["multiplier_max"] = math.inf
    start = ConstraintState(multiplier=100.0, threshold=state.threshold, initialised=True)
    up = constraint_step(start, state.threshold - abs(mean), **settings)
    down = constraint_step(start, state.threshold + abs(mean), **settings)

    assert up.multiplier - 100.0 == pytest.approx(100.0 - down.multiplier, rel=1e-9, abs=1e-9)


@given(st.floats(0.0, 5.0), REWARD, SETTINGS)
def test_the_first_mean_becomes_the_threshold(multiplier, mean, settings):
    """Whatever its sign, whatever stood there before; the multiplier rests."""
    assume(multiplier <= settings["multiplier_max"])
    fresh = ConstraintState(multiplier=multiplier, threshold=1.5)

    assert fresh.slack(mean) == 0.0
    assert constraint_step(fresh, mean, **settings) == ConstraintState(
        multiplier=multiplier, threshold=mean, initialised=True
    )


def test_a_negative_threshold_keeps_pace():
    """Negative rewards, which freeze an average that starts above zero, are averaged too."""
    state = constraint_step(ConstraintState(), -8.0)
    after = constraint_step(state, -4.0, threshold_decay=0.75)

    assert after.threshold == -7.0
    assert (
        constraint_step(after, -11.0, threshold_decay=1.0, step_size_violated=0.5).multiplier == 2.0
    )


def test_step_sizes_of_zero_hold_the_multiplier_alone():
    """A warm-up: the threshold already follows."""
    state = ConstraintState(multiplier=0.5, threshold=4.0, initialised=True)
    after = constraint_step(
        state, 0.0, step_size_violated=0.0, step_size_satisfied=0.0, threshold_decay=0.5
    )

    assert after == ConstraintState(multiplier=0.5, threshold=2.0, initialised=True)


def test_an_infinite_maximum_does_not_clip():
    """And the lower bound of 0 stays."""
    state = ConstraintState(multiplier=1.0, threshold=100.0, initialised=True)
    settings = {"threshold_decay": 1.0, "multiplier_max": math.inf, "step_size_satisfied": 1.0}

    assert constraint_step(state, 0.0, **settings).multiplier == 11.0
    assert constraint_step(state, 200.0, **settings).multiplier == 0.0


# -- golden --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", "ab")
def test_released_trainer_trajectory(case):
    """Forty iterations: growing, relaxing, held at both bounds, and through the warm-up."""
    golden = tensors("objective", f"lagrange_{case}")
    made_with = constants("objective", f"lagrange_{case}")
    size = made_with["lambda_lr"]
    threshold = float(made_with["constrain_threshold_init"])
    state = ConstraintState(
        multiplier=made_with["lambda_init"], threshold=threshold, initialised=threshold > 0.0
    )
    rows = zip(
        golden["mv_rewards"],
        *(golden[k].tolist() for k in ("lam", "threshold", "lr_used")),
        strict=True,
    )
    for index, (rewards, multiplier, threshold, used) in enumerate(rows):
        mean = rewards.mean().item()
        held = index < made_with["lambda_update_delay_steps"]
        started = state.initialised
        state = constraint_step(
            state,
            mean,
            step_size_violated=0.0 if held else size,
            step_size_satisfied=0.0 if held else 0.1 * size,
            multiplier_max=made_with["lambda_max"],
            threshold_decay=made_with["ema_beta"],
        )
        assert state.multiplier == pytest.approx(multiplier, rel=1e-12, abs=1e-14)
        assert state.threshold == pytest.approx(threshold, rel=1e-12)
        # In the first step the slack is nothing but the rounding of the mean.
        if started and not held:
            assert used == pytest.approx(size if state.slack(mean) < 0.0 else 0.1 * size, rel=1e-12)


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("initialised", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_a_mean_that_is_not_finite(bad, initialised):
    """It would stay in the threshold for ever."""
    state = ConstraintState(threshold=1.0, initialised=initialised)
    with pytest.raises(NonFiniteError) as caught:
        constraint_step(state, bad)

    assert caught.value.what == "joint_mean"
    assert caught.value.value == pytest.approx(bad, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(
            (name, bad)
            for name in ("step_size_violated", "step_size_satisfied")
            for bad in (-0.1, math.nan, math.inf)
        ),
        ("multiplier_max", 0.0),
        ("multiplier_max", -1.0),
        ("multiplier_max", math.nan),
        ("threshold_decay", -0.01),
        ("threshold_decay", 1.01),
        ("threshold_decay", math.nan),
    ],
)
def test_refuses_a_setting_out_of_range(name, bad):
    """Also where this step would not have read it."""
    with pytest.raises(ValueError, match=f"`{name}` must be .*; got {bad}"):
        constraint_step(ConstraintState(), 1.0, **{name: bad})


def test_refuses_an_unknown_order():
    """And names both."""
    with (
        without_shape_checks(),
        pytest.raises(ValueError, match="`order` must be 'threshold_first'"),
    ):
        constraint_step(ConstraintState(), 1.0, order="both")


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("multiplier", -0.1),
        ("multiplier", math.nan),
        ("multiplier", math.inf),
        ("threshold", math.nan),
        ("threshold", math.inf),
    ],
)
def test_refuses_a_broken_state(name, bad):
    """A checkpoint that holds one is found at loading."""
    with pytest.raises(ValueError, match=f"`{name}` must be finite.*; got {bad}"):
        ConstraintState(**{name: bad})
