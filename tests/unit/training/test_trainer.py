"""`trainer`: the loop around iterations that here do next to nothing."""

import errno
import importlib.util
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from mvczigal_ref import files
from mvczigal_ref.cli.exporting import Export, export_run
from mvczigal_ref.config import from_dict, load_config, to_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import (
    CheckpointError,
    ConfigError,
    DiskFullError,
    RunFolderInUseError,
    ServiceUnavailableError,
)
from mvczigal_ref.evaluation import held_out
from mvczigal_ref.evaluation.guard import GuardCheck
from mvczigal_ref.evaluation.scores import Evaluation
from mvczigal_ref.evaluation.watch import Watch
from mvczigal_ref.iteration import IterationResult
from mvczigal_ref.models.lora_weights import LoraWeights
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.report import write_report
from mvczigal_ref.tiny_world.grammar import split_prompts
from mvczigal_ref.training import checkpoint, tensor_groups, trainer
from mvczigal_ref.training import loop as training_loop
from mvczigal_ref.training.checkpoint import load_checkpoint
from mvczigal_ref.training.events import Events
from mvczigal_ref.training.exporting import export_policy
from mvczigal_ref.training.prompt_batch import prompt_batch
from mvczigal_ref.training.prompts import read_prompts
from mvczigal_ref.training.run_folder import is_finished
from mvczigal_ref.training.tracking import read_metrics
from mvczigal_ref.training.trainer import train

HELD_OUT = ["a red ball", "a blue cube", "a green can"]


class Record(Events):
    """Everything that happened, in order."""

    def __init__(self):
        self.told, self.iterations, self.measured, self.looks = [], [], [], []
        self.signals, self.watched, self.out = {}, {}, set()
        self.hang_up = lambda: None

    def meet_outage(self, what, place):
        """Be out, once, where it was asked for."""
        if (what, place) in self.out:
            self.out.remove((what, place))
            raise ServiceUnavailableError("nobody answers")

    def stage(self, text):
        self.told.append(text)

    def iteration(self, finished, total, metrics):
        self.told.append((finished, total, metrics["loss"]))


def level(system):
    """What the fake iterations change: the first trained number."""
    return next(iter(system.trained().values())).detach().view(-1)[0]


@pytest.fixture
def record(monkeypatch):
    """Replace iterations and evaluations by ones that write down what they are told."""
    record = Record()

    def run_iteration(system, optimizer, constraint, prompts, *, iteration, timer, **_):
        rate = optimizer.param_groups[0]["lr"]
        record.meet_outage("iteration", iteration)
        record.iterations.append((iteration, list(prompts), rate, constraint))
        level(system).fill_(iteration + 1.0)
        for number in record.signals.get(iteration, ()):
            record.hang_up()
            os.kill(os.getpid(), number)
        with timer("update"):
            moved = replace(constraint, multiplier=constraint.multiplier + 0.25)
        return IterationResult(moved, {"loss": float(iteration)})

    def evaluate(system, prompts, *, config, world, num_noises, **_):
        value = level(system).item()
        record.meet_outage("evaluation", len(record.iterations))
        record.measured.append((value, list(prompts), num_noises))
        table = torch.arange(len(prompts)).expand(num_noises, -1).contiguous().float()
        images = torch.zeros(1, 6, 3, 32, 32)
        return Evaluation(per_view=table * value, joint=table - value, images=images)

    class Looks(Watch):
        """Scores as the test has written them, by the iterations done."""

        def __call__(self, iteration):
            record.meet_outage("guard", iteration)
            record.looks.append((iteration, level(self.system).item()))
            watched = float(record.watched.get(iteration, 0.0))
            check = GuardCheck(
                iteration=iteration,
                trained={"per_view": (float(iteration),) * 2},
                watched={"other": (watched,) * 2},
            )
            return check, {"guard/other": watched}

    monkeypatch.setattr(trainer, "Watch", Looks)
    monkeypatch.setattr(training_loop, "run_iteration", run_iteration)
    monkeypatch.setattr(held_out, "evaluate", evaluate)
    return record


