"""Which steps are stochastic: oracle, laws, errors."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.rollout.windows import (
    decaying_window,
    fixed_window,
    moving_steps,
    random_steps,
    random_window,
    sliding_window,
)
from tests.unannotated import without_shape_checks

ENDS = st.sampled_from(["stay", "restart"])


@st.composite
def grids(draw):
    """Draw a grid and a window that fits it."""
    num_steps = draw(st.integers(1, 12))
    return {"num_steps": num_steps, "size": draw(st.integers(1, num_steps))}


def walk(count, *, size, num_steps, stride, end, stay):
    """Move a window on, iteration by iteration, keeping a state."""
    start, spent, windows = 0, 0, []
    for _ in range(count):
        windows.append(tuple(start + k for k in range(size)))
        spent += 1
        if spent >= stay(start):
            if start < num_steps - size:
                start, spent = min(start + stride, num_steps - size), 0
            elif end == "restart":
                start, spent = 0, 0
    return windows


# -- oracle --------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(1, 5), st.integers(1, 3))
def test_a_fixed_window_is_counted_from_its_start(start, size, spacing):
    """In the smallest grid that it fits, and in no smaller one."""
    expected = tuple(start + k * spacing for k in range(size))

    assert (
        fixed_window(start=start, size=size, spacing=spacing, num_steps=expected[-1] + 1)
        == expected
    )
    if expected[-1]:
        with pytest.raises(ValueError, match="`start` must leave room for the window"):
            fixed_window(start=start, size=size, spacing=spacing, num_steps=expected[-1])


@given(grids(), st.integers(1, 4), st.integers(1, 3), ENDS)
def test_a_sliding_window_is_what_moving_it_step_by_step_gives(grid, interval, stride, end):
    """Any iteration at once, as if all before it had been walked."""
    how = {**grid, "stride": stride, "end": end}
    expected = walk(60, **how, stay=lambda start: interval)

    assert [sliding_window(iteration=n, interval=interval, **how) for n in range(60)] == expected


@given(grids(), st.integers(1, 6), st.integers(1, 3), ENDS, st.floats(0.0, 3.0), st.integers(0, 4))
def test_a_decaying_window_stays_shorter_and_shorter(grid, interval, stride, end, decay, after):
    """By an exponential of how far its start is beyond a step, and never less than once."""
    how = {**grid, "stride": stride, "end": end}

    def stay(start):
        return (
            interval if start <= after else math.ceil(interval * math.exp(decay * (after - start)))
        )

    windows = [
        decaying_window(iteration=n, interval=interval, decay=decay, decay_after=after, **how)
        for n in range(60)
    ]

    assert windows == walk(60, **how, stay=stay)


# -- laws ----------------------------------------------------------------------------------


@given(grids(), st.integers(1, 5), st.integers(0, 200), ENDS)
def test_without_decay_it_slides_steadily(grid, interval, iteration, end):
    """The one is a case of the other."""
    how = {**grid, "interval": interval, "iteration": iteration, "end": end}

    assert decaying_window(**how, decay=0.0, decay_after=0) == sliding_window(**how)


@given(grids(), st.integers(1, 4), st.integers(1, 4), ENDS)
def test_every_step_has_its_turn(grid, interval, stride, end):
    """Where the stride is no larger than the window, no step is left out, and none cut off."""
    stride = min(stride, grid["size"])
    windows = [
        sliding_window(iteration=n, interval=interval, stride=stride, end=end, **grid)
        for n in range(grid["num_steps"] * interval)
    ]

    assert {len(window) for window in windows} == {grid["size"]}
    assert {step for window in windows for step in window} == set(range(grid["num_steps"]))


def test_after_the_last_place_it_stays_or_starts_again():
    """By choice; to stay is the default."""
    how = {"size": 2, "num_steps": 4, "interval": 2}
    stays = [sliding_window(iteration=n, **how)[0] for n in range(9)]
    restarts = [sliding_window(iteration=n, **how, end="restart")[0] for n in range(9)]

    assert stays == [0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert restarts == [0, 0, 1, 1, 2, 2, 0, 0, 1]


def test_a_random_window_starts_everywhere_alike():
    """Both ends are drawn, nothing beyond, each as often as the others to sampling error."""
    count = 1200
    starts = Counter(
        random_window(seed=3, iteration=n, size=3, num_steps=10, first_start=1, last_start=4)[0]
        for n in range(count)
    )

    assert sorted(starts) == [1, 2, 3, 4]
    # Five standard errors of a share of a quarter.
    assert all(abs(k / count - 0.25) < 5 * math.sqrt(0.25 * 0.75 / count) for k in starts.values())


@given(grids(), st.integers(0, 99), st.integers(0, 99))
def test_a_random_window_is_a_fixed_one(grid, seed, iteration):
    """Of neighbouring steps, from the grid's start unless told otherwise."""
    last = grid["num_steps"] - grid["size"]
    window = random_window(seed=seed, iteration=iteration, last_start=last, **grid)

    assert 0 <= window[0] <= last
    assert window == fixed_window(start=window[0], **grid)


