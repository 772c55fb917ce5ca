"""A run that stopped and went on ends with the bits of one that never stopped."""

import json
import shutil

import pytest

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.reproduce.calls import network_calls
from mvczigal_ref.training.events import Events
from mvczigal_ref.training.prompt_batch import prompt_batch
from mvczigal_ref.training.trainer import train
from tests.integration.runs import (
    HELD_OUT,
    PROMPTS,
    assert_same_run,
    cases,
    checkpoints,
    contents,
    evaluations,
    metrics,
    parameters,
    run,
    small_components,
    small_config,
    write_prompts,
)

CASES = {
    "MVC-ZigAL": {},
    "two standard arms": {"objective": {"pairing": "standard"}},
    "every weight": {"model": {"finetune": "full"}},
    "sampled ahead": {"rollout": {"ahead": True}},
    "evaluated on the way": {"run": {"evaluate_every": 1}},
    "sampled threshold, warm-up, several passes": {
        "constraint": {"threshold_objects": 4},
        "optim": {"warmup_iterations": 2, "epochs_per_iteration": 2},
        "zigzag": {"steps": 2},
        "sampler": {"kind": "ddim"},
    },
}


@pytest.mark.parametrize("sections", cases(CASES, "MVC-ZigAL"))
def test_four_iterations_are_two_and_two(undisturbed, prompts, tmp_path, sections):
    """Parameters, optimiser, multiplier, threshold, metrics and held-out scores."""
    whole = undisturbed(**sections)
    run(
        small_config(prompts, **{**sections, "run": {**sections.get("run", {}), "iterations": 2}}),
        tmp_path,
    )
    assert checkpoints(tmp_path) == ["iteration_000001", "iteration_000002"]
    halfway = parameters(tmp_path)
    run(small_config(prompts, **sections), tmp_path)

    everywhere = sections.get("run", {}).get("evaluate_every") == 1
    assert_same_run(whole, tmp_path, skip=() if everywhere else (2,))
    rows = metrics(whole)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert len({row["threshold"] for row in rows}) == 4
    assert all(row["grad_norm"] > 0 for row in rows)
    assert any((halfway[name] != value).any() for name, value in parameters(whole).items())


def test_a_run_that_samples_ahead_goes_on_to_the_bit(undisturbed, prompts, tmp_path):
    """One iteration, of which none was sampled ahead, and one more; a rollout's calls count for
    its own iteration.
    """
    one = {"iterations": 2, "objects_per_iteration": 2, "objects_per_slice": 1}
    sections = {"rollout": {"ahead": True}, "optim": {"optimizer_steps_per_epoch": 1}, "run": one}
    whole = undisturbed(**sections)
    run(small_config(prompts, **{**sections, "run": {**one, "iterations": 1}}), tmp_path)
    run(small_config(prompts, **sections), tmp_path)

    assert_same_run(whole, tmp_path, skip=(1,))
    calls = [row["network_calls"] for row in metrics(whole)]
    assert calls == network_calls(small_config(prompts, **sections), components=small_components())
    assert calls[0] < calls[1]  # which replays second arms for their value, too


@pytest.mark.slow
def test_the_multiplier_comes_back(undisturbed, prompts, tmp_path):
    """Where it moves in every iteration, and decides the gap."""
    sections = {
        "constraint": {
            "multiplier_init": 0.7, "threshold_init": 3.0, "threshold_decay": 0.5,
            "step_size_violated": 0.03,
        }
    }  # fmt: skip
    whole = undisturbed(**sections)
    for iterations in (1, 3, 4):
        changed = {**sections, "run": {"iterations": iterations}}
        run(small_config(prompts, **changed), tmp_path)

    assert_same_run(whole, tmp_path, skip=(1, 3))
    assert len({row["multiplier"] for row in metrics(whole)}) == 4


def test_a_rarer_checkpoint_costs_iterations_and_no_bits(undisturbed, prompts, tmp_path):
    """Lines past the checkpoint are cut off and written again."""

    class Stop(Events):
        def iteration(self, finished, total, metrics):
            if finished == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small_config(prompts, run={"checkpoint_every": 2}), tmp_path, events=Stop())
    assert checkpoints(tmp_path)[-1] == "iteration_000002"
    assert len(metrics(tmp_path)) == 3
    run(small_config(prompts), tmp_path)

    assert_same_run(undisturbed(), tmp_path)


