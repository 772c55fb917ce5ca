"""Whole runs on the published scorers, as tiny random networks in the published files' names.

Loading, chunks, several scorers at once, judges, the service, the guard and an outage, on the CPU.
"""

import json
import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from mvczigal_ref.cli import main, scoring
from mvczigal_ref.errors import ScorerUnavailableError
from mvczigal_ref.pictures import contact_sheet, save_png
from mvczigal_ref.reward.builders import JOINT, PER_VIEW, ScorerOptions
from mvczigal_ref.reward.clip_score import PickScore
from mvczigal_ref.reward.foreign_tensors import read_tensors
from mvczigal_ref.reward.hyperscore_network import HyperScoreNetwork
from mvczigal_ref.reward.registry import joint_view_scorer, per_view_scorer
from mvczigal_ref.reward.service import ScorerInfo, serving
from mvczigal_ref.training.checkpoint import load_checkpoint
from mvczigal_ref.training.events import Events
from tests.chat_stub import chat, serve
from tests.integration.runs import (
    assert_same_run,
    checkpoints,
    metrics,
    parameters,
    run,
    small_config,
)
from tests.unit.reward.published_files import AXES, located, write_published
from tests.unit.reward.published_files import PER_VIEW as PUBLISHED

ONE = {"iterations": 1, "objects_per_iteration": 2, "objects_per_slice": 1}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folder of every published scorer."""
    return write_published(tmp_path_factory.mktemp("published"))


# -- the published scorers ---------------------------------------------------------------


def graded(request):
    """Judge by the first image's brightness, a little more for each line."""
    lines = re.findall(r"^(.* Score .*: )X$", request.text, re.MULTILINE)
    level = 1 + 3 * float(request.images[0].mean())
    return "\n".join(f"{line}{level + 0.1 * k:.6f}" for k, line in enumerate(lines))


def test_a_run_trains_on_all_of_them_by_name_and_weight(places, prompts, tmp_path, monkeypatch):
    """From their files to changed parameters: each has its own metric, and their sum is trained."""
    axes = [f"hyperscore.{axis}" for axis in AXES]
    # Of one size, so that none is lost in another's rounding.
    per_view = dict(zip(PUBLISHED, (1.0, 0.5, -0.5, 0.1, 0.25), strict=True)) | {"chat_judge": 0.2}
    joint = dict(zip(axes, (1.0, 0.5, -0.25, 0.1), strict=True)) | {"chat_judge.joint": 0.3}
    passes, asked, encode = [], [], HyperScoreNetwork.conditions
    monkeypatch.setattr(
        HyperScoreNetwork, "conditions", lambda self: passes.append(1) or encode(self)
    )
    with serve(chat(graded)) as stub:
        found = located(places, *PUBLISHED, "hyperscore")
        found["weights"] |= {"chat_judge": "judge"}
        reward = {"per_view": per_view, "joint": joint, "url": {"chat_judge": stub.url}, **found}
        run(small_config(prompts, run=ONE, reward=reward), tmp_path)
        asked += [len(request.images) for request in stub.requests]
    (row,) = metrics(tmp_path)

    for arm in ("zigzag", "standard"):
        for kind, weights in (("per_view", per_view), ("joint_view", joint)):
            parts = {name: row[f"reward/{name}/{arm}"] for name in weights}
            assert all(abs(value) > 1e-4 for value in parts.values())
            total = sum(weight * parts[name] for name, weight in weights.items())
            assert row[f"{kind}_reward/{arm}"] == pytest.approx(total, rel=1e-4, abs=1e-5)
    assert row["grad_norm"] > 0
    assert any(bool(value.any()) for k, value in parameters(tmp_path).items() if "lora_B" in k)
    # Two slices, two held-out objects before and after: a pass each for both arms and all axes.
    assert len(passes) == 6
    assert asked.count(1) == 6 * asked.count(6) > 0


