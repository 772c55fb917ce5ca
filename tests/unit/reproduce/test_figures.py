"""`reproduce.figures`: a picture shows the gains that are stored, with unit, world and method."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mvczigal_ref.condition.drift_bins import DRIFT_EDGES
from mvczigal_ref.reproduce import COMPARISONS
from mvczigal_ref.reproduce.figures import figure
from mvczigal_ref.reproduce.summary import read_summary, summarise
from tests.unit.reproduce.outcomes import made_up

ROOT = Path(__file__).parents[3]


def texts(svg):
    """Texts of a picture, in the order in which they were drawn."""
    return re.findall(r">([^<>]+)</text>", svg)


# -- laws --------------------------------------------------------------------------------


def test_the_picture_is_the_same_for_equal_numbers():
    """It can be compared with the one that is drawn again, and it names every method."""
    drawn = figure(summarise(made_up()))

    assert drawn == figure(summarise(made_up()))
    assert {"a", "b, full", "Tiny world: held-out gain of the methods of arXiv:0"} <= {
        *texts(drawn)
    }
    assert "held-out gain [dB] ± standard error over seeds and prompts" in texts(drawn)
    assert "from most to least: b (full method), a</title>" in drawn


def test_the_picture_shows_the_drift_of_captions():
    """A panel where a method has them, and how many captions change nothing."""
    whole = made_up()
    counts = (3, *[1] * len(DRIFT_EDGES))
    one, other = whole.outcomes
    drawn = figure(summarise(replace(whole, outcomes=(one, replace(other, drift=counts)))))
    share = round(100 * 3 / sum(counts))

    assert f"b, {share} % below 1e-06" in drawn
    assert "probability drift of captions [nats/element]" in texts(drawn)
    assert "probability drift" not in figure(summarise(whole))


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_documents_picture_is_that_of_the_stored_numbers(name):
    """Its words and its dots; `python -m bench pictures` draws it again."""
    stored = (ROOT / "fixtures" / "pictures" / f"{name}.svg").read_text("utf-8")
    drawn = figure(read_summary(ROOT / "docs" / "results" / f"{name}.json"))

    assert texts(stored) == texts(drawn)
    assert stored.count("<use ") == drawn.count("<use ")