def test_a_finished_run_has_nothing_to_do(undisturbed, prompts, tmp_path):
    """Every file keeps its bytes."""
    folder = shutil.copytree(undisturbed(), tmp_path / "run")
    before = contents(folder)
    result = run(small_config(prompts), folder)

    assert contents(folder) == before
    assert json.loads((folder / "summary.json").read_text())["joint"]["gain"] == result.joint.gain


def test_another_number_of_noises_is_measured_for_both_ends(undisturbed, prompts, tmp_path):
    """Scores before training are found again as they were, and with the new noises."""
    folder = shutil.copytree(undisturbed(), tmp_path / "run")
    old = evaluations(folder)
    result = run(small_config(prompts, run={"evaluation_noises": 2}), folder)
    fresh = tmp_path / "fresh"
    run(small_config(prompts, run={"evaluation_noises": 2, "iterations": 1}), fresh)

    assert evaluations(folder)[0] == evaluations(fresh)[0] != old[0]
    assert result.joint.before != result.joint.after


# -- damaged -----------------------------------------------------------------------------


def flip(file):
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    """Lose the last byte."""
    file.write_bytes(file.read_bytes()[:-1])


FILES = [
    "config.json",
    "manifest.json",
    "optimizer.safetensors",
    "policy.safetensors",
    "state.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "harm", [flip, truncate, lambda file: file.unlink()], ids=["bit", "end", "gone"]
)
def test_a_damaged_newest_checkpoint_is_refused_by_name(undisturbed, prompts, tmp_path, name, harm):
    """With the remedy, before a model is built, and nothing is written."""
    folder = shutil.copytree(undisturbed(), tmp_path / "run")
    newest = folder / "checkpoints" / checkpoints(folder)[-1]
    harm(newest / name)
    before = contents(folder)
    with pytest.raises(CheckpointError) as caught:
        train(small_config(prompts, run={"iterations": 6}), folder, world=World())

    assert str(newest) in str(caught.value)
    assert name in str(caught.value)
    assert "Remove it to go on from the one before" in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["before_000000", "after_000004"])
def test_damaged_scores_are_refused_and_the_run_stays_ended(undisturbed, prompts, tmp_path, name):
    """Before the folder is that of a run that goes on."""
    folder = shutil.copytree(undisturbed(), tmp_path / "run")
    truncate(folder / "evaluations" / f"{name}.safetensors")
    before = contents(folder)
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors.*Remove the file"):
        run(small_config(prompts), folder)

    assert contents(folder) == before


def test_the_remedy_works(undisturbed, prompts, tmp_path):
    """Without the damaged checkpoint the run goes on from the one before, to the same bits."""
    folder = shutil.copytree(undisturbed(), tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "iteration_000004")
    run(small_config(prompts), folder)

    assert_same_run(undisturbed(), folder)


# -- foreign -----------------------------------------------------------------------------


def refused(config, folder, **more):
    """The sentence with which a folder is refused; nothing in it may change."""
    before = contents(folder)
    with pytest.raises(CheckpointError) as caught:
        train(config, folder, world=World(), **more)
    assert contents(folder) == before
    return str(caught.value)


def test_a_folder_of_another_run_is_refused_by_name(undisturbed, prompts):
    """With the setting that differs, and its values there and here."""
    said = refused(small_config(prompts, run={"seed": 3}), undisturbed())

    assert str(undisturbed()) in said
    assert "`run.seed` is 0 there and 3 here" in said
    assert "Choose another folder" in said


@pytest.mark.parametrize(
    "content", ["", "{}", "[1, 2]", '{"name": "left-pad", "version": "1.0.0"}', "recipe: tiny", "{"]
)
def test_a_folder_with_another_json_is_refused_by_name(prompts, tmp_path, content):
    """Even JSON that lacks only what a run would add."""
    (tmp_path / "config.json").write_text(content)
    said = refused(small_config(prompts), tmp_path)

    assert str(tmp_path / "config.json") in said
    assert "is no run's configuration" in said


