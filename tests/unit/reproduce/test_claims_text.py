"""`reproduce.claims_text`: the documents' tables are those of the data."""

from pathlib import Path

import pytest

from mvczigal_ref.reproduce.claims import ARM_SETS, CLAIMS
from mvczigal_ref.reproduce.claims_text import arm_table, claim_table

PAGE = Path(__file__).parents[3] / "docs" / "claims.md"


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
