"""`reproduce.claims_text`: the documents' tables are those of the data."""

from pathlib import Path

import pytest

from mvczigal_ref.reproduce.claims import ARM_SETS, CLAIMS
from mvczigal_ref.reproduce.claims_record import claims_record, read_claims
from mvczigal_ref.reproduce.claims_text import arm_table, claim_table, claims_markdown
from tests.unit.reproduce.made_arms import made_arm

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "claims.md"


# -- laws --------------------------------------------------------------------------------


def test_every_claim_has_a_row_with_its_sentence_and_rule():
    """In their order, with the arms that it needs."""
    rows = claim_table().splitlines()[2:]

    assert len(rows) == len(CLAIMS)
    for row, claim in zip(rows, CLAIMS, strict=True):
        assert row.startswith(f"| ({claim.letter}) | {claim.sentence} | {claim.rule} | ")


def test_every_arm_has_a_row_with_its_recipe_and_settings():
    """And each set one with those that its arms share."""
    text = arm_table()

    for name, arms in ARM_SETS.items():
        assert all(f"`{word}`" in text for word in arms.settings)
        for row in arms.methods:
            assert f"| {name} | `{row.arm}` | {row.name} | `{row.recipe}` | " in text


@pytest.mark.parametrize("table", [claim_table, arm_table])
def test_the_document_says_what_the_data_say(table):
    """`python -m bench pictures` writes it again."""
    assert table() in PAGE.read_text("utf-8")


def test_the_document_says_what_was_found():
    """Verdicts, requirements and gains of the stored record."""
    found = claims_markdown(read_claims(DOCS / "results" / "claims.json"))

    assert found in PAGE.read_text("utf-8")


def test_every_requirement_stands_with_its_interval_and_answer():
    """Seeds are counted where they are too few, and runs that are absent are said to be."""
    arms = {"tiny": made_arm(), "tiny_per_view": made_arm(seeds=[10, 11], joint=-0.5)}
    text = claims_markdown(claims_record(arms | {"tiny": made_arm(seeds=[10, 11, 12])}))

    assert "minus per view alone, joint: +1.000 [+1.000, +1.000] dB, above 0: open" in text
    assert "; P 1.00 [1.00, 1.00] (2 of 5 seeds)" in text
    assert "MVC-ZigAL minus MVC-ZigPG, sum of both: no runs" in text
    assert "| weak_cameras | MVC-ZigAL (`tiny`) | 3 | 10.00, +1." in text
