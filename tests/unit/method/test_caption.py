"""`method.caption`: each number in its own field, and histograms that can be added."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.condition.protocol import Caption
from mvczigal_ref.method.caption import (
    DRIFT_EDGES,
    caption_record,
    caption_seed,
    drift_histogram,
    drift_metrics,
)

CAPTIONS = [
    [Caption(caption="a1", instruction="colour"), Caption(caption="a2", instruction="size")],
    [
        Caption(caption="b1", instruction="view", sample=2),
        Caption(caption="b2", instruction="none"),
    ],
]
# By condition, prompt and sample; the prompt's own is the first condition.
REWARD = torch.tensor(
    [
        [[1.0, 2.0, 6.0], [10.0, 20.0, 60.0]],
        [[4.0, 4.0, 4.0], [7.0, 8.0, 9.0]],
        [[0.0, 0.0, -3.0], [5.0, 5.0, 5.0]],
    ]
)
# By trained step, prompt and caption.
BY_STEP = torch.tensor([[[0.5, 1.0], [1.5, 2.0]], [[4.0, 5.0], [6.0, 7.0]]])
DRIFTS = st.lists(st.floats(0, 1e5), min_size=1, max_size=30)


def recorded(drift):
    """Write an iteration of two prompts down."""
    entries = torch.tensor(drift, dtype=torch.float64)
    return caption_record(["a", "b"], CAPTIONS, REWARD, entries, BY_STEP)


def quantile(values, share):
    """Interpolate linearly between the two nearest of the sorted values."""
    place = share * (len(values) - 1)
    below = math.floor(place)
    left, right = (
        sorted(values)[below : below + 2] if below + 1 < len(values) else [max(values)] * 2
    )
    return left + (place - below) * (right - left)


# -- oracle ------------------------------------------------------------------------------


def test_each_caption_stands_beside_its_own_rewards():
    """Group means under the prompt and under this very caption, and what it was asked to be."""
    rows = recorded([0.0])["captions"]
    names = ("prompt", "caption", "instruction", "sample")

    assert [tuple(row[name] for name in names) for row in rows] == [
        ("a", "a1", "colour", None), ("a", "a2", "size", None),
        ("b", "b1", "view", 2), ("b", "b2", "none", None),
    ]  # fmt: skip
    assert [row["reward_under_prompt"] for row in rows] == [3.0, 3.0, 30.0, 30.0]
    assert [row["reward_under_caption"] for row in rows] == [4.0, -1.0, 8.0, 5.0]
    assert [row["drift"] for row in rows] == [[0.5, 4.0], [1.0, 5.0], [1.5, 6.0], [2.0, 7.0]]


@given(DRIFTS)
def test_every_drift_is_counted_in_its_bin(drift):
    """A bin holds what is above its lower edge and not above its upper one."""
    bins = Counter(sum(edge < value for edge in DRIFT_EDGES) for value in drift)

    assert recorded(drift)["drift_counts"] == [bins[i] for i in range(len(DRIFT_EDGES) + 1)]


def test_what_no_edge_bounds_is_counted_too():
    """The first bin goes down to nothing, the last has no end."""
    counts = recorded([0.0, DRIFT_EDGES[0] / 2, 2 * DRIFT_EDGES[-1], 1e9, 1e9])["drift_counts"]

    assert (counts[0], counts[-1], sum(counts)) == (2, 3, 5)


@given(DRIFTS)
def test_drift_is_summarised_by_its_mean_and_quantiles(drift):
    """Half of it is below the median, and 95 % below the last."""
    found = drift_metrics(torch.tensor(drift, dtype=torch.float64))

    assert found == pytest.approx(
        {
            "drift/mean": math.fsum(drift) / len(drift),
            "drift/median": quantile(drift, 0.5),
            "drift/p95": quantile(drift, 0.95),
        },
        rel=1e-9,
        abs=1e-9,
    )


# -- laws --------------------------------------------------------------------------------


def test_edges_are_four_a_decade():
    """From a millionth to a thousand."""
    assert (DRIFT_EDGES[0], DRIFT_EDGES[-1]) == (1e-6, 1e3)
    assert [edge / DRIFT_EDGES[i] for i, edge in enumerate(DRIFT_EDGES[4:])] == pytest.approx(
        [10.0] * (len(DRIFT_EDGES) - 4)
    )


@given(st.lists(DRIFTS, max_size=4))
def test_histograms_of_iterations_add_up(drifts):
    """To that of all their drifts; of no iteration they are empty."""
    whole = [value for drift in drifts for value in drift]
    expected = recorded(whole)["drift_counts"] if whole else [0] * (len(DRIFT_EDGES) + 1)

    assert drift_histogram([recorded(drift) for drift in drifts]) == expected


def test_no_two_seeds_and_iterations_draw_the_same_captions():
    """Neither does the next seed draw those of the iteration before; a resume draws them again."""
    seeds = [caption_seed(seed, iteration) for seed, iteration in product(range(6), range(6))]

    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert caption_seed(4, 3) == caption_seed(4, 3)


# -- errors ------------------------------------------------------------------------------


def test_captions_of_other_prompts_are_refused():
    """None is forgotten without a word."""
    with pytest.raises(ValueError, match="zip"):
        caption_record(["a"], CAPTIONS, REWARD, torch.zeros(1), BY_STEP)