def test_standardised_advantages_in_chunks_and_narrow_while_others_are_watched(
    places, prompts, tmp_path, monkeypatch
):
    """The guard's diversity is of the watched scorer's features."""
    seen, features = [], PickScore.image_features
    monkeypatch.setattr(
        PickScore, "image_features", lambda self, images: seen.append(1) or features(self, images)
    )
    names = ("clip_score", "image_reward", "pickscore", "hyperscore")
    reward = {
        "per_view": {"clip_score": 1.0, "image_reward": 0.5},
        "joint": "hyperscore.overall",
        "combine": "advantages",
        "images_per_chunk": 5,
        "dtype": "bf16",
        **located(places, *names),
    }
    guard = {"every": 1, "per_view": ["pickscore"], "joint": ["hyperscore.texture"], "margin": 50.0}
    result = run(small_config(prompts, run=ONE, reward=reward, guard=guard), tmp_path)
    (row,) = metrics(tmp_path)

    assert set(result.guard.latest.watched) == {"pickscore", "hyperscore.texture"}
    assert set(result.guard.latest.trained) == {"per_view", "joint"}
    assert {"guard/pickscore", "reward/clip_score/zigzag", "reward/image_reward/standard"} < set(
        row
    )
    assert result.guard.fired is False
    assert row["grad_norm"] > 0
    # Vectors of length one in 24 features and six views are nearer than images' colours are.
    assert 0.0 < row["guard/diversity"] < 2 * 24**-0.5
    # For its scores and for its features, at both checks of two noises for two prompts.
    assert len(seen) == 2 * 2 * 4


# -- the command line --------------------------------------------------------------------


