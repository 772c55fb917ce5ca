"""What the documents name is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENTRY = re.compile(r"^\| ([A-Z]\d+) .*\|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)`")


def test_each_deviation_names_tests_that_exist():
    """In its last column; a test that is moved takes its entry with it."""
    text = (ROOT / "DEVIATIONS.md").read_text("utf-8")
    entries = {found[1]: TEST.findall(found[0].split("|")[-2]) for found in ENTRY.finditer(text)}
    named = TEST.findall(text)

    assert len(entries) >= 30
    assert [entry for entry, tests in entries.items() if not tests] == []
    assert [test for test in named if not (ROOT / test).is_file()] == []
