"""`reward.builders`: what a name is built from, what is shared, kept, and asked of others."""

import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvczigal_ref.config import RewardConfig
from mvczigal_ref.errors import CheckpointError, ConfigError, ScorerUnavailableError
from mvczigal_ref.reward import builders
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.hyperscore import HyperScore
from mvczigal_ref.reward.provenance import files_read
from mvczigal_ref.reward.registry import joint_view_scorer, mixture, per_view_scorer, scorer_options
from mvczigal_ref.reward.service import ScorerInfo, serving
from tests.chat_stub import chat, raw, serve
from tests.unit.reward.published_files import AXES, PER_VIEW, located, write_published

PROMPTS = ["a red cube with a white nose", "a blue ball"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folder of every published scorer."""
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def images():
    """Noise, twice two views."""
    return torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def options(places, name, **settings):
    """Read the options of a tiny published scorer from its settings."""
    reward = RewardConfig(**located(places, name), **settings)
    return scorer_options(name, reward, device=torch.device("cpu"), num_views=2)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PER_VIEW, "hyperscore.overall"])
def test_chunk_and_precision_reach_every_published_scorer(places, images, name):
    """Three images at once give the same scores, bfloat16 near ones."""
    build = joint_view_scorer if name.startswith("hyperscore") else per_view_scorer

    def score(**settings):
        return build(name, options(places, name, **settings))(images, PROMPTS)

    exact = score()
    assert exact.dtype == torch.float32
    torch.testing.assert_close(score(images_per_chunk=3), exact, rtol=1e-4, atol=1e-5)
    narrow = score(dtype="bf16")
    assert not torch.equal(narrow, exact)
    # Eight bits a number through a few random layers, against scores of order one.
    torch.testing.assert_close(narrow, exact, rtol=0.1, atol=0.1)


def test_axes_of_one_file_share_its_network(places, images, monkeypatch):
    """A mixture of them runs it once; another precision, or another number of views, is its own."""
    passes = []
    all_axes = HyperScore.all_axes
    monkeypatch.setattr(
        HyperScore, "all_axes", lambda self, *asked: passes.append(self) or all_axes(self, *asked)
    )
    weights = {f"hyperscore.{axis}": 1.0 for axis in AXES}

    def build(name):
        return joint_view_scorer(name, options(places, name))

    four = mixture(weights, build)
    tables = four.tables(images, PROMPTS)
    assert len(passes) == 1
    expected = all_axes(passes[0], images, PROMPTS)
    assert all(
        torch.equal(tables[f"hyperscore.{axis}"], expected[:, k]) for k, axis in enumerate(AXES)
    )
    shared = four.scorers["hyperscore.overall"].network
    assert joint_view_scorer("hyperscore", options(places, "hyperscore")).network is shared
    narrow = options(places, "hyperscore", dtype="bf16")
    assert joint_view_scorer("hyperscore", narrow).network is not shared


def test_a_shared_network_tells_its_files_each_time(places):
    """Model, size and tokenizer: a version does not hang on what else is in use."""
    with files_read() as first:
        one = joint_view_scorer("hyperscore.texture", options(places, "hyperscore"))
    with files_read() as second:
        two = joint_view_scorer("hyperscore.overall", options(places, "hyperscore"))

    assert one.network is two.network
    assert {path.name for path in first} >= {"model.pth", "size.json", "tokenizer.json"}
    assert set(first) == set(second)


def test_a_file_that_was_replaced_is_read_anew(places, tmp_path):
    """Though the old one's network is still in use."""
    path, old = tmp_path / "model.pth", dict(torch.load(f"{places['hyperscore']}/model.pth"))
    torch.save(old, path)
    settings = {"tokenizer": places["hyperscore"], "num_views": 2}
    (tmp_path / "size.json").write_bytes(Path(places["hyperscore"], "size.json").read_bytes())
    before = joint_view_scorer("hyperscore", ScorerOptions(weights=str(path), **settings))
    torch.save(old | {"fc_quality.bias": old["fc_quality.bias"] + 1.0}, path)
    after = joint_view_scorer("hyperscore", ScorerOptions(weights=str(path), **settings))

    assert not torch.equal(before.network.fc_quality.bias, after.network.fc_quality.bias)


def test_a_service_s_scores_are_kept_in_a_folder(images, tmp_path):
    """The next process asks only who it is; another version is asked anew."""
    calls = []

    def judge(images, prompts):
        calls.append(len(prompts))
        return images.mean((2, 3, 4))

    found = []
    for version in ("1", "1", "2"):
        info = ScorerInfo(name="mine", version=version, kind="per_view")
        with serving(judge, info=info) as server:
            remote = per_view_scorer(
                "mine", ScorerOptions(url=server.url, cache=str(tmp_path), num_views=2)
            )
            found.append(remote(images, PROMPTS))
            assert remote.version == version

    assert calls == [2, 2]
    assert torch.equal(found[0], found[1])


def graded(request):
    """Give every criterion a score: 1 + 4 x the brightness of the first image."""
    level = 1 + 4 * float(request.images[0].mean())
    lines = re.findall(r"^(.* Score .*: )X$", request.text, re.MULTILINE)
    return "\n".join(f"{line}{level:.4f}" for line in lines)


def test_a_chat_judge_is_asked_for_views_or_objects(images):
    """By its model's name; with a key from the environment, and as many tries as the wait is."""
    with serve(chat(graded)) as stub:
        asked = ScorerOptions(url=stub.url, weights="judge", num_views=2, requests_at_once=3)
        more = replace(asked, images_per_question=4)
        per_view = per_view_scorer("chat_judge", asked)
        joint = joint_view_scorer("chat_judge.joint", asked)
        one, all_ = per_view(images, PROMPTS), joint(images, PROMPTS)

    rounded = (images * 255).round() / 255
    torch.testing.assert_close(one, 1 + 4 * rounded.mean((2, 3, 4)), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(all_, one[:, 0], rtol=0.0, atol=1e-4)
    assert {request.body["model"] for request in stub.requests} == {"judge"}
    assert "judge" in per_view.version
    assert per_view.scorer.workers == joint.scorer.workers == 3
    for build, name in (
        (per_view_scorer, "chat_judge"),
        (per_view_scorer, "chat_judge.style"),
        (joint_view_scorer, "chat_judge.joint"),
    ):
        many = build(name, more).scorer
        assert (many.images_per_question, many.endpoint.max_tokens) == (4, 512)
    assert (per_view.scorer.images_per_question, per_view.scorer.endpoint.max_tokens) == (1, 512)
    endpoint = per_view.scorer.endpoint
    assert sum(min(0.5 * 2.0**k, 30.0) for k in range(endpoint.retries)) >= 600.0
    assert sum(min(0.5 * 2.0**k, 30.0) for k in range(endpoint.retries - 1)) < 600.0


def test_a_chat_judge_is_waited_for_as_long_as_asked():
    """Days too, which once overflowed; and its key must be there at once."""
    for wait, retries in ((0.0, 0), (0.5, 1), (0.6, 2), (31.5, 6), (31.6, 7), (86400.0, 2885)):
        options = ScorerOptions(url="http://h/v1", weights="judge", num_views=2, wait=wait)
        assert per_view_scorer("chat_judge", options).scorer.endpoint.retries == retries
    with pytest.raises(ConfigError, match="'ABSENT_KEY' is unset or empty"):
        per_view_scorer("chat_judge", replace(options, api_key_env="ABSENT_KEY"))


@pytest.mark.parametrize("reply", [raw(b"no", status=404), raw(b"no", status=503), chat("fine")])
def test_a_chat_judge_that_does_not_judge_is_out(images, reply):
    """Refused, not there, or without scores: the run is to save and stop."""
    with serve(reply) as stub:
        judge = per_view_scorer(
            "chat_judge", ScorerOptions(url=stub.url, weights="judge", wait=0.0)
        )
        with pytest.raises(ScorerUnavailableError, match="the scorer does not serve"):
            judge(images[:1, :1], PROMPTS[:1])


def test_a_stop_ends_a_chat_judge_s_wait(images):
    """Its workers' pauses too."""
    with serve(raw(b"busy", status=503)) as stub:
        judge = per_view_scorer("chat_judge", ScorerOptions(url=stub.url, weights="judge"))
        timer = threading.Timer(0.3, lambda: setattr(judge.waiting, "stopped", True))
        timer.start()
        with pytest.raises(ScorerUnavailableError, match="a stop was asked for"):
            judge(images, PROMPTS)
        timer.join()


# -- errors ------------------------------------------------------------------------------


def test_a_size_that_cannot_be_read_is_named(tmp_path):
    """With its path."""
    (tmp_path / "size.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"size\.json` must be readable JSON"):
        per_view_scorer("hpsv2", ScorerOptions(weights=str(tmp_path)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("content", ['{"hidden_size": "x", "text_config": 3}', '{"a": [1]}', "[]"])
@pytest.mark.parametrize("name", ["clip_score", "hpsv2", "image_reward", "hyperscore", "hpsv3"])
def test_unfit_settings_are_named(tmp_path, whole, name, content):
    """In whatever way a library refuses them: one line, no other exception."""
    place = shutil.copytree(whole[name], tmp_path / name)
    for file in ("size.json", "config.json", "med_config.json"):
        if (tmp_path / name / file).exists():
            (tmp_path / name / file).write_text(content)
    options = ScorerOptions(weights=str(place), tokenizer=str(place))
    with pytest.raises(CheckpointError) as caught:
        (builders.PER_VIEW | builders.JOINT)[name](options)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