def config(iterations=4, optim=None, guard=None, **run):
    """Settings of a run of two objects an iteration."""
    sizes = {"objects_per_iteration": 2, "objects_per_slice": 1, "evaluation_noises": 2}
    more = {"iterations": iterations, "checkpoint_every": 2, "keep_checkpoints": 9}
    return from_dict({"run": {**sizes, **more, **run}, "optim": optim or {}, "guard": guard or {}})


def go(config, folder, record, *, world=None, prompts=HELD_OUT, **more):
    """Train with the narrowest network."""
    components = tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))
    here = World() if world is None else world
    more = {"components": components, "held_out": prompts, "events": record, **more}
    return train(config, folder, world=here, **more)


def saved(folder):
    """Iterations of the checkpoints in a folder."""
    return sorted(int(path.name[-6:]) for path in (folder / "checkpoints").iterdir())


# -- oracle ------------------------------------------------------------------------------


def test_a_run_is_its_iterations_in_order(record, tmp_path):
    """Each with its prompts, and the constraint that the one before it returned."""
    go(config(3), tmp_path, record)
    everything = read_prompts("world.train")

    assert [one[0] for one in record.iterations] == [0, 1, 2]
    assert [one[1] for one in record.iterations] == [
        prompt_batch(everything, seed=0, iteration=i, count=2) for i in range(3)
    ]
    assert [one[3].multiplier for one in record.iterations] == [0.0, 0.25, 0.5]


def test_who_watches_is_told_of_stages_and_iterations(record, tmp_path):
    """In the order in which they happen."""
    go(config(2), tmp_path, record)

    assert record.told == [
        "loading models",
        "scoring held-out prompts before training",
        (1, 2, 0.0),
        (2, 2, 1.0),
        "scoring held-out prompts after training",
    ]


def test_a_run_that_ended_leaves_what_it_trained(record, tmp_path):
    """The last checkpoint's numbers, under PEFT's names, with the weights and the settings."""
    wanted = config(2)
    go(wanted, tmp_path, record)
    trained = load_checkpoint(tmp_path / "checkpoints" / "iteration_000002").tensors["policy"]
    values = load_file(tmp_path / "policy" / "adapter_model.safetensors")
    card = (tmp_path / "policy" / "README.md").read_text("utf-8")

    assert {name.removeprefix("base_model.model."): v.tolist() for name, v in values.items()} == {
        name: v.tolist() for name, v in trained.items()
    }
    assert json.loads(card.partition("```json\n")[2].partition("```")[0]) == to_dict(wanted)
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "base_model" not in card  # no model of the hub
    assert (tmp_path / "policy" / "lora.safetensors").is_file()


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ({"weights": "lcm_sdxl"}, "latent-consistency/lcm-sdxl"),
        ({"weights": "sdxl"}, "stabilityai/stable-diffusion-xl-base-1.0"),
        ({"weights": "lcm_sdxl", "sources": {"unet": "me/mine@v2"}}, "me/mine"),
        ({"weights": "some/folder"}, "some/folder"),
    ],
)
def test_the_base_model_is_that_of_the_weights(model, base, tmp_path):
    """A hub id without its revision, or the folder."""
    lora = LoraWeights(values={"a.lora_A.weight": torch.zeros(1, 2)}, rank=1, alpha=1.0)
    export_policy(lora, from_dict({"model": model}), tmp_path / "out", layout="peft")

    told = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert told["base_model_name_or_path"] == base


def test_nobody_needs_to_watch(record, tmp_path):
    """And the base class of those who do is silent."""
    go(config(1), tmp_path / "a", record, events=None)
    go(config(1), tmp_path / "b", record, events=Events())

    assert record.told == []


def test_the_result_compares_before_and_after(record, tmp_path):
    """Prompt p scores p * 0 and p before, p * 3 and p - 3 after three iterations."""
    result = go(config(3), tmp_path, record)
    start = record.measured[0][0]

    assert result.folder == tmp_path
    assert result.per_view.after - result.per_view.before == pytest.approx(3 - start)
    assert result.per_view.gain == pytest.approx(3 - start)
    assert result.joint.gain == pytest.approx(start - 3)
    assert result.joint.standard_error == pytest.approx(0, abs=1e-6)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["per_view"]["gain"] == result.per_view.gain
    assert summary["joint"] == {
        "before": result.joint.before,
        "after": result.joint.after,
        "gain": result.joint.gain,
        "standard_error": result.joint.standard_error,
    }


