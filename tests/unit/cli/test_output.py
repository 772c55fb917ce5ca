"""`cli.output`: JSON in a file or in the table's place, and silence."""

import json
from pathlib import Path

import pytest

from mvczigal_ref.cli import _read, main
from mvczigal_ref.cli.output import STANDARD_OUTPUT, Printed, console_of, json_alone, write_json

TABLES = {
    "train": ["tiny"], "plan": ["tiny"], "check": ["tiny"], "recipes": [], "settings": [],
    "evaluate": [], "reproduce": [], "score": ["a.png", "--prompt", "x", "--reward", "clip_score"],
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_every_command_with_a_table_has_both(name):
    """`--json` with and without a file, `--quiet`."""
    words = [name, *TABLES[name]]

    assert (_read(words).json, _read(words).quiet) == (None, False)
    assert _read([*words, "--json", "a.json"]).json == Path("a.json")
    assert _read([*words, "--json"]).json == STANDARD_OUTPUT
    both = _read([*words, "--json", "--quiet"])
    assert (both.json, both.quiet) == (STANDARD_OUTPUT, True)


@pytest.mark.parametrize("name", ["enhance", "pretrain", "sample"])
def test_every_command_with_progress_can_be_quiet(name):
    """Without a table there is nothing to give as JSON."""
    words = {"enhance": ["p.txt", "--out", "a", "--model", "m"], "pretrain": ["--out", "a"]}

    assert _read([name, *words.get(name, []), "--quiet"]).quiet


def test_json_that_could_not_be_written_is_refused_before_the_work(tmp_path, capsys):
    """A run of hours must not end at the name of its summary."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "a.json"):
        assert main(["train", "no-such-recipe", "--json", str(place)]) == 2
        assert "error: `--json` must be a file" in capsys.readouterr().err


def test_what_a_command_prints_besides_is_no_part_of_its_json(capsys):
    """A reward of one's own may print, and its words would break the JSON."""
    command = Printed(json=STANDARD_OUTPUT)
    with json_alone(command):
        print("loading")
        write_json(command, {"gain": 1})
    print("after")
    out, err = capsys.readouterr()

    assert json.loads(out.removesuffix("after\n")) == {"gain": 1}
    assert err == "loading\n"


def test_json_takes_the_table_s_place(tmp_path, capsys):
    """In a file it comes beside it."""
    assert main(["settings", "run.seed", "--json"]) == 0
    alone = capsys.readouterr().out
    assert main(["settings", "run.seed", "--json", str(tmp_path / "a.json")]) == 0
    beside = capsys.readouterr().out
    assert main(["settings", "run.seed", "--quiet"]) == 0

    assert json.loads(alone) == json.loads((tmp_path / "a.json").read_text())
    assert "run.seed" in beside
    assert "{" not in beside
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("printed", "shown", "silent"),
    [
        (Printed(), True, False),
        (Printed(), False, True),
        (Printed(quiet=True), True, True),
        (Printed(json=Path("a.json")), True, False),
        (Printed(json=STANDARD_OUTPUT), True, True),
    ],
)
def test_a_console_is_silent_where_it_should_be(printed, shown, silent):
    """In other processes, where the command is quiet, and where JSON is printed."""
    assert console_of(printed, shown=shown).quiet is silent
