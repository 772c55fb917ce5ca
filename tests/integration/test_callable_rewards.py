"""A function in a file as the reward of a whole run: train, resume, evaluate, report, plan."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mvczigal_ref.cli import main
from mvczigal_ref.config import code_names
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.training.run_folder import load_newest
from mvczigal_ref.training.tracking import read_metrics
from tests.integration.runs import HELD_OUT, PROMPTS, contents, parameters

FILE = """
def redness(images, prompts):
    red, green, blue = images.mean((-1, -2)).unbind(-1)
    return red - (green + blue) / 2


def darkness(images, prompts):
    return -images.mean((-1, -2, -3))


def evenness(images, prompts):
    return -redness(images, prompts).var(-1)
"""
SETTINGS = (
    "run.objects_per_iteration=2", "run.objects_per_slice=1", "run.evaluation_noises=1",
    "run.device=cpu", "run.checkpoint_every=1", "constraint.threshold_objects=2",
    "model.lora_rank=2", "optim.optimizer_steps_per_epoch=1", "sampler.num_steps=2",
    "optim.decay_iterations=2", "run.prompts=prompts.txt", "run.held_out=held_out.txt",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with weights and the file, where everything is typed."""
    folder = tmp_path_factory.mktemp("rewards")
    tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1)).save(folder / "weights")
    (folder / "my").mkdir()
    (folder / "my" / "rewards.py").write_text(FILE, "utf-8")
    for name, prompts in (("prompts", PROMPTS), ("held_out", HELD_OUT)):
        (folder / f"{name}.txt").write_text("\n".join(prompts), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(autouse=True)
def _nothing_typed(monkeypatch):
    monkeypatch.setattr(code_names, "_TYPED", set())


REWARDS = (
    "reward.per_view={my/rewards.py:redness: 1, my/rewards.py:darkness: 0.5}",
    "reward.joint=my/rewards.py:evenness",
)
NAMES = [f"my/rewards.py:{name}" for name in ("redness", "darkness", "evenness")]


def train(out: str, iterations: int, *more: str) -> int:
    words = [f"run.iterations={iterations}", "model.weights=weights", *SETTINGS, *REWARDS]
    return main(["train", "tiny", *words, "--out", out, *more])


@pytest.fixture(scope="module")
def finished(place):
    """The folder of a run of two iterations."""
    assert train("whole", 2) == 0
    return place / "whole"


def test_a_run_records_the_functions_it_was_trained_on(place, finished):
    """Their hashes in every checkpoint, their rewards among the metrics and on the page."""
    record = load_newest(finished).state["rewards"]
    row = read_metrics(finished / "metrics.jsonl")[0]

    assert {name: entry["place"] for name, entry in record.items()} == dict.fromkeys(
        NAMES, str(place / "my/rewards.py")
    )
    parts = [row[f"reward/{name}/zigzag"] for name in NAMES]
    assert row["per_view_reward/zigzag"] == pytest.approx(parts[0] + 0.5 * parts[1])
    assert row["joint_view_reward/zigzag"] == parts[2]
    assert (finished / "policy").is_dir()


def test_a_stopped_run_goes_on_to_the_same_bits(place, finished):
    """The same words find the functions again."""
    assert train("parts", 1) == 0
    assert train("parts", 2) == 0

    mine, theirs = parameters(place / "parts"), parameters(finished)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(FILE + "# changed\n", "must be the function that the run began with"), (None, "there is no")],
    ids=["changed", "gone"],
)
def test_a_run_whose_function_has_changed_or_gone_is_refused(
    place, finished, capsys, text, complaint
):
    """In one line that says where it was, and nothing of the run changes."""
    file, before = place / "my" / "rewards.py", contents(finished)
    try:
        file.unlink() if text is None else file.write_text(text, "utf-8")
        assert train("whole", 2) == 2
    finally:
        file.write_text(FILE, "utf-8")
    printed = capsys.readouterr().err

    assert complaint in printed
    assert str(file) in printed
    assert contents(finished) == before


def test_a_run_is_evaluated_where_its_functions_are_typed(finished, capsys):
    """Not by what its folder says alone, which may have been downloaded."""
    words = ["evaluate", "--run", "whole", "--noises", "1", "--device", "cpu"]
    words += ["--prompts", "held_out.txt"]
    assert main(words) == 2
    assert "add `reward.per_view=my/rewards.py:darkness`" in capsys.readouterr().err
    assert main([*words, *REWARDS, "--json", "scores.json"]) == 0

    assert set(json.loads(Path("scores.json").read_text())["gains"]) == {"per view", "joint view"}


def test_a_run_is_reported_and_exported_without_its_functions(finished):
    """Nothing is judged there, so nothing is imported."""
    file = Path("my/rewards.py")
    try:
        file.unlink()
        assert main(["report", "whole"]) == 0
        assert main(["export", "whole", "--out", "exported"]) == 0
    finally:
        file.write_text(FILE, "utf-8")
    page = (finished / "report.html").read_text("utf-8")

    assert all(f"Reward of {name}" in page for name in NAMES[:2])
    assert not code_names._TYPED


@pytest.mark.slow
def test_a_plan_says_what_it_does_not_count(place, capsys):
    """The functions, by name."""
    assert main(["plan", "tiny", *REWARDS]) == 0

    printed = " ".join(capsys.readouterr().out.split())
    assert f"not counted: what {', '.join(sorted(NAMES[:2]) + NAMES[2:])} takes" in printed


def test_pictures_are_scored(place, capsys):
    """By functions of both kinds, beside others."""
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    for view in range(2):
        red.save(f"red{view}.png")
    rewards = [NAMES[0], NAMES[2]]
    words = ["score", "red0.png", "red1.png", "--prompt", "red", "--device", "cpu"]
    assert main([*words, "--json", "red.json", "--reward", *rewards]) == 0

    assert json.loads(Path("red.json").read_text())["scores"] == {
        "my/rewards.py:redness": [[1.0, 1.0]],
        "my/rewards.py:evenness": [0.0],
    }


@pytest.mark.slow
def test_two_processes_do_what_one_does(place, finished, capfd):
    """Each imports the functions that the command line names."""
    assert train("two", 2, "--processes", "2") == 0

    one, two = (read_metrics(place / n / "metrics.jsonl")[0] for n in ("whole", "two"))
    rewards = [name for name in one if name.startswith("reward/")]
    assert rewards
    assert {name: two[name] for name in rewards} == {name: one[name] for name in rewards}