def test_an_unknown_error_is_null_in_the_summary(record, tmp_path):
    """A single prompt leaves one, and JSON has no NaN."""
    go(config(1), tmp_path, record, prompts=HELD_OUT[:1])

    assert json.loads((tmp_path / "summary.json").read_text())["joint"]["standard_error"] is None


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup", "decay", "rates"),
    [
        (0, 0, [1, 1, 1, 1]),
        (1, 0, [1, 1, 1, 1]),
        (3, 0, [1 / 3, 2 / 3, 1, 1]),
        (0, 4, [1, 3 / 4, 1 / 2, 1 / 4]),
        (2, 4, [1 / 2, 3 / 4, 1 / 2, 1 / 4]),
    ],
)
def test_the_rate_rises_and_falls_linearly(record, tmp_path, warmup, decay, rates):
    """After a resume too."""
    chosen = {"warmup_iterations": warmup, "decay_iterations": decay, "lr": 0.3}
    go(config(max(2, warmup), chosen), tmp_path, record)
    go(config(4, chosen), tmp_path, record)

    assert [one[2] for one in record.iterations] == pytest.approx([0.3 * rate for rate in rates])


@pytest.mark.parametrize(
    ("iterations", "every", "keep", "kept"),
    [(5, 2, 9, [0, 2, 4, 5]), (4, 2, 9, [0, 2, 4]), (3, 10, 9, [0, 3]), (5, 1, 2, [4, 5])],
)
def test_checkpoints_are_written_as_often_as_asked(record, tmp_path, iterations, every, keep, kept):
    """Before the first iteration, in between, and always at the end."""
    go(config(iterations, checkpoint_every=every, keep_checkpoints=keep), tmp_path, record)

    assert saved(tmp_path) == kept
    newest = load_checkpoint(tmp_path / "checkpoints" / f"iteration_{kept[-1]:06d}")
    assert iterations in {value.view(-1)[0].item() for value in newest.tensors["policy"].values()}
    assert newest.state["constraint"]["multiplier"] == 0.25 * iterations


@pytest.mark.parametrize(
    ("every", "occasions"),
    [
        (0, ["after_000004", "before_000000"]),
        (2, ["after_000004", "at_000002", "before_000000"]),
        (3, ["after_000004", "at_000003", "before_000000"]),
    ],
)
def test_evaluations_are_made_as_often_as_asked(record, tmp_path, every, occasions):
    """Each once, of the policy of that iteration, and the metrics say what they found."""
    go(config(4, evaluate_every=every), tmp_path, record)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    known = [row["iteration"] + 1 for row in rows if "held_out/joint" in row]

    found = sorted(path.stem for path in (tmp_path / "evaluations").glob("*.safetensors"))
    assert found == occasions
    assert known == [n for n in range(1, 5) if every and n % every == 0]
    assert [one[0] for one in record.measured[1:]] == sorted({*known, 4})
    assert all(
        row["held_out/joint"] == 1 - row["iteration"] - 1
        for row in rows
        if row["iteration"] + 1 in known
    )
    assert {one[2] for one in record.measured} == {2}


def test_metrics_are_what_iterations_say_with_seconds_and_memory(record, tmp_path):
    """One line each."""
    go(config(3), tmp_path, record)
    rows = read_metrics(tmp_path / "metrics.jsonl")

    assert [row["loss"] for row in rows] == [0.0, 1.0, 2.0]
    names = ("iteration", "loss", "network_calls", "seconds/update", "peak_memory")
    assert {tuple(row) for row in rows} == {names}
    assert all(row["network_calls"] == 0 for row in rows)  # nothing is asked here
    assert all(row["peak_memory"] > 2**20 for row in rows)


