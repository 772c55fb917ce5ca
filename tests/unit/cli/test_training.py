"""`cli.training`: the seed's option, processes and folders refused before work."""

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mvczigal_ref import report
from mvczigal_ref.cli import _read, display, main, planning, preflight, training
from mvczigal_ref.cli.training import Train, train_words
from mvczigal_ref.errors import ConfigError, NonFiniteError
from mvczigal_ref.evaluation.scores import PairedGain
from mvczigal_ref.preflight import plan
from mvczigal_ref.preflight.attempts import CheckResult, Finding
from mvczigal_ref.preflight.stored_plans import stored_plan
from mvczigal_ref.recipes import recipe
from mvczigal_ref.training import trainer


@pytest.fixture
def runs(monkeypatch):
    """Runs and launches that `train` would begin, instead of them."""
    runs = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(training, "train_run", lambda *begun: runs.append(begun))
    monkeypatch.setattr(training, "launch", lambda *begun: runs.append(begun))
    return runs


# -- the seed ----------------------------------------------------------------------------


def test_a_seed_is_the_setting(runs, tmp_path, monkeypatch):
    """It names the folder, wins over a file, and is in the words that go on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed.yaml").write_text("run: {seed: 3}")
    assert main(["train", "tiny", "--seed", "7", "--config", "seed.yaml"]) == 0
    ((command, config),) = runs

    assert config.run.seed == 7
    assert train_words(command) == ["train", "tiny", "run.seed=7", "--config", "seed.yaml"]


def test_words_of_a_command_are_the_command(runs):
    """What is printed to go on is read as the same."""
    command = Train(
        recipe="tiny", settings=("optim.lr=1",), seed=3, start="runs/a@4", processes=2, quiet=True,
        json=Path("-"),
    )  # fmt: skip

    assert train_words(command) == [
        "train", "tiny", "optim.lr=1", "--seed", "3", "--from", "runs/a@4", "--json", "-",
        "--quiet", "--processes", "2",
    ]  # fmt: skip
    assert _read(train_words(command)) == command


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "tinny"], "unknown recipe: `tinny`; did you mean `tiny`?"),
        (["train", "tiny", "reward.per_view=world.per_veiw"], "the nearest is 'world.per_view'"),
        (["train", "tiny", "run.prompts=absent.csv:text"], "hf:USER/DATASET:COLUMN"),
        (["train", "tiny", "--seed", "1", "run.seed=1"], "leave one of the two out"),
        (["train", "tiny", "--seed", "-1"], "`run.seed`"),
        (["train", "tiny", "--processes", "0"], "`--processes` must be 1 to 1000; got 0"),
        (["train", "tiny", "--processes", "3"], "4 slices of `run.objects_per_slice` = 8"),
        (["train", "tiny", "--out", "notes"], "'notes' holds a.txt and no config.json"),
        (["train", "tiny", "--out", "notes/a.txt"], "must be a folder; got the file"),
        (["pretrain", "--out", "notes/a.txt"], "must be a folder; got the file"),
        (["reproduce", "--out", "notes/a.txt"], "must be a folder; got the file"),
        (["sample", "a red cube with a white nose", "--out", "notes/a.txt"], "must be a folder"),
        (["sample", "x", "--seed", "1", "run.seed=1"], "leave one of the two out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_slip_is_refused_before_anything_begins(
    words, message, runs, tmp_path, monkeypatch, capsys
):
    """No process is started, no folder touched, and one line says why."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()

    assert main(words) == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1
    assert runs == []
    assert [path.name for path in tmp_path.rglob("*")] == ["notes", "a.txt"]


def test_processes_that_divide_the_slices_are_started(runs, tmp_path, monkeypatch):
    """Four slices of eight objects go to two or to four."""
    monkeypatch.chdir(tmp_path)
    for processes in (2, 4):
        assert main(["train", "tiny", "--processes", str(processes)]) == 0

    assert [count for count, _ in runs] == [2, 4]


@pytest.mark.parametrize("names", [(), (".lock",), ("config.json", "metrics.jsonl")])
def test_an_empty_folder_and_a_run_s_are_taken(names, runs, tmp_path):
    """So is what an ended process has left of a lock."""
    for name in names:
        (tmp_path / name).touch()
    assert main(["train", "tiny", "--out", str(tmp_path)]) == 0

    assert len(runs) == 1


# Words that are refused, or answered, before torch is imported.
QUICK = (
    ["report", "nosuch"],
    ["export", "nosuch", "--out", "x"],
    ["sample", "x", "--run", "nosuch"],
    ["evaluate", "--run", "nosuch"],
    ["train", "tinny"],
    ["train", "tiny", "optim.rl=1"],
    ["train", "tiny", "--out", "{file}"],
    ["score", "a.png", "--prompt", "x", "--reward", "clip_score", "optim.lr=1"],
    ["settings", "optm"],
    ["train", "tiny", "run.prompts=prompts/none.txt"],
    ["train", "flow_grpo"],
    ["train", "tiny", "reward.per_view=nosuch"],
    ["train", "tiny", "run.trackers=[comet_ml]"],
    ["train", "tiny", "run.prompts={prompts}"],
    ["evaluate", "reward.per_view=nosuch"],
    ["score", "a.png", "--prompt", "x", "--reward", "nosuch"],
    ["score", "a.png", "--prompt", "x", "--reward", "hyperscore"],
    ["serve-reward", "nosuch"],
    ["sample", "a dog"],
    ["play", "nosuch"],
    ["push", "nosuch", "a/b", "--dry-run", "x"],
    ["convert-reward", "nosuch.pt", "x.safetensors"],
    ["convert-reward", "{file}", "{prompts}"],
    ["recipes", "tiny"],
    ["recipes"],
    ["settings", "optim.lr"],
)


