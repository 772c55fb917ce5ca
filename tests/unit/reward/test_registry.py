"""`reward.registry`, `reward.world`: laws, errors."""

import pytest
import torch

from mvczigal_ref.cameras import PAPER_RIG
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.reward.registry import joint_view_scorer, per_view_scorer
from mvczigal_ref.reward.world import WorldJointView, WorldPerView
from mvczigal_ref.world.score import joint_view_score, per_view_score

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
    """Unchanged, one a view and one an object."""
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


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["world.joint", "pickscore", ""])
def test_rejects_an_unknown_per_view_scorer(name):
    """With the names that there are."""
    message = rf"`reward\.per_view` must be one of \['world\.per_view'\]; got '{name}'"
    with pytest.raises(ConfigError, match=message):
        per_view_scorer(name)


@pytest.mark.parametrize("name", ["world.per_view", "hyperscore", ""])
def test_rejects_an_unknown_joint_scorer(name):
    """With the names that there are."""
    message = rf"`reward\.joint` must be one of \['world\.joint'\]; got '{name}'"
    with pytest.raises(ConfigError, match=message):
        joint_view_scorer(name)
