"""`report.gallery`: rows are chosen by what was gained, and show the stored images."""

import base64
import io

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvczigal_ref.config import load_config
from mvczigal_ref.recipes import recipe
from mvczigal_ref.report.gallery import choose, gallery, with_errors
from mvczigal_ref.report.run_content import read_run
from mvczigal_ref.tiny_world.grammar import parse, split_prompts
from tests.renders import render_prompts
from tests.unit.report.folders import write_run

_, HELD_OUT = split_prompts()
GAINS = st.lists(st.integers(-9, 9), min_size=40, max_size=40).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)

# -- laws --------------------------------------------------------------------------------


@given(GAINS)
def test_best_median_worst_and_every_shape_are_there(gains):
    """Of all prompts, each once, the greatest gain first."""
    choices = choose(gains, HELD_OUT)
    places = [choice.place for choice in choices]
    by_reason = {choice.reason: float(gains[choice.place]) for choice in choices}

    assert by_reason["best"] == gains.max()
    assert by_reason["worst"] == gains.min()
    assert by_reason["median"] == gains.sort(descending=True).values[19]
    assert {parse(HELD_OUT[place]).shape for place in places} == {"ball", "cube", "cone", "can"}
    assert len({*places}) == len(places) <= 6
    assert gains[places].tolist() == sorted(gains[places].tolist(), reverse=True)


def test_prompts_without_a_shape_have_quartiles():
    """So that the page shows more than the ends."""
    choices = choose(torch.arange(9.0), [f"an animal {n}" for n in range(9)])

    assert [(choice.place, choice.reason) for choice in choices] == [
        (8, "best"), (6, "upper quartile"), (4, "median"), (2, "lower quartile"), (0, "worst"),
    ]  # fmt: skip


def test_few_prompts_are_shown_once_each():
    """One is the best, and nothing else."""
    assert [c.reason for c in choose(torch.tensor([1.0]), ["a dog"])] == ["best"]
    assert choose(torch.zeros(0), []) == []


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
    maps, spoilt = (with_errors(views, prompt, config)[1] for views in (images, changed))
    other = load_config(config, overrides=["reward.joint=other.joint"])

    assert maps.mean() < 0.05
    assert spoilt[2].mean() > 0.6
    assert len(with_errors(images, prompt, other)) == 1
    assert len(with_errors(images, "a dog", config)) == 1
