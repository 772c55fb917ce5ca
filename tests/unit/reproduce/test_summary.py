"""`reproduce.summary`: what is stored is what was measured."""

from dataclasses import replace

import pytest

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.reproduce.summary import read_summary, summarise, to_text
from tests.unit.reproduce.outcomes import made_up

# -- laws --------------------------------------------------------------------------------


def test_a_summary_is_read_as_it_was_written(tmp_path):
    """Every digit of it."""
    whole = made_up()
    one, other = whole.outcomes
    summary = summarise(replace(whole, outcomes=(one, replace(other, drift=(3, 1)))))
    (tmp_path / "s.json").write_text(to_text(summary), "utf-8")

    assert read_summary(tmp_path / "s.json") == summary
    assert summary.methods[1].drift == (75.0, 25.0)
    assert (summary.full, summary.rival) == ("b", "a")
    assert summary.paired == {"per_view": (1.25, 0.25)}


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    """By its name, with what to pass."""
    (tmp_path / "s.json").write_text(content, "utf-8")

    with pytest.raises(ConfigError, match=r"cannot read .*s\.json.*`mvczigal reproduce` wrote"):
        read_summary(tmp_path / "s.json")
