"""`sealed_rows`: rows beside the checkpoints that are cut, doubled, changed or another run's."""

import json

import pytest

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.training.sealed_rows import check_rows, seal_rows
from tests.unit.training.test_trainer import config, go, record  # noqa: F401

# By the damage: what becomes of a file's lines.
DAMAGES = {
    "cut": lambda lines: lines[:2],
    "the first is missing": lambda lines: lines[1:],
    "one is missing": lambda lines: [*lines[:1], *lines[2:]],
    "doubled": lambda lines: [*lines, *lines],
    "one doubled": lambda lines: [*lines[:2], *lines[1:]],
    "in another order": lambda lines: [lines[1], lines[0], *lines[2:]],
    "a number is another": lambda lines: [*lines[:3], lines[3].replace(': 3.0', ': 2.0')],
    "of another run": lambda lines: [line.replace('"loss": ', '"loss": 1') for line in lines],
    "empty": lambda lines: [],
}  # fmt: skip


@pytest.fixture
def folder(record, tmp_path):  # noqa: F811
    """A run of four iterations."""
    go(config(), tmp_path / "run", record)
    return tmp_path / "run"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_refused_by_the_files_name(folder, record, damage):  # noqa: F811
    """On a resume and by a report; nothing is changed."""
    path = folder / "metrics.jsonl"
    path.write_text("".join(DAMAGES[damage](path.read_text().splitlines(keepends=True))))
    content = path.read_bytes()
    for use in (
        lambda: go(config(iterations=6), folder, record),
        lambda: check_rows(folder),
    ):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl'") as caught:
            use()
        assert "Restore the file" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_missing_file_is_refused(folder, record):  # noqa: F811
    """Rows would not begin at 0."""
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"must hold the 4 rows .*; it holds 0"):
        go(config(iterations=6), folder, record)


def test_what_the_clock_says_is_no_part_of_the_seal(folder, tmp_path):
    """Two runs of equal bits have equal checkpoints."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    slower = [{**row, "seconds/update": 9.0, "peak_memory": 7} for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slower))
    seals = [seal_rows(one, finished=4, logged=4) for one in (folder, tmp_path)]

    assert seals[0] == seals[1]
    assert seals[0]["metrics.jsonl"]["rows"] == 4


def test_a_run_of_an_older_version_goes_on(folder, record, monkeypatch):  # noqa: F811
    """Its checkpoints seal nothing."""
    monkeypatch.setattr("mvczigal_ref.training.state.seal_rows", lambda *_, **__: {})
    go(config(iterations=5), folder, record)
    monkeypatch.undo()
    check_rows(folder)


def test_a_renamed_checkpoint_is_refused(folder, record):  # noqa: F811
    """It would export an older policy."""
    checkpoints = folder / "checkpoints"
    (checkpoints / "iteration_000002").rename(checkpoints / "iteration_000007")
    with pytest.raises(
        CheckpointError, match=r"iteration_000007'.* written as 'iteration_000002' and renamed"
    ):
        go(config(iterations=9), folder, record)
