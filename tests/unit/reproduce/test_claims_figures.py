"""`reproduce.claims_figures`: pictures hold the arms that there are."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from mvczigal_ref.reproduce.claims import ARM_SETS
from mvczigal_ref.reproduce.claims_figures import curves_figure, front_figure
from mvczigal_ref.reproduce.claims_record import claims_record, read_claims
from tests.unit.reproduce.made_arms import made_arm


def texts(svg):
    """Texts of a picture."""
    return re.findall(r">([^<>]+)</text>", svg)


ROOT = Path(__file__).parents[3]
METHODS = [run.arm for run in ARM_SETS["weak_cameras"].methods]
RECORD = claims_record({"tiny": made_arm(), "tiny_per_view": made_arm(joint=-0.5)})

# -- laws --------------------------------------------------------------------------------


def test_the_front_names_every_arm():
    """With the unit on both axes; equal numbers give equal pictures."""
    drawn = front_figure(RECORD)

    assert {"MVC-ZigAL", "per view alone", "per-view gain [dB]", "joint gain [dB]"} <= {
        *texts(drawn)
    }
    assert drawn == front_figure(RECORD)


def test_names_of_many_arms_stand_apart():
    """A line of their own each, from the lowest joint gain up, whatever the dots' places."""
    many = {name: made_arm(joint=place / 1000) for place, name in enumerate(METHODS)}
    many["tiny_per_view"] = made_arm(joint=-2.0)  # far from the others, which lie close
    record = claims_record(many)
    drawn = front_figure(record)
    ranked = sorted(record.arms, key=lambda arm: arm.gains["joint"].estimate)
    heights = [
        float(re.search(rf' y="([\d.]+)"[^<>]*>{re.escape(arm.name)}</text>', drawn)[1])
        for arm in ranked
    ]

    assert len(heights) == len(METHODS) > 10
    assert all(below - above >= 9.0 for below, above in pairwise(heights))


def test_the_curves_have_threshold_and_multiplier_beneath():
    """Both rewards of both runs, the multiplier of the constrained one."""
    drawn = curves_figure(RECORD)

    assert {"per-view reward [dB]", "joint reward [dB]", "multiplier [1]", "threshold"} <= {
        *texts(drawn)
    }


def test_pictures_of_no_runs_are_empty():
    """Axes alone: a claim may be asked for whose runs have not been made."""
    nothing = claims_record({})

    assert "joint gain [dB]" in texts(front_figure(nothing))
    assert "multiplier [1]" in texts(curves_figure(nothing))


@pytest.mark.parametrize(("name", "draw"), [("front", front_figure), ("curves", curves_figure)])
def test_the_documents_picture_is_that_of_the_stored_numbers(name, draw):
    """Its words; `python -m bench pictures` draws it again."""
    stored = (ROOT / "fixtures" / "pictures" / f"claims_{name}.svg").read_text("utf-8")

    assert texts(stored) == texts(draw(read_claims(ROOT / "docs" / "results" / "claims.json")))