@pytest.mark.parametrize("every", [0, 2])
def test_an_average_is_measured_guarded_and_kept(record, tmp_path, every):
    """Iterations set the number to 1, 2, 3, 4; the average follows with decay 1/4 at most."""
    optim = {"average_decay": 0.25, "average_every": 1, "optimizer_steps_per_epoch": 1}
    rule = {"every": 2, "diversity": True, "unit": "reward", "margin": 1.0}
    go(config(4, optim=optim, guard=rule, evaluate_every=every), tmp_path, record)
    first = record.measured[0][0]
    expected, average = {}, first
    for n in (1, 2, 3, 4):
        kept = min(0.25, (1 + n) / (10 + n))
        average = kept * average + (1 - kept) * n
        expected[n] = average

    measured = [first, *([expected[2]] if every else []), expected[4]]
    assert [one[0] for one in record.measured] == pytest.approx(measured)
    assert [look[0] for look in record.looks] == [0, 2, 4]
    assert [look[1] for look in record.looks] == pytest.approx([first, expected[2], expected[4]])
    found = load_checkpoint(tmp_path / "checkpoints" / "iteration_000004")
    assert 4.0 in {value.view(-1)[0].item() for value in found.tensors["policy"].values()}
    exported = load_file(tmp_path / "policy" / "adapter_model.safetensors")
    firsts = {round(value.view(-1)[0].item(), 5) for value in exported.values()}
    assert round(expected[4], 5) in firsts


def test_a_run_goes_on_where_it_ended(record, tmp_path):
    """Iterations, constraint, parameters; the scores before training are not measured again."""
    go(config(2), tmp_path, record)
    go(config(5), tmp_path, record)

    assert [one[0] for one in record.iterations] == [0, 1, 2, 3, 4]
    assert [one[3].multiplier for one in record.iterations] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [one[0] for one in record.measured[1:]] == [2.0, 5.0]
    assert json.loads((tmp_path / "config.json").read_text())["run"]["iterations"] == 5
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]


def test_iterations_after_the_checkpoint_are_done_again(record, tmp_path):
    """Their lines are written once."""

    class Ctrl(Record):
        def iteration(self, finished, total, metrics):
            if finished == 3:
                raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        go(config(4), tmp_path, Ctrl())
    go(config(4), tmp_path, record)

    assert [one[0] for one in record.iterations] == [0, 1, 2, 2, 3]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_waits_for_the_iteration_and_saves(record, tmp_path, number):
    """And gives the signals back."""
    before = signal.getsignal(number)
    record.signals = {0: [number]}
    with pytest.raises(KeyboardInterrupt):
        go(config(checkpoint_every=10), tmp_path, record)

    assert [one[0] for one in record.iterations] == [0]
    assert saved(tmp_path) == [0, 1]
    assert signal.getsignal(number) is before
    assert record.told[-1] == (1, 4, 0.0)


def test_a_second_interrupt_does_not_wait(record, tmp_path):
    """A person who asks twice means now; SIGTERM twice is one request."""
    record.signals = {1: [signal.SIGTERM, signal.SIGINT]}
    with pytest.raises(KeyboardInterrupt):
        go(config(checkpoint_every=10), tmp_path, record)

    assert saved(tmp_path) == [0]
    record.signals = {1: [signal.SIGTERM, signal.SIGTERM]}
    with pytest.raises(KeyboardInterrupt):
        go(config(checkpoint_every=10), tmp_path, record)
    assert saved(tmp_path) == [0, 2]


