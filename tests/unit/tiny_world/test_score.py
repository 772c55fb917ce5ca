"""`score`: oracle, laws, gradients, errors."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.cameras import OrthographicRig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.tiny_world.grammar import parse
from mvczigal_ref.tiny_world.render import Geometry, Nuisance, colour_maps, paint, render_maps
from mvczigal_ref.tiny_world.scene import WORLD_RIG
from mvczigal_ref.tiny_world.score import joint_view_score, nearest_renders, per_view_score
from tests.renders import render_prompts

PROMPTS = ["a red cube with a white nose", "a blue cone with a green fin"]
PERFECT = -10 * math.log10(0.02)
EIGHT = range(0, 360, 45)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy_images(prompts, seed=0, spread=0.1, rig=WORLD_RIG):
    """Draw real objects under noise, in fp64."""
    draws = generator(seed)
    images = render_prompts(prompts, generator=draws, rig=rig).double()
    return images + spread * torch.randn(images.shape, generator=draws, dtype=torch.float64)


# -- oracle: every geometry, azimuth and heading in turn ----------------------------------


@cache
def renders(prompt):
    """Render every valid object: [geometry][azimuth] is an image and its visible part."""
    said = parse(prompt)
    azimuth = torch.tensor([float(a) for a in EIGHT])
    maps = render_maps(Geometry(said.shape, said.part, Nuisance.grid()), azimuth)
    images = paint(maps.double(), colour_maps(said))
    return [
        [(images[g, a], float(maps[g, a, 1].double().sum())) for a in range(8)]
        for g in range(len(maps))
    ]


def square(x):
    return float((x * x).sum())


def slow_per_view(image, prompt):
    """Take the best of 720 renders, those that show the part preferred."""
    best = -math.inf
    for azimuths in renders(prompt):
        most = max(visible for _, visible in azimuths)
        for render, visible in azimuths:
            error = square(image - render) / square(render - 0.45)
            bonus = 6 * min(1.0, visible / (0.5 * most))
            best = max(best, -10 * math.log10(error + 0.02) + bonus)
    return best


def slow_joint(images, prompt, rig):
    """Take the best of 270 objects, seen by every camera."""
    best = -math.inf
    for azimuths in renders(prompt):
        for heading in (-45, 0, 45):
            error = energy = 0.0
            for camera, image in zip(rig.azimuth_deg, images, strict=True):
                render, _ = azimuths[EIGHT.index(int(camera + 90 - heading) % 360)]
                error += square(image - render)
                energy += square(render - 0.45)
            best = max(best, -10 * math.log10(error / energy + 0.02))
    return best


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_per_view_equals_its_definition(spread):
    """Two views of two objects."""
    images = noisy_images(PROMPTS, spread=spread)[:, 2:4]
    scores = per_view_score(images, PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        for view in range(2):
            expected = slow_per_view(images[index, view], prompt)
            # The bonus is fp32.
            assert scores[index, view].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_joint_equals_its_definition(spread):
    """All six views of two objects."""
    images = noisy_images(PROMPTS, seed=1, spread=spread)
    scores = joint_view_score(images, PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        expected = slow_joint(images[index], prompt, WORLD_RIG)
        assert scores[index].item() == pytest.approx(expected, abs=1e-8)


def test_joint_knows_any_rig_on_the_grid():
    """Three cameras, in another order and beyond a full turn."""
    rig = OrthographicRig(
        azimuth_deg=(315.0, -90.0, 540.0), elevation_deg=(0.0,) * 3, distance=(1.0,) * 3,
        half_width=0.92,
    )  # fmt: skip
    images = noisy_images(PROMPTS[:1], rig=rig)
    score = joint_view_score(images, PROMPTS[:1], rig=rig)

    assert score.item() == pytest.approx(slow_joint(images[0], PROMPTS[0], rig), abs=1e-8)


def test_a_render_of_the_grid_is_a_perfect_match():
    """It has 17 dB of joint score and up to 6 more per view."""
    azimuths = renders(PROMPTS[0])[40]
    cameras = [int(camera + 90 - 45) % 360 for camera in WORLD_RIG.azimuth_deg]  # heading 45
    images = torch.stack([azimuths[EIGHT.index(a)][0] for a in cameras])[None].float()
    most = max(visible for _, visible in azimuths)
    bonus = [6 * min(1, azimuths[EIGHT.index(a)][1] / (0.5 * most)) for a in cameras]
    per_view = per_view_score(images, PROMPTS[:1])

    assert joint_view_score(images, PROMPTS[:1]).item() == pytest.approx(PERFECT, abs=1e-5)
    # Another render that shows more of the part may match almost as well.
    assert all(s >= PERFECT + b - 1e-5 for s, b in zip(per_view[0].tolist(), bonus, strict=True))
    assert per_view.max().item() == pytest.approx(PERFECT + 6, abs=1e-5)


def test_a_blank_set_has_no_score():
    """Its error is the render's energy: -10 log10(1.02) dB, and the bonus per view."""
    grey = torch.full((2, 6, 3, 32, 32), 0.45)
    nothing = -10 * math.log10(1.02)

    assert joint_view_score(grey, PROMPTS).tolist() == pytest.approx([nothing] * 2, abs=1e-5)
    per_view = per_view_score(grey, PROMPTS).flatten().tolist()
    assert per_view == pytest.approx([nothing + 6] * 12, abs=1e-5)


