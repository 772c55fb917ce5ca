"""Whole runs on the published scorers, as tiny random networks in the published files' names.

Loading, chunks, several scorers at once, the service, the guard and an outage, on the CPU.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from mvczigal_ref.checkpoint import load_checkpoint
from mvczigal_ref.errors import ScorerUnavailableError
from mvczigal_ref.reward.builders import JOINT, PER_VIEW
from mvczigal_ref.reward.registry import ScorerOptions, per_view_scorer
from mvczigal_ref.reward.service import ScorerInfo, serving
from mvczigal_ref.trainer import Events
from tests.integration.runs import (
    assert_same_run,
    checkpoints,
    metrics,
    parameters,
    run,
    small_config,
)
from tests.unit.reward import test_hyperscore as hyperscore
from tests.unit.reward import tiny_files
from tests.unit.reward.test_hpsv3 import PIXELS
from tests.unit.reward.test_hpsv3 import folder as hpsv3_folder  # noqa: F401 - a fixture

AXES = ("alignment", "geometry", "texture", "overall")
ONE = {"iterations": 1, "objects_per_iteration": 2, "objects_per_slice": 1}


@pytest.fixture(scope="module")
def places(tmp_path_factory, hpsv3_folder):  # noqa: F811 - pytest's way to name a fixture
    """Write every published file, tiny; give its folder by the scorer's name."""
    folders = {
        name: tmp_path_factory.mktemp(name)
        for name in ("clip_score", "pickscore", "hpsv2", "image_reward", "hyperscore")
    }
    for name in ("clip_score", "pickscore"):
        tiny_files.write_clip(folders[name])
    tiny_files.write_hps(folders["hpsv2"])
    tiny_files.write_image_reward(folders["image_reward"])
    torch.save(dict(hyperscore.checkpoint()), folders["hyperscore"] / "model.pth")
    hyperscore.WORDS.save_pretrained(folders["hyperscore"])
    sizes = {
        "hpsv2": tiny_files.clip_config().to_dict(),
        "image_reward": tiny_files.blip_config().to_dict(),
        "hyperscore": dataclasses.asdict(hyperscore.SIZE),
        "hpsv3": {"pixels": PIXELS},
    }
    folders["hpsv3"] = hpsv3_folder
    for name, size in sizes.items():
        (folders[name] / "size.json").write_text(json.dumps(size))
    return {name: str(folder) for name, folder in folders.items()}


def located(places, *names):
    """Say where these scorers are; each tokenizer lies with the weights."""
    families = {name.partition(".")[0] for name in names}
    found = {name: places[name] for name in families}
    return {"weights": found, "tokenizers": found}


# -- each of the published scorers -------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["clip_score", "pickscore", "hpsv2", "image_reward", "hpsv3"],
)
def test_a_run_trains_on_a_per_view_scorer(places, prompts, tmp_path, name):
    """From its files to changed parameters; its own mean is a metric."""
    reward = {"per_view": name, **located(places, name)}
    run(small_config(prompts, run=ONE, reward=reward), tmp_path)
    (row,) = metrics(tmp_path)

    for arm in ("zigzag", "standard"):
        assert row[f"reward/{name}/{arm}"] == row[f"per_view_reward/{arm}"]
        assert abs(row[f"reward/{name}/{arm}"]) > 1e-4
    assert row["grad_norm"] > 0
    assert any(bool(value.any()) for k, value in parameters(tmp_path).items() if "lora_B" in k)


@pytest.mark.parametrize("axes", [AXES[:1], AXES[1:]], ids=["one axis", "three axes"])
def test_a_run_trains_on_hyperscore(places, prompts, tmp_path, axes):
    """On an axis, or on several by weight: their sum is the joint reward."""
    names = [f"hyperscore.{axis}" for axis in axes]
    joint = dict(zip(names, (1.0, 0.5, -0.25), strict=False))
    reward = {"joint": joint, **located(places, *names)}
    run(small_config(prompts, run=ONE, reward=reward), tmp_path)
    (row,) = metrics(tmp_path)

    for arm in ("zigzag", "standard"):
        total = sum(w * row[f"reward/{name}/{arm}"] for name, w in joint.items())
        assert row[f"joint_view_reward/{arm}"] == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_all_of_them_at_once_in_chunks_and_watched(places, prompts, tmp_path):
    """Whatever passes the networks together; bfloat16 is near."""
    names = ("clip_score", "pickscore", "hyperscore.overall", "hpsv2", "hyperscore.texture")
    reward = {
        "per_view": {"clip_score": 1.0, "pickscore": 0.5, "world.per_view": 0.1},
        "joint": {"hyperscore.overall": 1.0, "world.joint": 0.2},
        "combine": "advantages",
        **located(places, *names),
    }
    guard = {"every": 1, "per_view": ["hpsv2"], "joint": ["hyperscore.texture"], "margin": 50.0}
    rows = []
    for chunk, dtype in ((32, "fp32"), (5, "fp32"), (32, "bf16")):
        folder = tmp_path / f"{chunk}-{dtype}"
        more = {"images_per_chunk": chunk, "dtype": dtype}
        config = small_config(prompts, run=ONE, reward={**reward, **more}, guard=guard)
        result = run(config, folder)
        rows += metrics(folder)

        assert set(result.guard.latest.watched) == {"hpsv2", "hyperscore.texture"}
        assert set(result.guard.latest.trained) == {"per_view", "joint"}
    whole, chunked, narrow = rows
    scored = [k for k in whole if k.startswith(("reward/", "guard/")) and "world" not in k]
    assert {"guard/hpsv2", "guard/diversity", "reward/pickscore/zigzag"} < set(scored)
    before = [k for k in scored if k.startswith("reward/")]
    assert {k: chunked[k] for k in before} == pytest.approx(
        {k: whole[k] for k in before}, rel=1e-4, abs=1e-5
    )
    assert {k: narrow[k] for k in before} == pytest.approx(
        {k: whole[k] for k in before}, rel=0.05, abs=0.05
    )


