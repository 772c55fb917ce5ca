"""`reward.registry`, `reward.world`: laws, errors."""

import pytest
import torch

from mvczigal_ref.cameras import PAPER_RIG
from mvczigal_ref.config import GuardConfig, RewardConfig
from mvczigal_ref.errors import ConfigError, ScorerUnavailableError
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.reward.registry import (
    check_scorers,
    joint_view_scorer,
    mixture,
    per_view_scorer,
    scorer_options,
)
from mvczigal_ref.reward.service import Limits, ScorerInfo, serving
from mvczigal_ref.reward.tiny_world import WorldJointView, WorldPerView
from mvczigal_ref.tiny_world.score import joint_view_score, per_view_score

PROMPTS = ["a red cube with a white nose", "a red cube with a green fin"]


@pytest.fixture(scope="module")
def images():
    """Noise, twice six views."""
    return torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# -- laws --------------------------------------------------------------------------------


def test_each_name_is_its_scorer():
    """New every time, of the right kind."""
    assert isinstance(per_view_scorer("world.per_view"), WorldPerView)
    assert isinstance(per_view_scorer("world.per_view"), PerViewScorer)
    assert isinstance(joint_view_scorer("world.joint"), WorldJointView)
    assert isinstance(joint_view_scorer("world.joint"), JointViewScorer)


def test_the_worlds_scorers_are_its_scores(images):
    """Unchanged, one per view and one per object."""
    per_view, joint = WorldPerView()(images, PROMPTS), WorldJointView()(images, PROMPTS)

    assert torch.equal(per_view, per_view_score(images, PROMPTS))
    assert torch.equal(joint, joint_view_score(images, PROMPTS))
    assert per_view.shape == (2, 6)
    assert joint.shape == (2,)


def test_the_joint_scorer_holds_its_cameras(images):
    """Two views of another rig are judged by where they were taken."""
    rig = type(PAPER_RIG)(
        azimuth_deg=PAPER_RIG.azimuth_deg[2:4], elevation_deg=(0.0, 0.0), distance=(1.8, 1.8)
    )
    two = images[:, :2]

    expected = joint_view_score(two, PROMPTS, rig=rig)
    assert torch.equal(WorldJointView(rig)(two, PROMPTS), expected)


def test_options_are_a_scorer_s_own_or_its_family_s():
    """What is set for `hyperscore` is for its axes too; the scorer's own name goes first."""
    reward = RewardConfig(
        weights={"hyperscore": "all", "hyperscore.texture": "one"},
        tokenizers={"hyperscore": "words"},
        url={"mine": "http://127.0.0.1:1"},
        dtype="bf16",
        images_per_chunk=3,
        timeout=4,
        wait=5,
        api_key_env="KEY",
        requests_at_once=2,
        images_per_question=3,
        cache="scores",
    )
    told = {
        name: scorer_options(name, reward, device=torch.device("meta"), num_views=7)
        for name in ("hyperscore.texture", "hyperscore.overall", "mine")
    }

    assert [options.weights for options in told.values()] == ["one", "all", None]
    assert [options.tokenizer for options in told.values()] == ["words", "words", None]
    assert [options.url for options in told.values()] == [None, None, "http://127.0.0.1:1"]
    assert told["mine"] == ScorerOptions(
        url="http://127.0.0.1:1", device=torch.device("meta"), dtype=torch.bfloat16,
        images_per_chunk=3, num_views=7, timeout=4.0, wait=5.0, api_key_env="KEY",
        requests_at_once=2, images_per_question=3, cache="scores",
    )  # fmt: skip


def test_the_scorers_device_is_the_run_s_unless_said_otherwise():
    """Such as the CPU beside a run on a GPU."""
    for setting, expected in (("auto", "meta"), ("cpu", "cpu")):
        options = scorer_options(
            "world.joint", RewardConfig(device=setting), device=torch.device("meta"), num_views=6
        )
        assert options.device == torch.device(expected)


def test_a_mixture_is_what_the_setting_names(images):
    """One scorer, or the weighted sum of several; each is built once."""
    built = []

    def build(name):
        built.append(name)
        return lambda images, prompts: torch.full((2, 6), float(len(name)))

    one, two = mixture("abc", build), mixture({"a": 2.0, "bcd": -1.0}, build)

    assert built == ["abc", "a", "bcd"]
    assert one(images, PROMPTS).unique().tolist() == [3.0]
    assert two(images, PROMPTS).unique().tolist() == [-1.0]
    assert list(two.tables(images, PROMPTS)) == ["a", "bcd"]