def test_a_hangup_that_is_ignored_does_not_stop(record, tmp_path):
    """Under nohup a run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    record.signals = {0: [signal.SIGHUP]}
    try:
        go(config(2), tmp_path, record)
    finally:
        signal.signal(signal.SIGHUP, before)

    assert [one[0] for one in record.iterations] == [0, 1]


def test_a_system_without_hangups_and_memory_counts_trains(record, tmp_path, monkeypatch):
    """Windows has neither; a stop saves there, too."""
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setitem(sys.modules, "resource", None)
    record.signals = {0: [signal.SIGTERM]}
    with pytest.raises(KeyboardInterrupt):
        go(config(checkpoint_every=10), tmp_path, record)

    assert saved(tmp_path) == [0, 1]
    assert [row["peak_memory"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [None]


def test_a_run_outlives_the_terminal_that_it_speaks_to(record, tmp_path):
    """What it says after that is lost; an error there would lose the iterations, too."""
    ours, terminals = os.openpty()
    spare = os.dup(1)
    os.dup2(terminals, 1)
    os.close(terminals)

    def speak(finished, total, metrics):
        os.write(1, b"an iteration\n")

    record.iteration = speak
    record.hang_up = lambda: os.close(ours)
    record.signals = {1: [signal.SIGHUP]}
    try:
        with pytest.raises(KeyboardInterrupt):
            go(config(checkpoint_every=10), tmp_path, record)
    finally:
        os.dup2(spare, 1)
        os.close(spare)
    assert saved(tmp_path) == [0, 2]


class Meanwhile(Events):
    """Does something after the second iteration, while the run's folder is its own."""

    def __init__(self, act):
        self.act, self.answers = act, []

    def iteration(self, finished, total, metrics):
        if finished == 2:
            self.answers.append(self.act())