# -- laws --------------------------------------------------------------------------------


@settings(max_examples=5)
@given(st.permutations(range(4)), st.integers(0, 100))
def test_permuting_objects_permutes_scores(order, seed):
    """An object's score is its own, whatever stands beside it."""
    prompts = [*PROMPTS, *PROMPTS]
    images = noisy_images(prompts, seed).float()
    shuffled = [prompts[i] for i in order]
    for score in (per_view_score, joint_view_score):
        scores = score(images, prompts)
        torch.testing.assert_close(score(images[list(order)], shuffled), scores[list(order)],
                                   rtol=0, atol=1e-5)  # fmt: skip


@settings(max_examples=5)
@given(st.integers(0, 5))
def test_a_view_is_judged_alone_and_jointly(view):
    """A changed view changes its own per-view score, no other, and the joint score."""
    images = noisy_images(PROMPTS)
    changed = images.clone()
    changed[0, view] = 0.45
    before, after = per_view_score(images, PROMPTS), per_view_score(changed, PROMPTS)
    others = torch.ones(2, 6, dtype=torch.bool)
    others[0, view] = False

    torch.testing.assert_close(after[others], before[others])
    assert after[0, view] < before[0, view] - 1
    joint = joint_view_score(changed, PROMPTS) - joint_view_score(images, PROMPTS)
    assert joint[0] < -0.5
    assert joint[1].abs() < 1e-9


def test_per_view_knows_no_camera():
    """Shuffled views have shuffled scores; the joint judge minds."""
    images, order = noisy_images(PROMPTS), [3, 4, 5, 0, 1, 2]
    scores = per_view_score(images, PROMPTS)

    torch.testing.assert_close(per_view_score(images[:, order], PROMPTS), scores[:, order])
    loss = joint_view_score(images, PROMPTS) - joint_view_score(images[:, order], PROMPTS)
    assert (loss > 1).all()


def test_noise_costs():
    """The noisier the images, the lower both scores."""
    for score in (per_view_score, joint_view_score):
        means = [
            score(noisy_images(PROMPTS, spread=spread), PROMPTS).mean().item()
            for spread in (0.0, 0.05, 0.1, 0.2, 0.4)
        ]
        assert means == sorted(means, reverse=True)
        assert means[0] - means[-1] > 8


@settings(max_examples=5)
@given(st.integers(0, 100))
def test_no_image_beats_a_perfect_match(seed):
    """17 dB jointly, 23 per view."""
    images = noisy_images(PROMPTS, seed, spread=0.0).float()

    assert joint_view_score(images, PROMPTS).max() <= PERFECT + 1e-5
    assert per_view_score(images, PROMPTS).max() <= PERFECT + 6 + 1e-5


