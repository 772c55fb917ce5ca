"""`report.gallery`: rows are chosen by what was gained, and show the stored images."""

import base64
import io

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvczigal_ref.config import load_config
from mvczigal_ref.evaluation.exact_errors import exact_errors
from mvczigal_ref.evaluation.scores import Evaluation
from mvczigal_ref.recipes import recipe
from mvczigal_ref.report.gallery import choose, gallery, with_errors
from mvczigal_ref.report.run_content import read_run
from mvczigal_ref.tiny_world.grammar import parse, split_prompts
from tests.renders import render_prompts
from tests.unit.report.folders import write_run

_, HELD_OUT = split_prompts()
GAINS = st.lists(st.integers(-9, 9), min_size=40, max_size=40).map(
    lambda values: [float(value) for value in values]
)


def evaluation(images, errors=None):
    """Scores of objects with these images, as a report reads them."""
    table = np.zeros((1, len(images)), np.float32)
    return Evaluation(per_view=table, joint=table, images=images.numpy(), errors=errors)


# -- laws --------------------------------------------------------------------------------


@given(GAINS)
def test_best_median_worst_and_every_shape_are_there(gains):
    """Of all prompts, each once, the greatest gain first."""
    choices = choose(gains, HELD_OUT)
    places = [choice.place for choice in choices]
    by_reason = {choice.reason: gains[choice.place] for choice in choices}

    assert by_reason["best"] == max(gains)
    assert by_reason["worst"] == min(gains)
    assert by_reason["median"] == sorted(gains, reverse=True)[19]
    assert {parse(HELD_OUT[place]).shape for place in places} == {"ball", "cube", "cone", "can"}
    assert len({*places}) == len(places) <= 6
    chosen = [gains[place] for place in places]
    assert chosen == sorted(chosen, reverse=True)


def test_prompts_without_a_shape_have_quartiles():
    """So that the page shows more than the ends."""
    choices = choose([float(n) for n in range(9)], [f"an animal {n}" for n in range(9)])

    assert [(choice.place, choice.reason) for choice in choices] == [
        (8, "best"), (6, "upper quartile"), (4, "median"), (2, "lower quartile"), (0, "worst"),
    ]  # fmt: skip


def test_few_prompts_are_shown_once_each():
    """One is the best, and nothing else."""
    assert [c.reason for c in choose([1.0], ["a dog"])] == ["best"]
    assert choose([], []) == []


def test_a_row_has_the_images_and_scores_of_its_prompt(tmp_path):
    """Before and after, from the first noise."""
    images = {n: torch.zeros(3, 6, 3, 8, 8) for n in (0, 4)}
    images[4][2] = 1.0
    before = torch.tensor([[5.0, 6.0, 7.0], [0.0, 0.0, 0.0]])
    after = before + torch.tensor([[0.0, 1.0, 2.0], [50.0, 0.0, 0.0]])
    folder = write_run(
        tmp_path, evaluated={0: (before, before), 4: (after, after)}, images=images,
        prompts=["a dog", "a cat", "a hen"],
    )  # fmt: skip
    best, *_, worst = gallery(read_run(folder))
    then, now = (
        Image.open(io.BytesIO(base64.b64decode(strip.image.partition(",")[2])))
        for strip in best.strips
    )

    assert [(row.prompt, row.reason) for row in (best, worst)] == [
        ("a hen", "best"), ("a dog", "worst"),
    ]  # fmt: skip
    assert [strip.occasion for strip in best.strips] == ["before", "after"]
    assert best.strips[1].scores == "per view 9.00 (+2.00), joint view 9.00 (+2.00)"
    assert (then.getpixel((3, 3)), now.getpixel((3, 3))) == ((0, 0, 0), (255, 255, 255))


def test_an_exact_render_has_a_black_error_map():
    """And a changed view a bright one; a scorer that is no exact judge has none."""
    prompt = HELD_OUT[0]
    # The judges' own grid of renders: one that the random object does not lie on has an error.
    images = render_prompts([prompt], generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[0, 2] = 1.0
    config = recipe("tiny")
    scores, spoilt_scores = (evaluation(views) for views in (images, changed))
    maps, spoilt = (with_errors(each, 0, prompt, config)[1] for each in (scores, spoilt_scores))
    other = load_config(config, overrides=["reward.joint=other.joint"])

    assert maps.mean() < 0.05
    assert spoilt[2].mean() > 0.6
    assert len(with_errors(scores, 0, prompt, other)) == 1
    assert len(with_errors(scores, 0, "a dog", config)) == 1


def test_errors_that_a_run_has_kept_are_shown_as_they_are():
    """Those of the object, the colours that rendering anew gives."""
    prompts, config = HELD_OUT[:2], recipe("tiny")
    images = render_prompts(prompts, generator=torch.Generator().manual_seed(0))
    images[1, 2] = 1.0
    errors = exact_errors(images, prompts, config).numpy()
    rows = [
        with_errors(evaluation(images, errors=kept), 1, prompts[1], config)
        for kept in (None, errors)
    ]

    assert np.array_equal(*rows)
    assert len(with_errors(evaluation(images, errors=errors), 1, "a dog", config)) == 2