def test_a_second_run_in_the_folder_is_refused_while_the_first_lives(record, tmp_path):
    """And changes nothing there; afterwards the folder is free."""

    def start():
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        with pytest.raises(RunFolderInUseError, match=f"in use by process {os.getpid()} on host "):
            go(config(8), tmp_path, record)
        return before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    meanwhile = Meanwhile(start)
    go(config(), tmp_path, record, events=meanwhile)

    assert meanwhile.answers == [True]
    assert [one[0] for one in record.iterations] == [0, 1, 2, 3]
    assert [row["iteration"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    assert not (tmp_path / ".lock").exists()
    go(config(5), tmp_path, record)


def test_a_run_that_goes_on_can_be_reported_and_exported(record, tmp_path):
    """Readers ask no one."""

    def read():
        out = tmp_path / "exported"
        return write_report(tmp_path).is_file(), export_run(Export(run=tmp_path, out=out)).is_dir()

    meanwhile = Meanwhile(read)
    go(config(checkpoint_every=1, keep_checkpoints=1), tmp_path, record, events=meanwhile)

    assert meanwhile.answers == [(True, True)]


def test_what_a_killed_run_left_half_written_is_swept(record, tmp_path):
    """By the run that goes on, and by no other: a folder that is refused stays as it is."""
    go(config(2), tmp_path, record)
    left = [
        tmp_path / ".metrics.jsonl.7.tmp",
        tmp_path / "evaluations" / ".before_000000.safetensors.7.tmp",
        tmp_path / "checkpoints" / ".iteration_000002.7.tmp",
    ]
    for path in left:
        path.mkdir()
    with pytest.raises(CheckpointError, match="holds another run"):
        go(config(2, optim={"lr": 0.5}), tmp_path, record)
    assert all(path.exists() for path in left)
    go(config(2), tmp_path, record)
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("what", ["save_file", "sync_files"])
def test_a_full_disk_ends_the_run_with_the_checkpoint_to_go_on_from(
    record, tmp_path, monkeypatch, what
):
    """In one sentence; nothing half-written keeps the disk full, and the run goes on later."""
    place = tensor_groups if what == "save_file" else checkpoint
    right = getattr(place, what)

    def full(*arguments):
        if len(record.iterations) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return right(*arguments)

    monkeypatch.setattr(place, what, full)
    with pytest.raises(DiskFullError) as caught:
        go(config(checkpoint_every=1), tmp_path, record)
    name = f"{tmp_path}/checkpoints/iteration_00000"
    assert str(caught.value) == (
        f"cannot write '{name}3': No space left on device. Make room and start again; the run goes "
        f"on from '{name}2'."
    )
    assert saved(tmp_path) == [0, 1, 2]
    record.iterations.clear()
    go(config(checkpoint_every=1), tmp_path, record)
    assert [one[0] for one in record.iterations] == [2, 3]


def test_a_disk_that_is_full_from_the_first_is_told_too(record, tmp_path, monkeypatch):
    """Nothing is left of the run."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(DiskFullError, match=r"config\.json': No space.*the run begins anew\."):
        go(config(), tmp_path / "run", record)
    assert list(tmp_path.iterdir()) == []


def test_trackers_are_asked_for_before_anything_is_loaded(record, tmp_path, monkeypatch):
    """A run without them would be refused only after minutes."""
    monkeypatch.setattr(trainer, "build_system", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="tracker 'wandb' is not installed"):
        go(config(trackers=["wandb"]), tmp_path / "run", record)
    assert list(tmp_path.iterdir()) == []


class Sheets(trainer.Trackers):
    """Trackers that hold the sheets they were handed."""

    sheets: ClassVar = []

    def __init__(self, names, **more):
        super().__init__((), **more)

    def log_sheet(self, iteration, name, images):
        self.sheets.append((iteration, name))

    def close(self):
        self.sheets.append("closed")


def test_every_evaluation_hands_its_sheet_to_the_trackers_once(record, tmp_path, monkeypatch):
    """Before, between and after; a resumed run does not hand over the first again."""
    monkeypatch.setattr(trainer, "Trackers", Sheets)
    monkeypatch.setattr(Sheets, "sheets", [])
    go(config(4, evaluate_every=2), tmp_path, record)

    first, between, after = (0, "held_out/before"), (1, "held_out"), (3, "held_out/after")
    assert Sheets.sheets == [first, between, after, "closed"]
    go(config(6, evaluate_every=6), tmp_path, record)
    assert Sheets.sheets[4:] == [(5, "held_out/after"), "closed"]


def test_a_run_in_a_thread_leaves_signals_alone(record, tmp_path):
    """Python allows handlers in the main thread only."""
    thread = threading.Thread(target=go, args=(config(1), tmp_path, record))
    thread.start()
    thread.join()

    assert (tmp_path / "summary.json").is_file()


GUARD = {"every": 1, "diversity": True, "unit": "reward", "margin": 1.0}


def end_of(folder):
    """Read what a run ended with: its newest checkpoint, metrics without times, and summary."""
    newest = folder / "checkpoints" / f"iteration_{saved(folder)[-1]:06d}"
    rows = read_metrics(folder / "metrics.jsonl")
    for row in rows:
        for name in [n for n in row if n.startswith("seconds/") or n == "peak_memory"]:
            del row[name]
    files = {path.name: path.read_bytes() for path in sorted(newest.iterdir())}
    return files, rows, (folder / "summary.json").read_bytes()


@pytest.mark.parametrize(("every", "looks"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (0, [])])
def test_the_guard_looks_as_often_as_asked(record, tmp_path, every, looks):
    """Before the first iteration too; the metrics say what it found and what it made of it."""
    result = go(config(4, guard={**GUARD, "every": every}), tmp_path, record)
    rows = read_metrics(tmp_path / "metrics.jsonl")

    assert [one[0] for one in record.looks] == looks
    assert [row["iteration"] + 1 for row in rows if "guard/other" in row] == looks[1:]
    assert [row["guard/best_iteration"] for row in rows if "guard/fired" in row] == looks[1:]
    assert (result.guard is None) == (every == 0)
    assert ("guard" in json.loads((tmp_path / "summary.json").read_text())) == (every > 0)


def test_the_guard_ends_a_run(record, tmp_path):
    """With a checkpoint and scores of that moment; it stays ended however often it is called."""
    record.watched = {0: 5, 1: 5.5, 2: 5, 3: 4.5}
    result = go(config(9, guard=GUARD), tmp_path, record)
    rows = read_metrics(tmp_path / "metrics.jsonl")

    assert [one[0] for one in record.iterations] == [0, 1, 2]
    assert [row["guard/fired"] for row in rows] == [0.0, 0.0, 1.0]
    assert saved(tmp_path)[-1] == 3
    assert (tmp_path / "evaluations" / "after_000003.safetensors").is_file()
    assert (result.guard.fired, result.guard.best.iteration) == (True, 1)
    assert result.per_view.after - result.per_view.before == pytest.approx(
        3 - record.measured[0][0]
    )
    first = end_of(tmp_path)
    again = go(config(9, guard=GUARD), tmp_path, record)
    assert len(record.iterations) == 3
    assert again.guard == result.guard
    assert end_of(tmp_path) == first


def test_the_guard_returns_to_its_best_check(record, tmp_path):
    """Parameters and constraint are those of that moment, however old; its copy is not pruned."""
    record.watched = {0: 5, 1: 5.5, 2: 5, 3: 5, 4: 4.5}
    chosen = config(9, guard={**GUARD, "action": "return"}, keep_checkpoints=1)
    result = go(chosen, tmp_path, record)
    newest = load_checkpoint(tmp_path / "checkpoints" / "iteration_000004", config=chosen)
    best = load_checkpoint(tmp_path / "best" / "iteration_000001", config=chosen)

    assert saved(tmp_path) == [4]
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["iteration_000001"]
    assert newest.state["constraint"] == best.state["constraint"]
    assert newest.state["constraint"]["multiplier"] == 0.25
    assert 1.0 in {value.view(-1)[0].item() for value in newest.tensors["policy"].values()}
    for group in ("policy", "optimizer"):
        for name, value in best.tensors[group].items():
            assert torch.equal(newest.tensors[group][name], value)
    assert result.guard.fired
    assert record.measured[-1][0] == 1.0


@pytest.mark.parametrize("action", ["stop", "return"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_guarded_run_goes_on_to_the_same_bits(record, tmp_path, action, stop):
    """From a stop at any iteration, its memory is the checkpoint's."""
    record.watched = {0: 5, 1: 5.5, 2: 5, 3: 5, 4: 4.5}
    chosen = config(9, guard={**GUARD, "action": action}, checkpoint_every=10)
    go(chosen, tmp_path / "whole", record)
    record.signals = {stop - 1: [signal.SIGTERM]}
    with pytest.raises(KeyboardInterrupt):
        go(chosen, tmp_path / "stopped", record)
    record.signals = {}
    go(chosen, tmp_path / "stopped", record)

    assert end_of(tmp_path / "stopped") == end_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("what", "place", "left"),
    [
        ("iteration", 2, 2),
        ("iteration", 0, 0),
        ("guard", 3, 3),
        ("guard", 0, 0),
        ("evaluation", 3, 3),
        ("evaluation", 5, 5),
    ],
)
def test_an_outage_saves_what_was_finished_and_goes_on_to_the_same_bits(
    record, tmp_path, what, place, left
):
    """Also where an iteration was done and something after it could not be measured."""
    record.watched = {n: n for n in range(6)}
    chosen = config(5, guard=GUARD, checkpoint_every=10, evaluate_every=3)
    go(chosen, tmp_path / "whole", record)
    record.iterations.clear()
    record.out = {(what, place)}
    with pytest.raises(ServiceUnavailableError, match="nobody answers"):
        go(chosen, tmp_path / "out", record)

    assert not record.out
    assert saved(tmp_path / "out")[-1] == left
    assert not (tmp_path / "out" / "summary.json").exists()
    go(chosen, tmp_path / "out", record)
    assert [one[0] for one in record.iterations] == [0, 1, 2, 3, 4]
    assert end_of(tmp_path / "out") == end_of(tmp_path / "whole")


def test_an_outage_before_the_first_iteration_leaves_nothing_to_save(record, tmp_path):
    """The same call begins the run."""
    record.out = {("evaluation", 0)}
    with pytest.raises(ServiceUnavailableError):
        go(config(1), tmp_path, record)
    assert not (tmp_path / "checkpoints").exists()
    go(config(1), tmp_path, record)

    assert saved(tmp_path) == [0, 1]


class Second(World):
    """The second of two processes, alone."""

    def barrier(self):
        """Wait for nobody."""

    def anywhere(self, flag):
        """Hear that the first was asked to stop."""
        return True

    def gather_objects(self, share):
        """Get nothing from the first."""
        return share


def test_a_process_that_is_not_the_main_one_writes_and_says_nothing(record, tmp_path):
    """It stops where another was asked to."""
    shared = config(optim={"optimizer_steps_per_epoch": 1})
    with pytest.raises(KeyboardInterrupt):
        go(shared, tmp_path / "run", record, world=Second(rank=1, size=2))

    assert [one[0] for one in record.iterations] == [0]
    assert record.told == []
    assert not (tmp_path / "run").exists()


def test_weights_and_held_out_prompts_come_from_the_configuration(record, tmp_path):
    """Where the caller brings none."""
    parts = tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))
    parts.save(tmp_path / "weights")
    found = load_config(config(1), overrides=[f"model.weights={tmp_path / 'weights'}"])
    go(found, tmp_path / "run", record, components=None, prompts=None)

    assert record.measured[0][1] == split_prompts()[1]