def test_pictures_are_scored_from_the_command_line(places, tmp_path, monkeypatch, capsys):
    """By published weights, per view and joint; the file says what the scorers say."""
    monkeypatch.setattr("mvczigal_ref.cli.progress.SLOW", 1e-3)
    images = torch.rand(1, 6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    images = (images * 255).round() / 255
    save_png(tmp_path / "row.png", contact_sheet(images, gap=0))
    argv = ["score", str(tmp_path / "row.png"), "--row", "6", "--prompt", "a red cube"]
    for name, build in (("pickscore", per_view_scorer), ("hyperscore.texture", joint_view_scorer)):
        place = places[name.partition(".")[0]]
        told = ["--weights", place, "--tokenizer", place, "--json", str(tmp_path / "said.json")]
        assert main([*argv, "--reward", name, *told, "--device", "cpu"]) == 0
        said = json.loads((tmp_path / "said.json").read_text())["scores"][name]
        scorer = build(name, ScorerOptions(weights=place, tokenizer=place))
        assert said == scorer(images, ["a red cube"]).tolist()
        assert capsys.readouterr().err == f"loading the weights of {name!r} from {place!r}\n"


def test_a_served_scorer_s_version_is_of_its_weights_content(places, tmp_path, monkeypatch, capsys):
    """The same wherever they lie; another for one other number, tokenizer file or precision."""
    versions = []
    monkeypatch.setattr(
        "mvczigal_ref.reward.service.serve", lambda *_, version, **more: versions.append(version)
    )
    monkeypatch.setattr(scoring, "__version__", "7.0")
    monkeypatch.setattr("mvczigal_ref.cli.progress.SLOW", 1e-3)

    def version(folder, *words):
        told = ["--weights", str(folder), "--tokenizer", str(folder), "--device", "cpu"]
        assert main(["serve-reward", "pickscore", *words, *told]) == 0
        assert capsys.readouterr().err == f"loading the weights of 'pickscore' from '{folder}'\n"
        return versions[-1]

    copy = tmp_path / "copy"
    write_published(tmp_path)
    first = version(places["pickscore"])
    assert re.fullmatch(r"7\.0-[0-9a-f]{16}", first)
    (tmp_path / "pickscore").rename(copy)
    assert version(copy) == first
    assert version(copy, "reward.dtype=bf16") != first
    path = copy / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\0")
    assert read_tensors(path).keys() == read_tensors(f"{places['pickscore']}/{path.name}").keys()
    assert version(copy) != first
    path.write_bytes(content)
    config = copy / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    assert version(copy) != first
    assert len(set(versions)) == 4


# -- the service -------------------------------------------------------------------------


class Lasts(Events):
    """Ends a service after so many iterations."""

    def __init__(self, server, after):
        self.server, self.after = server, after

    def iteration(self, finished, total, metrics):
        if finished == self.after:
            self.server.shutdown()
            self.server.server_close()


class Terminates(logging.Handler):
    """Asks this process to stop as soon as it says that it waits."""

    def emit(self, record):
        if "trying again for 600 s" in record.getMessage():
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_on_a_served_scorer_outlasts_an_outage_to_the_local_run_s_bits(
    places, prompts, tmp_path
):
    """A stop that is asked for ends the wait of ten minutes, with a good checkpoint.

    It is of the last finished iteration, however seldom they are written; the same call goes on.
    """
    place, size = places["pickscore"], {**ONE, "iterations": 2, "checkpoint_every": 10}
    here = {"per_view": "pickscore", **located(places, "pickscore")}
    run(small_config(prompts, run=size, reward=here), tmp_path / "here")
    scorer = per_view_scorer("pickscore", ScorerOptions(weights=place, tokenizer=place))
    info = ScorerInfo(name="pickscore", version="1", kind="per_view")
    folder, listener = tmp_path / "there", Terminates()
    log = logging.getLogger("mvczigal_ref.reward.service")
    log.addHandler(listener)
    try:
        with serving(scorer, info=info) as server:
            url, port = server.url, server.server_port
            reward = {"per_view": "pickscore", "url": {"pickscore": url}, "wait": 600.0}
            config = small_config(prompts, run=size, reward=reward)
            with pytest.raises(ScorerUnavailableError, match="a stop was asked for"):
                run(config, folder, events=Lasts(server, after=1))
    finally:
        log.removeHandler(listener)
    assert checkpoints(folder)[-1] == "iteration_000001"
    assert load_checkpoint(folder / "checkpoints" / "iteration_000001").iteration == 1

    with serving(scorer, info=info, port=port):
        run(config, folder)
    assert metrics(folder) == metrics(tmp_path / "here")
    for name, value in parameters(tmp_path / "here").items():
        assert torch.equal(parameters(folder)[name], value)


# -- the guard ---------------------------------------------------------------------------

LEARNS = {
    "model": {"finetune": "full"},
    "sampler": {"num_steps": 2, "guidance_scale": 1.0},
    "optim": {"lr": 8e-3, "optimizer_steps_per_epoch": 2},
    "advantage": {"mode": "per_view"},
    "run": {"iterations": 4, "objects_per_iteration": 4, "objects_per_slice": 2},
}


def bright(images, prompts):
    """Like bright views."""
    return 10 * images.mean((2, 3, 4))


def dark(images, prompts):
    """Like objects that the others dislike."""
    return -10 * images.mean((1, 2, 3, 4))


@contextmanager
def named(**scorers) -> Iterator[None]:
    """Know a per-view and a joint scorer of these names for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, scorer in scorers.items():
            table = JOINT if name == "dark" else PER_VIEW
            patch.setitem(table, name, lambda options, scorer=scorer: scorer)
        yield


def guarded(prompts, folder, *, action, **more):
    """Train on brightness while its opposite is watched."""
    guard = {"every": 1, "unit": "reward", "margin": 0.035, "action": action, "noises": 2}
    reward = {"per_view": "bright", "joint": "dark"}
    config = small_config(prompts, **LEARNS, guard=guard, reward=reward)
    with named(bright=bright, dark=dark):
        return run(config, folder, **more)


@pytest.fixture(scope="module")
def returned(prompts, tmp_path_factory):
    """A run that its guard returned to its best check, and where it is."""
    folder = tmp_path_factory.mktemp("returned")
    return guarded(prompts, folder, action="return"), folder


def test_a_guard_stops_a_run_that_pays_with_what_is_watched(prompts, tmp_path):
    """Where it is; the reward had risen, and the watched one fallen by the margin."""
    result = guarded(prompts, tmp_path, action="stop")
    last = result.guard.latest.iteration

    assert result.guard.fired
    assert last < LEARNS["run"]["iterations"]
    assert checkpoints(tmp_path)[-1] == f"iteration_{last:06d}"
    gains = result.guard.gains()
    assert gains["per_view"][0] > 0
    assert gains["joint"][0] <= -0.035
    assert metrics(tmp_path)[-1]["guard/fired"] == 1.0
    assert json.loads((tmp_path / "summary.json").read_text())["guard"]["fired"] is True


def test_a_guard_returns_a_run_to_its_best_check(returned):
    """The newest checkpoint holds its parameters, and the held-out scores are theirs."""
    result, folder = returned
    before = result.guard.best.iteration
    best = load_checkpoint(folder / "best" / f"iteration_{before:06d}")
    final = parameters(folder)

    assert result.guard.fired
    assert before < result.guard.latest.iteration
    assert all(torch.equal(final[name], value) for name, value in best.tensors["policy"].items())
    assert (result.per_view.gain == 0.0) is (before == 0)


def test_a_guarded_run_that_was_stopped_goes_on_to_the_same_bits(returned, prompts, tmp_path):
    """The guard's memory is in the checkpoint."""

    class Stop(Events):
        def iteration(self, finished, total, metrics):
            if finished == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(prompts, tmp_path, action="return", events=Stop())
    guarded(prompts, tmp_path, action="return")

    assert_same_run(returned[1], tmp_path)