@pytest.mark.parametrize("name", ["checkpoints", "evaluations", "metrics.jsonl", "summary.json"])
def test_a_folder_that_lost_its_configuration_is_refused(undisturbed, prompts, tmp_path, name):
    """A new run would write over what is there."""
    copy = shutil.copytree if (undisturbed() / name).is_dir() else shutil.copy
    copy(undisturbed() / name, tmp_path / name)
    said = refused(small_config(prompts), tmp_path)

    assert f"holds {name} of a run without its config.json" in said


def test_a_checkpoint_of_another_run_is_refused_by_name(undisturbed, prompts, tmp_path):
    """Although the folder's own configuration is right."""
    folder = shutil.copytree(undisturbed(), tmp_path / "run")
    other = undisturbed(objective={"pairing": "standard"})
    shutil.copytree(other / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)
    said = refused(small_config(prompts), folder)

    assert str(folder / "checkpoints" / "iteration_000004") in said
    assert "`objective.pairing` is 'standard' there and 'zigzag' here" in said


def test_a_shorter_run_than_was_done_is_refused(undisturbed, prompts):
    """Its scores after training would be those of another policy."""
    said = refused(small_config(prompts, run={"iterations": 3}), undisturbed())

    assert "`run.iterations` must be at least 4" in said


def test_other_prompts_under_the_same_name_are_refused(tmp_path):
    """The file's path is the setting; its content is checked on a resume."""
    prompts = write_prompts(tmp_path)
    run(small_config(prompts, run={"iterations": 1}), tmp_path / "run")
    (tmp_path / "prompts.txt").write_text("\n".join(reversed(PROMPTS)))
    told = refused(small_config(prompts, run={"iterations": 2}), tmp_path / "run")

    assert "`run.prompts` = " in told
    assert "differs. Restore the file" in told
    assert (tmp_path / "run" / "summary.json").is_file()  # it is a run that has ended


def test_a_run_that_was_moved_with_its_prompts_goes_on(tmp_path):
    """The same prompts in another place."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    run(small_config(write_prompts(first), run={"iterations": 1}), first / "run")
    first.rename(second)
    run(small_config(str(second / "prompts.txt"), run={"iterations": 2}), second / "run")

    assert [row["iteration"] for row in metrics(second / "run")] == [0, 1]
    assert checkpoints(second / "run") == ["iteration_000001", "iteration_000002"]


def test_a_prompt_list_is_mended_without_losing_the_run(tmp_path):
    """A bad line is named before anything is made; one that was not met yet may be changed."""
    path, folder = tmp_path / "prompts.txt", tmp_path / "run"
    lines = [f"a {colour} ball with a white nose" for colour in ("red", "blue", "purple", "yellow")]
    late = lines.index(prompt_batch(lines, seed=0, iteration=1, count=2)[1])
    changes = {"objects_per_iteration": 2, "objects_per_slice": 1}

    def train_on(text, iterations, place=folder):
        changed = [*lines[:late], text, *lines[late + 1 :]]
        path.write_text("\n".join(changed), "utf-8")
        run(small_config(str(path), run={"iterations": iterations, **changes}), place)

    with pytest.raises(ConfigError, match=rf"line {late + 1} of .*prompts\.txt'.*got 'a red bal "):
        train_on("a red bal with a white nose", 1)
    assert not folder.exists()
    train_on(lines[late], 1)
    with pytest.warns(UserWarning, match="has not met yet"):
        train_on("a red ball with a blue nose", 2)
    train_on("a red ball with a blue nose", 2, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", folder, skip=(1,))


def test_other_held_out_prompts_are_refused(undisturbed, prompts):
    """Scores of different prompts are no pair."""
    with pytest.raises(CheckpointError, match=r"`held_out` must be the prompts of .*prompts\.json"):
        run(small_config(prompts), undisturbed(), held_out=HELD_OUT[::-1])


# -- files that are none of ours ---------------------------------------------------------


def test_files_that_are_none_of_a_run_stay(undisturbed, prompts, tmp_path):
    """And do not hinder one."""
    (tmp_path / "notes.txt").write_text("mine")
    run(small_config(prompts), tmp_path)

    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert_same_run(undisturbed(), tmp_path)