def test_steps_that_change_nothing_are_told_once(record, monkeypatch, tmp_path):
    """With the likely reasons; the metrics count them all."""
    original = training_loop.run_iteration

    def idle(*arguments, **named):
        result = original(*arguments, **named)
        return replace(result, metrics={**result.metrics, "idle_steps": 2.0})

    class Notes(Events):
        texts: ClassVar[list[str]] = []

        def note(self, text):
            self.texts.append(text)

    monkeypatch.setattr(training_loop, "run_iteration", idle)
    go(config(3), tmp_path, record, events=Notes())

    (text,) = Notes.texts
    assert "iteration 0: 2 optimiser steps changed nothing, since every advantage was equal" in text
    assert [row["idle_steps"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2.0] * 3


# -- errors ------------------------------------------------------------------------------


def test_slices_that_cannot_be_shared_are_refused_before_anything_is_done(record, tmp_path):
    """No folder is made and no model is loaded."""
    with pytest.raises(ConfigError, match=r"`run\.objects_per_iteration`"):
        go(config(objects_per_slice=2), tmp_path / "run", record)

    assert record.told == []
    assert not (tmp_path / "run").exists()


def test_a_scorer_that_is_not_there_is_refused_before_anything_is_done(record, tmp_path):
    """No folder is made and no model is loaded, so that the right name may follow."""
    wrong = load_config(config(1), overrides=["reward.per_view=world.pre_view"])
    with pytest.raises(ConfigError, match=r"the nearest is 'world\.per_view'"):
        go(wrong, tmp_path / "run", record)
    absent = load_config(config(1), overrides=["reward.per_view=pickscore"])
    with pytest.raises(CheckpointError, match="Download it"):
        go(absent, tmp_path / "run", record)

    assert record.told == ["loading models"]
    assert not (tmp_path / "run").exists()


def test_another_run_is_refused_before_anything_is_done(record, tmp_path):
    """Its configuration keeps its bytes."""
    go(config(1), tmp_path, record)
    before = (tmp_path / "config.json").read_bytes()
    told = len(record.told)
    with pytest.raises(CheckpointError, match=r"`run\.seed` is 0 there and 1 here"):
        go(config(2, seed=1), tmp_path, record)

    assert len(record.told) == told
    assert (tmp_path / "config.json").read_bytes() == before


def test_what_is_refused_after_loading_leaves_the_folder_free(monkeypatch, record, tmp_path):
    """So that the right settings may follow in the same place."""
    refusal = ConfigError("`rollout.window_size` must leave room")
    monkeypatch.setattr(trainer, "check_steps", lambda *_: (_ for _ in ()).throw(refusal))
    groups = load_config(
        config(1), overrides=["objective.kind=policy_gradient", "rollout.kind=group"]
    )
    with pytest.raises(ConfigError, match="must leave room"):
        go(groups, tmp_path / "run", record)
    assert not (tmp_path / "run").exists()

    go(config(1), tmp_path / "run", record)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="`held_out` must be the prompts"):
        go(config(2), tmp_path / "run", record, prompts=HELD_OUT[:2])
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_run_that_goes_on_has_not_ended(record, tmp_path):
    """Until it has: a stop on the way leaves no summary of what it was before."""
    go(config(2), tmp_path, record)
    record.signals = {3: [signal.SIGTERM]}
    with pytest.raises(KeyboardInterrupt):
        go(config(5), tmp_path, record)
    assert not is_finished(tmp_path, config(5))

    record.signals = {}
    go(config(5), tmp_path, record)
    assert is_finished(tmp_path, config(5))