def test_single_precision_is_enough():
    """Squares that cancel may choose another match, hardly worse."""
    images = noisy_images(PROMPTS, spread=0.0)
    for score in (per_view_score, joint_view_score):
        narrow, wide = score(images.float(), PROMPTS), score(images, PROMPTS)
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-5)


def test_half_precision_is_widened_first():
    """The images are rounded, the score is not."""
    images = noisy_images(PROMPTS).half()
    for score in (per_view_score, joint_view_score):
        assert torch.equal(score(images, PROMPTS), score(images.float(), PROMPTS))


def test_a_sentence_may_be_spelled_anyhow():
    """Objects are grouped by sentence, but judged by what it says."""
    images = noisy_images([PROMPTS[0]] * 2).float()
    spelled = [PROMPTS[0], f" {PROMPTS[0].upper()} "]
    for score in (per_view_score, joint_view_score):
        torch.testing.assert_close(
            score(images, spelled), score(images, [PROMPTS[0]] * 2), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_the_nearest_renders_are_those_that_the_judges_compare_with(spread):
    """Measured against them by hand, images have the judges' scores, but for a bonus of views."""
    images = noisy_images(PROMPTS, spread=spread)
    for rig, judge in ((WORLD_RIG, joint_view_score), (None, per_view_score)):
        renders = nearest_renders(images, PROMPTS, rig=rig)
        error = (images - renders).square().sum((-3, -2, -1))
        energy = (renders - 0.45).square().sum((-3, -2, -1))
        if rig is not None:
            error, energy = error.sum(-1), energy.sum(-1)
        bonus = judge(images, PROMPTS) + 10 * (error / energy + 0.02).log10()

        assert bonus.min() > -1e-5
        assert bonus.max() < (1e-5 if rig is not None else 6 + 1e-5)


# -- gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("score", [per_view_score, joint_view_score])
def test_gradient_flows_through_the_best_match(score):
    """It points uphill, and only to the object that is asked about."""
    images = noisy_images(PROMPTS).requires_grad_()
    before = score(images, PROMPTS)
    before[0].sum().backward()
    assert images.grad is not None
    better = (images + 1e-2 * images.grad).detach()

    assert images.grad[1].abs().max() == 0
    assert score(better, PROMPTS)[0].sum() > before[0].sum()


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [per_view_score, joint_view_score])
def test_counts_and_pixels_must_agree(score):
    """A sentence an object, and the tiny world's size."""
    images = torch.zeros(2, 6, 3, 32, 32)
    with pytest.raises(
        ValueError, match="`prompts` must hold one sentence per object; got 1 for 2"
    ):
        score(images, PROMPTS[:1])
    with pytest.raises(ValueError, match=r"`images` must be 32x32 pixels.*got 32x16"):
        score(images[..., :16], PROMPTS)


@pytest.mark.parametrize("score", [per_view_score, joint_view_score])
def test_a_wrong_word_is_told_the_vocabulary(score):
    """As `parse` does."""
    with pytest.raises(ConfigError, match="shape of ball, cube, cone, can and a part of nose, fin"):
        score(torch.zeros(1, 6, 3, 32, 32), ["a red pyramid with a white nose"])


def test_joint_refuses_another_number_of_views():
    """One view a camera."""
    with pytest.raises(ValueError, match="`images` must hold 6 views, one per camera; got 5"):
        joint_view_score(torch.zeros(2, 5, 3, 32, 32), PROMPTS)


def test_joint_refuses_cameras_off_its_grid():
    """It knows eight azimuths at elevation 0."""
    rig = replace(WORLD_RIG, elevation_deg=(20.0,) * 6)
    with pytest.raises(ConfigError, match="`rig` must stand at elevation 0"):
        joint_view_score(torch.zeros(2, 6, 3, 32, 32), PROMPTS, rig=rig)