def test_slips_are_told_without_torch(tmp_path):
    """Importing it alone takes a second."""
    (tmp_path / "file").touch()
    (tmp_path / "prompts.txt").write_text("a red cube with a white nose\na dog\n", "utf-8")
    places = {"file": tmp_path / "file", "prompts": tmp_path / "prompts.txt"}
    words = [[word.format(**places) for word in each] for each in QUICK]
    script = (
        "import sys\n"
        "from mvczigal_ref.cli import main\n"
        f"print([main(words) for words in {words!r}])\n"
        "print({'torch', 'diffusers', 'matplotlib'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    assert done.stdout.splitlines()[-2:] == [str([2] * 23 + [0] * 3), "set()"]
    assert len(done.stderr.splitlines()) == 23


def test_a_run_says_where_it_begins(tmp_path):
    """Anew, without a checkpoint, at one, or at the end."""
    config, folder = recipe("tiny"), tmp_path / "run"
    assert training._beginning(folder, config) == f"training into {folder}"
    folder.mkdir()
    (folder / "config.json").touch()
    assert training._beginning(folder, config).endswith("no checkpoint yet, at iteration 0 of 40")
    (folder / "checkpoints" / "iteration_000012").mkdir(parents=True)
    text = f"resumes {folder} at iteration 12 of 40 with its own settings"
    assert training._beginning(folder, config) == text
    (folder / "checkpoints" / "iteration_000040").mkdir()
    assert "has finished its 40 iterations" in training._beginning(folder, config)


def test_a_number_that_is_not_finite_says_the_way_on(tmp_path, monkeypatch, capsys):
    """Since the same command would meet it again."""
    (tmp_path / "run" / "checkpoints" / "iteration_000004").mkdir(parents=True)

    def diverge(*_, **__):
        raise NonFiniteError("loss")

    monkeypatch.setattr(training, "_run", diverge)
    monkeypatch.setattr(training, "_beginning", lambda *_: "begins")
    command = Train(recipe="tiny", out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"^`loss` must be finite; .*`--from .*run@4`, or an ea"):
        training.train_run(command, recipe("tiny"))
    with pytest.raises(ConfigError, match=r"finite; .*such as a lower `optim\.lr`, and another"):
        training.train_run(replace(command, out=tmp_path / "other"), recipe("tiny"))


GAIN = PairedGain(before=1.0, after=3.0, gain=2.0, standard_error=0.5)


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """Words of a run that has ended, whose report cannot be written."""
    folder = tmp_path / "run"

    def train(config, folder, **_):
        folder.mkdir()
        (folder / "summary.json").write_text('{"per_view": {"gain": 2.0}}')
        return trainer.RunResult(folder=folder, per_view=GAIN, joint=GAIN)

    def write_report(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "report.html"))

    monkeypatch.setattr(trainer, "train", train)
    monkeypatch.setattr(report, "write_report", write_report)
    return ["train", "tiny", "run.device=cpu", "--out", str(folder)]


def test_gains_are_told_though_the_report_cannot_be_written(ended, capsys):
    """It took hours to measure them."""
    assert main(ended) == 2
    written = capsys.readouterr()
    assert "+2.0" in next(line for line in written.out.splitlines() if "joint view" in line)
    assert "report:" not in written.out
    assert written.err.startswith("mvczigal: error: [Errno 28] No space left on device: '")


def test_json_is_told_though_the_report_cannot_be_written(ended, capsys):
    """As the table in its place."""
    assert main([*ended, "--json"]) == 2
    written = capsys.readouterr()
    assert json.loads(written.out) == {"folder": ended[-1], "per_view": {"gain": 2.0}}
    assert written.err.count("No space left on device") == 1


def test_a_table_that_cannot_be_printed_costs_no_report(ended, monkeypatch, capsys):
    """As where standard output is a full disk."""
    written = []
    monkeypatch.setattr(report, "write_report", written.append)
    monkeypatch.setattr(display, "gain_table", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(ended)

    assert written == [Path(ended[-1])]


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    """It gives settings, plan and checks, and its status says whether they hold.

    The plan of a recipe is read and not measured, whatever the seed.
    """
    monkeypatch.chdir(tmp_path)
    passed = [True]

    def check(config, *, device, progress):
        progress(1, 2)
        finding = Finding(name="it is", passed=passed[0], reason="so")
        return CheckResult(findings=(finding,), seconds=0.0)

    monkeypatch.setattr(preflight, "check", check)
    monkeypatch.setattr(plan, "plan", None)  # which measures
    words = ["train", "tiny", "optim.lr=1e-3", "--seed", "7", "--dry-run"]
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    passed[0] = False
    with pytest.raises(SystemExit) as stopped:
        main(words)

    assert stopped.value.code == 1
    text = capsys.readouterr().out
    assert content["folder"] == str(Path("runs/tiny-7"))
    assert content["config"]["optim"]["lr"] == 1e-3
    assert content["plan"] == planning.plan_content(stored_plan(recipe("tiny"), processes=1))
    assert content["checks"][0]["reason"] == "so"
    for words in ("would train into runs/tiny-7", "optim.lr", "peak in update", "it is"):
        assert words in text
    assert list(tmp_path.iterdir()) == []