def test_a_scorer_elsewhere_is_asked_under_its_name(images):
    """Whatever its name; its scores are those of the scorer that is served."""
    info = ScorerInfo(name="mine", version="1", kind="per_view")
    with serving(lambda images, prompts: images.mean((2, 3, 4)), info=info) as server:
        remote = per_view_scorer("mine", ScorerOptions(url=server.url, images_per_chunk=6))

        torch.testing.assert_close(remote(images, PROMPTS), images.mean((2, 3, 4)))
        with pytest.raises(ConfigError, match="leads to the scorer 'mine'"):
            per_view_scorer("yours", ScorerOptions(url=server.url))
        with pytest.raises(ConfigError, match="`url` must be of a joint scorer"):
            joint_view_scorer("mine", ScorerOptions(url=server.url))


def test_whatever_keeps_a_service_from_answering_is_an_outage(images):
    """A refusal too: the run is to save and stop."""
    info = ScorerInfo(name="mine", version="1", kind="joint")
    options = {"images_per_chunk": 6, "wait": 0.0, "timeout": 5.0}
    with serving(
        lambda images, prompts: images.mean((1, 2, 3, 4)), info=info, limits=Limits(views=3)
    ) as server:
        remote = joint_view_scorer("mine", ScorerOptions(url=server.url, **options))
        with pytest.raises(ScorerUnavailableError, match="`views` must be at most 3"):
            remote(images, PROMPTS)
    with pytest.raises(ScorerUnavailableError, match="gave no usable answer"):
        remote(images[:, :3], PROMPTS)
    with pytest.raises(ScorerUnavailableError, match="gave no usable answer"):
        joint_view_scorer("mine", ScorerOptions(url=server.url, **options))


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("world.joint", "is a joint scorer: name it in `reward.joint`"),
        ("pikscore", "names the unknown scorer 'pikscore'; the nearest is 'pickscore'"),
        ("world.per-view", "the nearest is 'world.per_view'"),
    ],
)
def test_rejects_an_unknown_per_view_scorer(name, complaint):
    """With the nearest name, or where it belongs."""
    with pytest.raises(ConfigError, match=rf"`reward\.per_view` .*{complaint}"):
        per_view_scorer(name)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("world.per_view", "is a per_view scorer: name it in `reward.per_view`"),
        ("hyperscore.textures", "the nearest is 'hyperscore.texture'"),
    ],
)
def test_rejects_an_unknown_joint_scorer(name, complaint):
    """With the nearest name, or where it belongs."""
    with pytest.raises(ConfigError, match=rf"`reward\.joint` .*{complaint}"):
        joint_view_scorer(name)


@pytest.mark.parametrize(
    ("reward", "guard", "complaint"),
    [
        ({"per_view": {"world.per_view": 1, "clip": 1}}, {}, "`reward.per_view` names the unknown"),
        ({"weights": {"pickscore": "x"}}, {}, "`reward.weights` names 'pickscore', a scorer that"),
        ({"url": {"world.jont": "x"}}, {}, "the nearest is 'world.joint'"),
        (
            {"per_view": "pickscore", "weights": {"pickscore": "/absent/folder"}},
            {},
            "`reward.weights` of 'pickscore' must be there; '/absent/folder' is no folder or file",
        ),
        (
            {"per_view": "pickscore", "tokenizers": {"pickscore": "absent"}},
            {},
            "`reward.tokenizers` of 'pickscore' must be there",
        ),
        ({"joint": "hyperscore.texture"}, {}, "`reward.weights={hyperscore: FILE}`"),
        ({"per_view": "chat_judge"}, {}, "needs `reward.url={chat_judge: http"),
        (
            {"joint": "chat_judge.joint", "url": {"chat_judge": "http://127.0.0.1:1/v1"}},
            {},
            "`reward.weights={chat_judge.joint: MODEL}`",
        ),
        ({"url": {"world.joint": "host:80"}}, {}, "`reward.url` of 'world.joint': `url` must"),
        ({"cache": __file__}, {}, "`reward.cache` must be a folder"),
        ({}, {"per_view": ("hps",)}, "`guard.per_view` names the unknown scorer 'hps'"),
        (
            {},
            {"joint": ("world.joint",)},
            "`guard.joint` must not name 'world.joint', which `reward.joint` names already",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_loaded(reward, guard, complaint):
    """Names, places, and settings that would do nothing."""
    with pytest.raises(ConfigError) as caught:
        check_scorers(RewardConfig(**reward), GuardConfig(every=1, **guard))

    assert complaint in str(caught.value)


def test_what_is_right_passes(tmp_path):
    """Hub ids are looked up later; a scorer elsewhere may have any name."""
    check_scorers(RewardConfig())
    check_scorers(RewardConfig(), GuardConfig(per_view=("unread",)))
    check_scorers(
        RewardConfig(
            per_view={"mine": 1.0, "pickscore": 1.0, "hpsv2": 1.0},
            joint="chat_judge.joint",
            url={"mine": "http://127.0.0.1:1", "chat_judge": "http://127.0.0.1:1/v1"},
            weights={"pickscore": str(tmp_path), "hpsv2": "a/b", "chat_judge": "model"},
        )
    )
