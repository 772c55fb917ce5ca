"""`bench.zigzag`: cells that can be sampled, and their table."""

import json
from pathlib import Path

import pytest

pytest.importorskip("bench", reason="measurements are not in the wheel")

from bench.zigzag import CELLS, _config, best_cell, table

DOCS = Path(__file__).parents[3] / "docs"

# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), CELLS)
def test_every_cell_is_a_policy_that_can_be_sampled(name, settings):
    """Its settings are known, allowed, and reach the configuration."""
    config = _config(settings)

    for path, value in settings.items():
        section, _, field = path.partition(".")
        assert getattr(getattr(config, section), field) == value


def test_no_cell_is_measured_twice():
    """Each has settings of its own."""
    assert len({repr(sorted(settings.items())) for _, settings in CELLS}) == len(CELLS)


def test_a_gain_of_many_standard_errors_stands_out():
    """3.1 of them; equal calls are compared where they were."""
    row = {
        "sweep": "s", "settings": {"sampler.num_steps": 2}, "sensitivity": 0.25,
        "plain": {"per_view": 16.0, "joint": 9.0},
        "gain": {"per_view": [0.32, 0.1], "joint": [0.3, 0.1]}, "gain_at_equal_calls": None,
    }  # fmt: skip
    line = table([row]).splitlines()[-1]

    assert line == (
        "| s | `sampler.num_steps=2` | 0.25 | 16.00, 9.00 | **+0.32 ± 0.10 (+3.2)** | "
        "+0.30 ± 0.10 (+3.0) |  |  |"
    )


def test_the_document_has_the_stored_cells():
    """`python -m bench pictures` writes them."""
    rows = json.loads((DOCS / "results" / "zigzag.json").read_text("utf-8"))

    assert table(rows) in (DOCS / "claims.md").read_text("utf-8")
    swept, again = rows[: len(CELLS)], rows[len(CELLS) :]
    assert [row["sweep"] for row in swept] == [name for name, _ in CELLS]
    assert [row["settings"] for row in again] == [best_cell(swept)["settings"]]


def test_the_best_cell_has_the_most_errors_in_both_gains():
    """A large gain of large error is not the best."""
    rows = [
        {"gain": {"per_view": [0.9, 0.9], "joint": [0.9, 0.9]}},
        {"gain": {"per_view": [0.2, 0.1], "joint": [0.1, 0.1]}},
    ]
    assert best_cell(rows) is rows[1]
