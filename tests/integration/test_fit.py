"""`fit`: a run in one call, with a reward, prompts and callbacks of the caller's."""

import hashlib
import inspect
import os
import sys

import pytest
import torch

from mvczigal_ref import Events, fit, recipe, training_run
from mvczigal_ref.cli import notebook
from mvczigal_ref.config import code_names
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.training.run_folder import load_newest
from tests.integration.runs import HELD_OUT, PROMPTS, metrics, parameters


def darkness(images, prompts):
    return -images.mean((-1, -2, -3))


class Notes(Events):
    """Everything heard, in order; a stop after some iterations."""

    def __init__(self, stop_after=None):
        self.heard, self.stop_after = [], stop_after

    def begin(self, run):
        self.heard.append(("begin", run.finished))

    def rollout(self, run, prompts, images):
        self.heard.append(("rollout", run.finished))
        self.images = (prompts, images.clone())
        images.zero_()  # a copy: the run must not notice

    def rewards(self, run, rewards):
        self.heard.append(("rewards", run.finished))
        self.table = rewards.per_view_total().clone()
        for table in rewards.per_view.values():
            table.zero_()

    def update(self, run, metrics):
        self.heard.append(("update", run.finished))
        metrics.clear()
        if run.finished == self.stop_after:
            self.stop()

    def evaluation(self, run, name, scores):
        self.heard.append((name, run.finished))
        self.scores = dict(scores)

    def checkpoint(self, run, path):
        assert (path / "state.json").is_file()
        self.heard.append(("checkpoint", run.finished))

    def iteration(self, finished, total, metrics):
        self.heard.append(("iteration", finished))

    def end(self, run):
        self.heard.append(("end", run.finished))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Words of a run of two iterations of two prompts."""
    folder = tmp_path_factory.mktemp("fit")
    tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1)).save(folder / "weights")
    (folder / "held_out.txt").write_text("\n".join(HELD_OUT), "utf-8")
    return [
        f"model.weights={folder}/weights", f"run.held_out={folder}/held_out.txt",
        "run.iterations=2", "run.objects_per_iteration=2", "run.objects_per_slice=1",
        "run.evaluation_noises=1", "run.device=cpu", "run.checkpoint_every=2",
        "constraint.threshold_objects=2", "model.lora_rank=2", "sampler.num_steps=2",
        "optim.decay_iterations=2", "optim.optimizer_steps_per_epoch=1",
        "run.evaluate_every=1",
    ]  # fmt: skip


def go(settings, out, **more):
    return fit("tiny", reward=darkness, prompts=PROMPTS, overrides=settings, out=out, **more)


@pytest.fixture(scope="module")
def plain(settings, tmp_path_factory):
    """The result of a run that nobody watches."""
    return go(settings, tmp_path_factory.mktemp("plain"))


def test_callbacks_hear_everything_and_change_nothing(settings, plain, tmp_path):
    """In the order of the run; what they do to their copies stays with them."""
    notes = Notes()
    watched = go(settings, tmp_path, callbacks=[notes])

    slices = [("rollout", 0)] * 2 + [("rewards", 0), ("update", 1), ("at", 1), ("iteration", 1)]
    last = [("rollout", 1)] * 2 + [("rewards", 1), ("update", 2), ("iteration", 2)]
    ends = [("checkpoint", 2), ("after", 2), ("end", 2)]
    assert notes.heard == [("begin", 0), ("before", 0), ("checkpoint", 0), *slices, *last, *ends]
    prompts, images = notes.images
    scored = torch.stack([darkness(images[:, arm], prompts) for arm in range(2)], dim=1)
    assert torch.equal(scored[0], notes.table[0, 1])
    assert notes.scores["held_out/per_view"] == pytest.approx(watched.gain.after)
    mine, theirs = parameters(watched.folder), parameters(plain.folder)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert metrics(watched.folder) == metrics(plain.folder)


def test_a_callback_stops_and_the_same_call_goes_on(settings, plain, tmp_path):
    """Saved like after SIGTERM, though no checkpoint was due; then to the same bits."""
    notes = Notes(stop_after=1)
    stopped = go(settings, tmp_path, callbacks=[notes])

    assert notes.heard[-3:] == [("iteration", 1), ("checkpoint", 1), ("end", 1)]
    assert stopped.stopped
    assert stopped.gain is None
    assert len(stopped.metrics) == 1
    whole = go(settings, tmp_path)
    assert not whole.stopped
    mine, theirs = parameters(whole.folder), parameters(plain.folder)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_lost_reader_ends_a_script_as_it_ends_a_command(tmp_path, monkeypatch, capsys):
    """With status 1 and one line, where a bare interrupt would say nothing of the checkpoint."""
    reader, writer = os.pipe()
    os.close(reader)

    def train(config, folder, *, world, events):
        (folder / "checkpoints" / "iteration_000001").mkdir(parents=True)
        events.stage("loading models")
        assert events.stopping
        raise KeyboardInterrupt  # as the loop does where a stop is asked for

    monkeypatch.setattr(training_run, "train", train)
    with open(writer, "w", encoding="utf-8") as nobody, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", nobody)
        with pytest.raises(SystemExit) as end:
            fit("tiny", out=tmp_path, overrides=["run.device=cpu"])

    assert end.value.code == 1
    assert capsys.readouterr().err == (
        f"mvczigal: nobody reads the output any more: stopped; saved in {tmp_path}/checkpoints/"
        "iteration_000001. The same call goes on.\n"
    )


def test_the_result_holds_metrics_gain_and_policy(plain):
    """The gain with its standard error; the policy samples, the same for the same seed."""
    one, two = (plain.policy.sample([PROMPTS[0]], seed=seed) for seed in (0, 1))

    assert [row["iteration"] for row in plain.metrics] == [0, 1]
    assert plain.gain.gain == pytest.approx(plain.gain.after - plain.gain.before)
    assert plain.gain.standard_error > 0
    assert plain.joint_gain is not None
    assert (plain.folder / "report.html").is_file()
    assert one.shape == (1, 6, 3, 32, 32)
    assert torch.equal(plain.policy.sample([PROMPTS[0]]), one)
    assert not torch.equal(one, two)


def test_the_run_records_the_reward_and_refuses_another(settings, plain):
    """By the hash of its source: one that is called the same is another."""
    name = "fit.reward:darkness"
    assert load_newest(plain.folder).state["rewards"][name]["place"] == f"reward in {__name__}"

    def darkness(images, prompts):
        return images.mean((-1, -2, -3))

    with pytest.raises(CheckpointError, match="must be the function that the run began with"):
        fit("tiny", reward=darkness, prompts=PROMPTS, overrides=settings, out=plain.folder)


def test_the_recorded_source_is_of_what_scores(settings, tmp_path):
    """Not of a file that is edited while the run begins."""
    file = tmp_path / "my.py"
    file.write_text(inspect.getsource(darkness), "utf-8")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    class Edit(Events):
        def stage(self, text):
            if text.startswith("scoring held-out"):
                file.write_text(f"# {text}\n{inspect.getsource(darkness)}", "utf-8")

        def checkpoint(self, run, path):
            assert file.read_text("utf-8").startswith("# scoring")
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fit(
            "tiny", reward=f"{file}:darkness", prompts=PROMPTS, overrides=settings,
            callbacks=[Edit()], out=tmp_path / "run",
        )  # fmt: skip

    assert load_newest(tmp_path / "run").state["rewards"][f"{file}:darkness"]["sha256"] == digest


def test_other_prompts_are_refused_and_the_run_keeps_its_own(settings, plain):
    """Its list is written once: another process may train on it."""
    before = (plain.folder / "prompts.txt").read_bytes()
    with pytest.raises(CheckpointError, match="`prompts` must be those that the run in"):
        fit("tiny", reward=darkness, prompts=PROMPTS[:1], overrides=settings, out=plain.folder)

    assert (plain.folder / "prompts.txt").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"reward": lambda images, prompts: images.mean()}, "it returned shape ()"),
        ({"joint_reward": lambda images, prompts: images.mean((-1, -2, -3))}, "`reward.per_view`"),
        ({"reward": "pikscore"}, "the nearest is 'pickscore'"),
        ({"prompts": ["a red ball\nwith a white nose"]}, "texts of one line each"),
        ({"prompts": ["a red ball", "\ud800"]}, "item 2 of `prompts` must be Unicode text"),
        ({"overrides": ["optim.lr=-1"]}, "`optim.lr`"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(
    arguments, complaint, tmp_path, monkeypatch
):
    """In one line, with the argument or the setting."""
    monkeypatch.setattr("mvczigal_ref.system.system.load_network", None)
    with pytest.raises(ConfigError) as caught:
        fit(recipe("tiny"), out=tmp_path, **arguments)

    assert complaint in str(caught.value)


def test_a_notebook_shows_one_output_that_changes(settings, tmp_path, monkeypatch):
    """A bar, the numbers and the held-out scores; where the run lies at the end."""
    outputs = []
    monkeypatch.setattr("mvczigal_ref.training_run.notebook_output", lambda: outputs.append)
    monkeypatch.setattr(notebook, "_EVERY", 0.0)
    go([*settings, "run.iterations=1"], tmp_path)

    assert any('<progress value="1" max="1">' in html for html in outputs)
    assert "held_out/per_view" in outputs[-1]
    assert outputs[-1].startswith(f"1 of 1 iterations in {tmp_path}")


def test_a_name_that_is_typed_in_fit_may_be_imported(settings, tmp_path, monkeypatch):
    """As on the command line."""
    monkeypatch.setattr(code_names, "_TYPED", set())
    file = tmp_path / "my.py"
    file.write_text("def score(images, prompts):\n    return images\n", "utf-8")
    with pytest.raises(ConfigError, match=r"my\.py:score"):
        fit("tiny", reward=f"{file}:score", prompts=PROMPTS, overrides=settings, out=tmp_path / "r")
