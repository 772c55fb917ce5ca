"""`cli.comparing`: captions are written as asked for, slips are told, comparisons leave files."""

import json

import pytest
import torch

from mvczigal_ref import reproduce
from mvczigal_ref.cli import comparing, main
from mvczigal_ref.condition.stored import StoredCaptions
from mvczigal_ref.reproduce import COMPARISONS, Comparison, Outcome, read_summary


class Echo:
    """Answer with what was asked, and the seed."""

    def ask(self, text, images=(), *, seed=None):
        """Make a caption that no other question has."""
        return f"caption {abs(hash((text, seed))) % 10**9}"


@pytest.fixture
def _asked(monkeypatch):
    monkeypatch.setattr(comparing, "_model", lambda command: Echo())


@pytest.mark.usefixtures("_asked")
def test_captions_are_stored_as_training_reads_them(tmp_path, capsys):
    """As many a prompt as asked for; a second call has nothing left to do."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "captions.jsonl"
    prompts.write_text("a cat\na dog\n")
    words = ["enhance", str(prompts), "--out", str(out), "--model", "m", "--captions", "2"]

    assert main([*words, "--edits", "add", "delete"]) == 0
    assert "2 prompts written, 0 were there" in capsys.readouterr().out
    assert main([*words, "--edits", "add", "delete"]) == 0
    assert "0 prompts written, 2 were there" in capsys.readouterr().out
    (captions, _) = StoredCaptions(out, num_captions=2)(["a cat", "a dog"], seed=0)
    assert {c.instruction for c in captions} <= {"add", "delete"}
    assert main([*words, "--edits", "add"]) == 2
    assert "was made in another way" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "absent/folder"], "cannot load a model from 'absent/folder'"),
        (["--model", "m", "--url", "ftp://x"], "http"),
        (["--model", "m", "--workers", "2"], "`--workers` is for a served model"),
        (["--model", "m", "--workers", "1000000000"], "`--workers` must be 1 to 100000; got 10"),
        (["--model", "m", "--captions", "1000000000"], "`--captions` must be 1 to 100000; got 10"),
        (["--model", "m", "--edits", "ad"], "`--edits` must be some of"),
        (["--model", "m", "optim.lr=1"], "this command takes no settings"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(words, told, tmp_path, capsys):
    """Nothing is written."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "captions.jsonl"
    prompts.write_text("a cat\n")
    try:
        status = main(["enhance", str(prompts), "--out", str(out), *words])
    except SystemExit as stop:
        status = stop.code

    assert status == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_a_comparison_leaves_table_and_picture(tmp_path, monkeypatch, capsys):
    """A set's files bear its name."""
    seen = {}

    def planned_runs(methods, folder, *, seeds, overrides, progress):
        progress()
        seen.update(folder=folder, seeds=seeds, overrides=overrides)
        return ((),)

    def compare(methods, runs, *, tell):
        seen.update(runs=runs)
        outcomes = tuple(
            Outcome(
                method=method, iterations=1, calls=1, seconds=1.0, before={"per_view": 0.0},
                gains={"per_view": torch.tensor([[1.0, 2.0]])},
            )
            for method in methods.methods
        )  # fmt: skip
        return Comparison(methods=methods, outcomes=outcomes)

    monkeypatch.setattr(reproduce, "planned_runs", planned_runs)
    monkeypatch.setattr(reproduce, "compare", compare)
    words = ["reproduce", "--sets", "flow", "--seeds", "4", "--out", str(tmp_path)]

    assert main([*words, "run.evaluation_noises=2"]) == 0
    assert seen == {
        "folder": tmp_path / "flow", "seeds": (4,), "overrides": ("run.evaluation_noises=2",),
        "runs": ((),),
    }  # fmt: skip
    assert COMPARISONS["flow"].title in (tmp_path / "flow.md").read_text()
    assert (tmp_path / "flow.svg").read_text().startswith("<svg")
    assert read_summary(tmp_path / "flow.json").full == "tiny_mv_grpo_vlm"
    assert "tiny_mv_grpo_vlm" in capsys.readouterr().out
    assert main([*words, "run.evaluation_noises=2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["flow"]
    assert [row["recipe"] for row in rows] == [m.recipe for m in COMPARISONS["flow"].methods]
    assert rows[0]["gains"] == {"per_view": {"gain": 1.5, "standard_error": 0.5}}
    assert main([*words[:3], "--seeds", "1", "1"]) == 2
    assert main([*words, "run.seed=2"]) == 2
    monkeypatch.undo()
    assert main([*words, "run.evaluation_noise=2"]) == 2


def test_stored_captions_say_who_made_them(tmp_path, monkeypatch):
    """The model's name is in the file, so that no other goes on with it."""
    monkeypatch.setattr(comparing, "_model", lambda command: Echo())
    prompts, out = tmp_path / "prompts.txt", tmp_path / "captions.jsonl"
    prompts.write_text("a cat\n")
    main(["enhance", str(prompts), "--out", str(out), "--model", "qwen"])

    assert json.loads(out.read_text().splitlines()[0])["model"] == "qwen"


@pytest.mark.parametrize("words", [[], ["claims", "--claim", "b"], ["claims", "--read-only"]])
def test_a_folder_of_other_files_is_left_alone(words, tmp_path, capsys):
    """Before anything is counted; a folder that the command wrote takes notes beside."""
    (tmp_path / "thesis.tex").write_text("x")
    assert main(["reproduce", *words, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"folder that this command wrote; {str(tmp_path)!r} holds thesis.tex" in told
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_is_not_mixed_with_other_files(tmp_path, capsys, monkeypatch):
    """Of all runs the folders are looked at before the first begins."""
    foreign = tmp_path / "flow" / "tiny_dance_grpo-1"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("x")
    monkeypatch.setattr("mvczigal_ref.reproduce.plans.network_calls", lambda config: [1])
    monkeypatch.setattr(reproduce, "compare", lambda *_, **__: pytest.fail("it began"))
    assert main(["reproduce", "--sets", "flow", "--out", str(tmp_path)]) == 2
    assert "tiny_dance_grpo-1' holds notes.txt and no config.json" in capsys.readouterr().err