def test_random_steps_are_drawn_without_repeating_and_anywhere():
    """In order, and every set of them as often as the others."""
    count = 1500
    sets = Counter(random_steps(seed=5, iteration=n, size=2, num_steps=4) for n in range(count))

    assert sorted(sets) == [(i, j) for i in range(4) for j in range(i + 1, 4)]
    assert all(abs(k / count - 1 / 6) < 5 * math.sqrt(5 / 36 / count) for k in sets.values())


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed, n: random_window(
            seed=seed, iteration=n, size=1, num_steps=1000, last_start=999
        ),
        lambda seed, n: random_steps(seed=seed, iteration=n, size=3, num_steps=1000),
    ],
)
def test_a_draw_belongs_to_its_seed_and_iteration(draw):
    """Again the same, after a resume too, and another for each of the others."""
    names = [(seed, n) for seed in range(3) for n in range(3)]
    drawn = [draw(*name) for name in names]

    assert drawn == [draw(*name) for name in names]
    assert len(set(drawn)) == len(names)


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "good"),
    [
        (fixed_window, {"start": 0, "spacing": 1}),
        (random_window, {"seed": 0, "iteration": 0, "first_start": 0, "last_start": 0}),
        (random_steps, {"seed": 0, "iteration": 0}),
        (sliding_window, {"iteration": 0, "interval": 1, "stride": 1}),
        (
            decaying_window,
            {"iteration": 0, "interval": 1, "stride": 1, "decay": 0.1, "decay_after": 0},
        ),
    ],
)
def test_refuses_counts_that_are_too_small(function, good):
    """One short of the least is refused by name; the least is not."""
    least = {"size": 1, "num_steps": 1, "spacing": 1, "interval": 1, "stride": 1}
    good = {"size": 1, "num_steps": 1} | good
    function(**good)
    for name in set(good) - {"seed", "decay", "last_start"}:
        bad = least.get(name, 0) - 1
        with pytest.raises(ValueError, match=rf"`{name}` must be at least {bad + 1}; got {bad}"):
            function(**good | {name: bad})


def test_refuses_a_start_that_does_not_fit():
    """Also one that would only be drawn now and then, and a window larger than the grid."""
    for iteration in range(9):
        with pytest.raises(ValueError, match=r"`start` must leave room .* 4 steps; got 2, .* at 4"):
            random_window(seed=0, iteration=iteration, size=3, num_steps=4, last_start=2)
    with pytest.raises(ValueError, match="`last_start` must be at least 2; got 1"):
        random_window(seed=0, iteration=0, size=1, num_steps=4, first_start=2, last_start=1)
    for function, how in ((random_steps, {"seed": 0}), (sliding_window, {"interval": 1})):
        with pytest.raises(ValueError, match="`start` must leave room for the window in 4 steps"):
            function(iteration=0, size=5, num_steps=4, **how)


@pytest.mark.parametrize("decay", [-0.1, math.inf, math.nan])
def test_refuses_a_decay_out_of_range(decay):
    """It would lengthen the stay, or end it at once."""
    with pytest.raises(ValueError, match=rf"`decay` must be finite and not negative; got {decay}"):
        decaying_window(iteration=0, size=1, num_steps=2, interval=1, decay=decay, decay_after=0)


def test_refuses_an_unknown_end():
    """With what is known."""
    with without_shape_checks(), pytest.raises(ValueError, match="`end` must be 'stay' or"):
        sliding_window(iteration=0, size=1, num_steps=2, interval=1, end="bounce")


@given(
    st.lists(st.integers(0, 20), min_size=1, unique=True),
    st.integers(0, 500),
    st.integers(0, 40),
    st.integers(0, 20),
)
def test_moving_steps_go_towards_the_noise_together_and_stop(steps, iteration, interval, first):
    """One step per interval, until the first of them is where it may go; 0 stays."""
    found = moving_steps(steps, iteration=iteration, interval=interval, first=first)
    shift = min(steps) - found[0]
    assert [step + shift for step in found] == sorted(steps)
    assert shift == min(iteration // interval if interval else 0, max(min(steps) - first, 0))


@pytest.mark.parametrize("steps", [(), (-1, 2)])
def test_no_steps_to_move_are_refused(steps):
    """And those before the first."""
    with pytest.raises(ValueError, match="`steps` must be at least 0, and one or more"):
        moving_steps(steps, iteration=0)


def test_a_window_that_decays_at_once_skips_no_place():
    """However fast, one iteration is spent at each: a number above 0 is rounded up."""
    how = {"size": 1, "num_steps": 5, "interval": 2, "decay": 1e4, "decay_after": 0}

    assert [decaying_window(iteration=n, **how)[0] for n in range(7)] == [0, 0, 1, 2, 3, 4, 4]
