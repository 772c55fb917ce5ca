"""`reproduce.tables`: the table holds the numbers of a comparison, and the documents its table."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvczigal_ref.reproduce import COMPARISONS
from mvczigal_ref.reproduce.summary import read_summary, summarise
from mvczigal_ref.reproduce.tables import markdown, table
from tests.unit.reproduce.outcomes import made_up

DOCS = Path(__file__).parents[3] / "docs"

# -- laws --------------------------------------------------------------------------------


def test_the_table_holds_what_was_measured_beside_what_is_published():
    """A row a method, and the paired difference with its own error."""
    text = markdown(summarise(made_up()))

    assert "| a (`a`) | +2.0 ± 1.0 (+2.0; +2.0) | 3 | 1,200 | 2 | +0.5 |" in text
    assert "`b` minus `a`, paired, per view: +1.25 ± 0.25 dB (+5.0 standard errors)." in text


def test_gains_stand_in_the_errors_of_prompts_alone_too():
    """Seeds that differ do not enlarge these."""
    whole = made_up()
    apart = replace(whole.outcomes[0], gains={"per_view": torch.tensor([[0.0, 2.0], [2.0, 4.0]])})

    assert "| +2.0 ± 1.4 (+1.4; +2.0) |" in markdown(summarise(replace(whole, outcomes=(apart,))))


def test_scores_before_training_are_told():
    """One number where all methods start alike, else the least and the most."""
    whole = made_up()
    one, other = whole.outcomes
    apart = replace(whole, outcomes=(replace(one, before={"per_view": 1.25}), other))

    assert "\nBefore training: per view 1.00 dB.\n" in markdown(summarise(whole))
    assert "\nBefore training: per view 1.00 to 1.25 dB.\n" in markdown(summarise(apart))
    assert "| latents through the network (forward) |" in markdown(summarise(whole))


def test_small_gains_keep_their_digits():
    """A reward of scale 0.02 is not 0.00."""
    whole = made_up()
    small = replace(whole.outcomes[0], gains={"per_view": torch.tensor([[0.0021, 0.0043]])})

    text = markdown(summarise(replace(whole, outcomes=(small,))))

    assert "| +0.0032 ± 0.0011 (+2.9; +2.9) |" in text


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_documents_table_is_that_of_the_stored_numbers(name):
    """Methods of the set in its order; those that came later have not been run."""
    summary = read_summary(DOCS / "results" / f"{name}.json")
    stored = [one.recipe for one in summary.methods]
    methods = [one.recipe for one in COMPARISONS[name].methods]

    assert table(summary) in (DOCS / "results.md").read_text("utf-8")
    assert stored == [recipe for recipe in methods if recipe in stored]
    assert len(stored) >= 12
