"""`scorers`: what could not judge a run is refused before anything is loaded."""

import pytest
import torch

from mvczigal_ref.config import from_dict, load_config
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.system.scorers import build_scorers, check_functions, check_judges

OTHERS = {"per_view": "clip_score", "joint": "per_view"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"image_size": 64}}, "`model.image_size` must be 32 for .* 'world.per_view'"),
        (
            {"model": {"image_size": 64}, "reward": {**OTHERS, "joint": "world.joint"}},
            "for the scorer 'world.joint', .* got 64",
        ),
        (
            {
                "model": {"image_size": 64},
                "reward": OTHERS,
                "guard": {"every": 1, "per_view": ["world.per_view"]},
            },
            "got 64",
        ),
        (
            {"model": {"rig": "paper"}},
            "knows only the cameras of the tiny world; got another `model",
        ),
        ({"model": {"elevation": 20.0}}, "knows only the cameras of the tiny world"),
        ({"reward": {"device": "bogus"}}, "`reward.device` must be a torch device.* got 'bogus'"),
        ({"reward": {"device": "cuda:99"}}, "cannot compute on `reward.device` = 'cuda:99'"),
    ],
)
def test_scorers_that_could_not_judge_are_refused(changes, words):
    """On one line."""
    with pytest.raises(ConfigError, match=words) as caught:
        check_judges(from_dict(changes))
    assert str(caught.value).isprintable()


def test_others_are_not():
    """Nor what the guard does not look at, or what is judged elsewhere."""
    check_judges(load_config())
    check_judges(from_dict({"model": {"image_size": 64}, "reward": OTHERS}))
    watched = {"every": 1, "per_view": ["world.per_view"]}
    large = from_dict({"model": {"image_size": 64}, "reward": OTHERS, "guard": watched})
    check_judges(large, watched=False)
    served = {"url": {"world": "http://127.0.0.1:1"}, "device": "cpu"}
    check_judges(from_dict({"model": {"image_size": 64}, "reward": served}))


def test_a_watched_function_is_refused_by_the_guards_setting(tmp_path):
    """Not as what is trained on."""
    (tmp_path / "mine.py").write_text("def score(images, prompts): return None\n")
    words = ["guard.every=1", f"guard.per_view=['{tmp_path}/mine.py:score']"]
    for build in (check_functions, build_scorers):
        with pytest.raises(ConfigError, match=r"^`guard\.per_view` = .*it returned a NoneType"):
            build(load_config(overrides=words), device=torch.device("cpu"))
