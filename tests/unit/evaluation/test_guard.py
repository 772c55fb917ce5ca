"""`reward.guard`: oracle, laws, gradients, errors."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.evaluation.guard import GuardCheck, GuardState, guard_step, mean_pairwise_distance

NUMBER = st.floats(-100, 100).map(lambda x: round(x, 3))


def check(iteration=0, reward=(0.0, 0.0), **watched):
    """Make a check of one trained reward; watched scores by name, one called "other" if none."""
    return GuardCheck(
        iteration=iteration,
        trained={"reward": tuple(map(float, reward))},
        watched={k: tuple(map(float, v)) for k, v in (watched or {"other": (0.0, 0.0)}).items()},
    )


def judged(first, second, **settings):
    """Judge a second check by a first."""
    state, _ = guard_step(None, first, **settings)
    return guard_step(state, second, **settings)


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "margin", "fired"),
    [
        ("reward", 0.99, True),
        ("reward", 1.0, True),
        ("reward", 1.01, False),
        # Falls of 0.5, 1 and 1.5: the deviation is 0.5, the error 0.5 / sqrt(3).
        ("standard_errors", 2 * math.sqrt(3) * 0.999, True),
        ("standard_errors", 2 * math.sqrt(3) * 1.001, False),
    ],
)
def test_it_fires_at_the_margin_and_not_before(unit, margin, fired):
    """A fall of the mean by 1; the margin itself is too much."""
    first = check(0, (1.0, 1.0, 1.0), other=(5.0, 5.0, 5.0))
    second = check(7, (1.0, 1.0, 1.5), other=(4.5, 4.0, 3.5))
    state, verdict = judged(first, second, margin=margin, unit=unit)

    assert verdict.fired is state.fired is fired
    assert verdict.risen == ("reward",)
    assert verdict.fallen == (("other",) if fired else ())
    assert (state.best, state.latest) == (first, second)


def test_gains_are_means_and_standard_errors():
    """Of the paired differences between the best check and the latest."""
    state, _ = judged(check(0, (1.0, 3.0), other=(0.0, 0.0)), check(1, (2.0, 6.0), other=(-1, -3)))

    assert state.gains() == {"reward": (2.0, 1.0), "other": (-2.0, 1.0)}


def test_the_distance_is_the_mean_over_pairs():
    """Written out in plain floats."""
    features = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    expected = [
        sum(
            math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 5)
            for x, y in itertools.combinations(samples, 2)
        )
        / 6
        for samples in features.tolist()
    ]

    torch.testing.assert_close(mean_pairwise_distance(features), torch.tensor(expected).double())


# -- laws --------------------------------------------------------------------------------

TABLES = st.integers(2, 4).flatmap(
    lambda n: st.lists(st.lists(NUMBER, min_size=n, max_size=n), min_size=4, max_size=4)
)


@given(TABLES, st.floats(0, 10), st.sampled_from(["standard_errors", "reward"]))
def test_it_never_fires_while_what_is_watched_rises(tables, rise, unit):
    """However the trained reward moves; the check becomes the best one."""
    reward, later, watched, _ = tables
    first = check(0, reward, other=watched)
    second = check(1, later, other=[x + rise for x in watched])
    state, verdict = judged(first, second, margin=1e-6, unit=unit)

    # Adding may round by less than the number itself can tell.
    rose = all(a >= b for a, b in zip(second.watched["other"], watched, strict=True))
    assert rose
    assert not verdict.fired
    assert verdict.improved
    assert state.best == second


@given(TABLES, st.floats(0, 10), st.sampled_from(["standard_errors", "reward"]))
def test_it_never_fires_while_the_trained_reward_does_not_rise(tables, fall, unit):
    """Then nothing was bought with the fall."""
    reward, _, watched, other = tables
    first = check(0, reward, other=watched)
    second = check(1, [x - fall for x in reward], other=other)

    assert not judged(first, second, margin=1e-6, unit=unit)[1].fired


@given(TABLES, st.randoms(), st.sampled_from(["standard_errors", "reward"]))
def test_the_order_of_prompts_does_not_matter(tables, random, unit):
    """The same verdict to the last bit, and the same gains."""
    order = list(range(len(tables[0])))
    random.shuffle(order)
    found = []
    for places in (range(len(order)), order):
        reward, later, watched, fallen = ([table[i] for i in places] for table in tables)
        pair = check(0, reward, other=watched), check(1, later, other=fallen)
        state, verdict = judged(*pair, margin=0.5, unit=unit)
        found.append((verdict, state.fired, state.gains()))

    assert found[0] == found[1]


@given(TABLES, NUMBER)
def test_a_score_s_zero_and_unit_do_not_matter_for_standard_errors(tables, shift):
    """Only reward units feel a factor. Powers of two change no bit."""
    reward, later, watched, fallen = tables
    plain = judged(check(0, reward, other=watched), check(1, later, other=fallen))[1]
    scaled = judged(
        check(0, reward, other=[4 * x for x in watched]),
        check(1, later, other=[4 * x for x in fallen]),
    )[1]

    assert plain == scaled


def test_small_falls_add_up():
    """They are measured from the best check and not from the one before."""
    state, _ = guard_step(None, check(0, (0, 0), other=(5, 5)), margin=1.0, unit="reward")
    fired = []
    for turn in (1, 2, 3):
        low = (5 - 0.4 * turn,) * 2
        state, verdict = guard_step(
            state, check(turn, (turn, turn), other=low), margin=1.0, unit="reward"
        )
        fired.append(verdict.fired)

    assert fired == [False, False, True]
    assert state.best.iteration == 0


@pytest.mark.parametrize(("fallen", "expected"), [("any", True), ("all", False)])
def test_one_fall_or_all_of_them(fallen, expected):
    """As the setting asks; what does not fall far enough is not named."""
    first = check(0, (0, 0), one=(5, 5), two=(5, 5))
    second = check(1, (1, 1), one=(3, 3), two=(4.9, 4.9))
    _, verdict = judged(first, second, margin=1.0, unit="reward", fallen=fallen)

    assert verdict.fired is expected
    assert verdict.fallen == ("one",)
    assert not verdict.improved


def test_the_best_check_is_the_newest_that_is_nowhere_worse():
    """A score that rises does not make up for one that falls."""
    state, _ = guard_step(None, check(0, one=(1, 1), two=(1, 1)))
    best = []
    for turn, (one, two) in enumerate([(2, 1), (3, 0.9), (2, 1)], 1):
        state, _ = guard_step(state, check(turn, one=(one, one), two=(two, two)))
        best.append(state.best.iteration)

    assert best == [1, 1, 3]


def test_prompts_that_all_fall_alike_fire():
    """The standard error is 0, and any fall is more than any number of those."""
    first = check(0, (0, 0), other=(5, 5))
    assert judged(first, check(1, (1, 1), other=(4.5, 4.5)), margin=100.0)[1].fired
    assert not judged(first, check(1, (1, 1), other=(5, 5)), margin=100.0)[1].fired


@given(TABLES)
def test_the_state_survives_the_way_to_json_and_back(tables):
    """Through text, to the same bits."""
    reward, later, watched, fallen = tables
    state, _ = judged(check(0, reward, other=watched), check(1, later, other=fallen))

    assert GuardState.from_json(json.loads(json.dumps(state.as_json()))) == state


@given(st.integers(2, 4), st.integers(1, 3))
def test_samples_that_are_alike_have_no_distance(noises, prompts):
    """And a common shift adds none; scaling scales."""
    alike = torch.ones(prompts, 1, 3).expand(-1, noises, -1)
    features = torch.randn(prompts, noises, 3, generator=torch.Generator().manual_seed(1)).double()

    assert mean_pairwise_distance(alike).tolist() == [0.0] * prompts
    found = mean_pairwise_distance(features)
    torch.testing.assert_close(mean_pairwise_distance(3 * features + 1), 3 * found)
    torch.testing.assert_close(mean_pairwise_distance(features.flip(1)), found)


# -- gradients ---------------------------------------------------------------------------


def test_the_distance_has_the_gradient_of_its_differences():
    """Held against finite differences."""
    features = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).double()

    assert torch.autograd.gradcheck(mean_pairwise_distance, features.requires_grad_())


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, -1.0, math.inf, math.nan])
def test_refuses_a_margin_that_is_none(margin):
    """Zero would fire at noise."""
    with pytest.raises(ValueError, match=r"`margin` must be positive and finite; got"):
        guard_step(None, check(), margin=margin)


@pytest.mark.parametrize("choice", ["unit", "fallen"])
def test_refuses_an_unknown_choice(choice):
    """By its name, where types are not checked before."""
    with pytest.raises(Exception, match=rf"{choice}"):
        guard_step(None, check(), **{choice: "percent"})


@pytest.mark.parametrize(
    ("second", "kind"),
    [
        (check(1, another=(0, 0)), "watched"),
        (check(1, other=(0, 0, 0)), "watched"),
        (check(1, (0, 0, 0)), "trained"),
    ],
)
def test_refuses_another_check_s_prompts_and_scores(second, kind):
    """A pair needs both halves."""
    with pytest.raises(ValueError, match=rf"`check` must count the prompts .* {kind} scores"):
        judged(check(), second)


def test_refuses_a_single_prompt_where_errors_are_needed():
    """Reward units need none."""
    with pytest.raises(ValueError, match="two or more for standard errors"):
        guard_step(None, check(0, (1,), other=(1,)))
    guard_step(None, check(0, (1,), other=(1,)), unit="reward")


def test_refuses_to_watch_nothing():
    """The guard would never fire."""
    nothing = GuardCheck(iteration=0, trained={"reward": (1.0, 2.0)}, watched={})
    with pytest.raises(ValueError, match="must hold a trained reward and a watched score"):
        guard_step(None, nothing)


@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 2, 0)])
def test_refuses_samples_that_have_no_distance(shape):
    """One sample, or no feature."""
    with pytest.raises(ValueError, match="`features` must hold two samples per prompt or more"):
        mean_pairwise_distance(torch.zeros(shape))
