"""`demo.play`: a request becomes pictures and scores, or is refused."""

from dataclasses import replace

import pytest
import torch

from mvczigal_ref.demo import Playground, Request, play
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.evaluation.evaluate import sample_objects
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.recipes import recipe
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.system import build_system, with_sampling
from mvczigal_ref.system.scorers import no_scorers
from mvczigal_ref.tiny_world.score import joint_view_score, per_view_score

PROMPT = "a red cube with a white nose"
REQUEST = Request(prompt=PROMPT, seed=3, steps=2, guidance=2.0)


@pytest.fixture(scope="module")
def playground():
    """Random networks of the tiny world, with its judges."""
    config = recipe("tiny")
    components = tiny_components(seed=0)
    return Playground(
        config=config,
        system=build_system(config, device=torch.device("cpu"), components=components),
    )


def test_pictures_are_those_of_the_sample_command(playground):
    """The same noise, steps and guidance, by the function that samples everywhere."""
    sampler = replace(
        playground.config.sampler, num_steps=2, evaluation_steps=0, guidance_scale=2.0
    )
    config = replace(playground.config, sampler=sampler)
    system = with_sampling(playground.system, config)
    noise = SeededNoise(seed=3, iteration="sample", objects=[0], shape=system.latent_shape)

    played = playground.play(REQUEST)

    assert played.before is None
    assert torch.equal(played.after, sample_objects(system, [PROMPT], noise, config=config))
    assert played.azimuths == (-90.0, -45.0, 0.0, 90.0, 180.0, 225.0)


def test_one_step_is_a_sample(playground):
    """Which training would refuse: it leaves no action to learn."""
    played = playground.play(replace(REQUEST, steps=1))

    assert played.after.shape[:2] == (1, 6)
    assert not torch.equal(played.after, playground.play(REQUEST).after)


def test_scores_are_the_judges_by_view_and_together(playground):
    """Zigzag is compared with plain sampling of the same noise."""
    plain = playground.play(REQUEST)
    played = playground.play(replace(REQUEST, zigzag=True))
    names, before, after = zip(*played.scores, strict=True)

    assert torch.equal(played.before, plain.after)
    assert not torch.equal(played.before, played.after)
    assert (names[0], names[-1]) == ("view at -90°", "all views together")
    assert list(after[:-1]) == per_view_score(played.after, [PROMPT])[0].tolist()
    assert after[-1] == joint_view_score(played.after, [PROMPT]).item()
    assert before == tuple(number for _, _, number in plain.scores)


def test_a_run_is_compared_with_its_base(playground):
    """Both by the same kind of sampling."""
    base = build_system(
        playground.config, device=torch.device("cpu"), components=tiny_components(seed=1)
    )
    both = replace(playground, base=base)
    played = both.play(REQUEST)

    assert torch.equal(played.before, replace(playground, system=base).play(REQUEST).after)
    assert torch.equal(played.after, playground.play(REQUEST).after)
    assert not both.first_request(PROMPT).zigzag
    assert playground.first_request(PROMPT).zigzag


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a red dog"}, "a COLOUR SHAPE with an OTHER-COLOUR PART"),
        ({"prompt": "  "}, "`prompt` must have 1 to 1000 characters; got 0"),
        ({"prompt": "a" * 1001}, "got 1001"),
        ({"steps": 0}, "`sampler.num_steps`"),
        ({"steps": 51}, "`steps` must be at most 50; got 51"),
        ({"seed": -1}, "`run.seed`"),
        ({"guidance": float("nan")}, "`sampler.guidance_scale`"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_sampled(
    playground, monkeypatch, change, message
):
    """In one line."""
    monkeypatch.setattr(play, "sample_objects", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(ConfigError, match=message) as error:
        playground.play(replace(REQUEST, **change))

    assert "\n" not in str(error.value)


def test_a_flow_is_not_zigzagged(playground):
    """Its steps are not inverted."""
    playground = replace(playground, config=recipe("tiny_flow_grpo"))

    assert not playground.zigzags
    with pytest.raises(ConfigError, match="`zigzag` must be off"):
        playground.play(replace(REQUEST, zigzag=True))


def test_without_scorers_there_are_no_scores(playground):
    """And nothing is asked of them."""
    silent = replace(playground, system=replace(playground.system, **no_scorers()), scored=False)

    assert silent.play(REQUEST).scores == []
