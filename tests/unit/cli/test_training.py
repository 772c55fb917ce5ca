"""`cli.training`: recipes shown, the seed's option, processes and folders refused before work."""

import json
import subprocess
import sys

import pytest

from mvczigal_ref.cli import main, training
from mvczigal_ref.cli.training import Train, train_words
from mvczigal_ref.config import TrainConfig, load_config, to_dict
from mvczigal_ref.config.loading import read_settings
from mvczigal_ref.recipes import RECIPES, recipe


@pytest.fixture
def runs(monkeypatch):
    """Runs and launches that `train` would begin, instead of them."""
    runs = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(training, "train_run", lambda *begun: runs.append(begun))
    monkeypatch.setattr(training, "launch", lambda *begun: runs.append(begun))
    return runs


# -- recipes -----------------------------------------------------------------------------


def test_a_recipe_is_shown_with_source_and_changes(capsys):
    """Every setting that differs from the default is there with both values, and no other."""
    assert main(["recipes", "tiny_mv_pg"]) == 0
    text = capsys.readouterr().out
    rows = [line.strip("│ ").split(" │ ") for line in text.splitlines() if line.startswith("│")]
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    defaults, values = to_dict(TrainConfig()), to_dict(recipe("tiny_mv_pg"))
    changed = {
        f"{section}.{name}"
        for section, settings in values.items()
        if section != "recipe"
        for name, value in settings.items()
        if value != defaults[section][name]
    }

    assert table.keys() == changed
    assert table["optim.lr"] == ["0.002", "0.004"]
    assert text.startswith("tiny_mv_pg: MV-PG on the tiny world")
    assert "arXiv:2505.20107" in text


@pytest.mark.parametrize("name", ["tiny", "lcm_sdxl_simple", "mv_grpo_vlm"])
def test_a_recipe_s_yaml_is_the_recipe(name, tmp_path, capsys):
    """A file that `--config` reads, with every section, so that no later default changes it."""
    assert main(["recipes", name, "--yaml"]) == 0
    (tmp_path / "recipe.yaml").write_text(capsys.readouterr().out)

    assert read_settings(tmp_path / "recipe.yaml").keys() == to_dict(recipe(name)).keys()
    assert load_config(file=tmp_path / "recipe.yaml") == recipe(name)


def test_recipes_are_written_as_json(tmp_path):
    """All of them in a line each, or one with its changes."""
    assert main(["recipes", "--json", str(tmp_path / "all.json")]) == 0
    assert main(["recipes", "tiny", "--json", str(tmp_path / "tiny.json")]) == 0
    every, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("all", "tiny"))

    assert every.keys() == RECIPES.keys()
    assert one["changes"]["optim.lr"] == [0.002, 0.004]
    assert one["recipe"] == "tiny"
    assert "source" in one


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
    command = Train(recipe="tiny", settings=("optim.lr=1",), seed=3, start="runs/a@4", processes=2)

    assert train_words(command) == [
        "train", "tiny", "optim.lr=1", "--seed", "3", "--from", "runs/a@4", "--processes", "2",
    ]  # fmt: skip


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "tinny"], "unknown recipe: `tinny`; did you mean `tiny`?"),
        (["recipes", "tinny"], "unknown recipe: `tinny`; did you mean `tiny`?"),
        (["recipes", "--yaml"], "name a recipe"),
        (["train", "tiny", "--seed", "1", "run.seed=1"], "leave one of the two out"),
        (["train", "tiny", "--seed", "-1"], "`run.seed`"),
        (["train", "tiny", "--processes", "0"], "`--processes` must be at least 1"),
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
    ["recipes", "tiny"],
)


def test_slips_are_told_without_torch(tmp_path):
    """Importing it alone takes a second."""
    (tmp_path / "file").touch()
    words = [[word.format(file=tmp_path / "file") for word in each] for each in QUICK]
    script = (
        "import sys\n"
        "from mvczigal_ref.cli import main\n"
        f"print([main(words) for words in {words!r}])\n"
        "print({'torch', 'diffusers', 'matplotlib'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    assert done.stdout.splitlines()[-2:] == [str([2] * 8 + [0]), "set()"]
    assert len(done.stderr.splitlines()) == 8