# -- the service -------------------------------------------------------------------------


def test_a_run_on_a_served_scorer_is_the_run_on_that_scorer(places, prompts, tmp_path):
    """Images travel as they are, and scores come back to the bit."""
    here = located(places, "pickscore")
    config = small_config(prompts, run=ONE, reward={"per_view": "pickscore", **here})
    run(config, tmp_path / "here")
    served = per_view_scorer(
        "pickscore",
        ScorerOptions(weights=places["pickscore"], tokenizer=places["pickscore"]),
    )
    info = ScorerInfo(name="pickscore", version="1", kind="per_view")
    with serving(served, info=info) as server:
        reward = {"per_view": "pickscore", "url": {"pickscore": server.url}}
        run(small_config(prompts, run=ONE, reward=reward), tmp_path / "there")

    (mine,), (theirs,) = metrics(tmp_path / "here"), metrics(tmp_path / "there")
    assert mine == theirs
    for name, value in parameters(tmp_path / "here").items():
        assert torch.equal(parameters(tmp_path / "there")[name], value)


def bright(images, prompts):
    """Like bright views."""
    return 10 * images.mean((2, 3, 4))


def dark(images, prompts):
    """Like objects that the others dislike."""
    return -10 * images.mean((1, 2, 3, 4))


class Lasts(Events):
    """Ends a service after so many iterations."""

    def __init__(self, server, after):
        self.server, self.after = server, after

    def iteration(self, finished, total, metrics):
        if finished == self.after:
            self.server.shutdown()
            self.server.server_close()


def test_an_outage_stops_the_run_and_the_same_call_goes_on_to_the_same_bits(prompts, tmp_path):
    """With a checkpoint of the last finished iteration, however seldom they are written."""
    info = ScorerInfo(name="mine", version="1", kind="per_view")
    quick = {"wait": 0.0, "timeout": 20.0}
    with serving(bright, info=info) as server:
        port = server.server_port
        reward = {"per_view": "mine", "url": {"mine": server.url}, **quick}
        config = small_config(prompts, run={"checkpoint_every": 10}, reward=reward)
        run(config, tmp_path / "whole")
        with pytest.raises(ScorerUnavailableError, match="gave no usable answer"):
            run(config, tmp_path / "out", events=Lasts(server, after=2))

    assert checkpoints(tmp_path / "out")[-1] == "iteration_000002"
    assert load_checkpoint(tmp_path / "out" / "checkpoints" / "iteration_000002").iteration == 2
    with serving(bright, info=info, port=port):
        run(config, tmp_path / "out")
    assert_same_run(tmp_path / "whole", tmp_path / "out")


# -- the guard ---------------------------------------------------------------------------

LEARNS = {
    "model": {"finetune": "full"},
    "sampler": {"num_steps": 2, "guidance_scale": 1.0},
    "optim": {"lr": 2e-3, "optimizer_steps_per_epoch": 2},
    "advantage": {"mode": "per_view"},
    "run": {"iterations": 8, "objects_per_iteration": 16, "objects_per_slice": 8},
}


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
    guard = {"every": 2, "unit": "reward", "margin": 0.05, "action": action, "noises": 2}
    reward = {"per_view": "bright", "joint": "dark"}
    config = small_config(prompts, **LEARNS, guard=guard, reward=reward)
    with named(bright=bright, dark=dark):
        return run(config, folder, **more)


def test_a_guard_stops_a_run_that_pays_with_what_is_watched(prompts, tmp_path):
    """Where it is; the reward had risen, and the watched one fallen by the margin."""
    result = guarded(prompts, tmp_path, action="stop")
    last = result.guard.latest.iteration

    assert result.guard.fired
    assert last < 8
    assert checkpoints(tmp_path)[-1] == f"iteration_{last:06d}"
    gains = result.guard.gains()
    assert gains["per_view"][0] > 0
    assert gains["joint"][0] <= -0.05
    assert metrics(tmp_path)[-1]["guard/fired"] == 1.0
    assert json.loads((tmp_path / "summary.json").read_text())["guard"]["fired"] is True


def test_a_guard_returns_a_run_to_its_best_check(prompts, tmp_path):
    """The newest checkpoint holds its parameters, and the held-out scores are theirs."""
    result = guarded(prompts, tmp_path, action="return")
    before = result.guard.best.iteration
    best = load_checkpoint(tmp_path / "best" / f"iteration_{before:06d}")
    final = parameters(tmp_path)

    assert result.guard.fired
    assert before < result.guard.latest.iteration
    assert all(torch.equal(final[name], value) for name, value in best.tensors["policy"].items())
    assert (result.per_view.gain == 0.0) is (before == 0)


def test_a_guarded_run_that_was_stopped_goes_on_to_the_same_bits(prompts, tmp_path):
    """The guard's memory is in the checkpoint."""
    guarded(prompts, tmp_path / "whole", action="return")

    class Stop(Events):
        def iteration(self, finished, total, metrics):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(prompts, tmp_path / "stopped", action="return", events=Stop())
    guarded(prompts, tmp_path / "stopped", action="return")

    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
