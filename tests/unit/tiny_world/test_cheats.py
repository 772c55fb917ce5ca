"""`cheats`: oracle, laws (each judge ranks what it must), errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.tiny_world.cheats import hand_built_sets, other_prompt
from mvczigal_ref.tiny_world.colour_area import colour_area
from mvczigal_ref.tiny_world.grammar import COLOURS, all_prompts, parse, split_prompts
from mvczigal_ref.tiny_world.scene import WORLD_RIG, azimuth_index, sample_scenes
from mvczigal_ref.tiny_world.score import joint_view_score, per_view_score

PROMPTS = [
    "a red ball with a white nose",
    "a blue cube with a green fin",
    "a yellow can with a purple nose",
    "a white cone with a red fin",
]
SEEDS = range(3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def sets():
    return hand_built_sets(PROMPTS, generator=generator())


@pytest.fixture(scope="module")
def means():
    """Give the mean (per-view, joint) score of every kind, per seed, on the held-out prompts."""
    _, prompts = split_prompts()
    table = {}
    for seed in SEEDS:
        made = hand_built_sets(prompts, generator=generator(seed))
        images, said = torch.cat(list(made.values())), prompts * len(made)
        per_view = per_view_score(images, said).mean(1).view(len(made), -1).mean(1)
        joint = joint_view_score(images, said).view(len(made), -1).mean(1)
        for index, name in enumerate(made):
            table.setdefault(name, []).append((per_view[index].item(), joint[index].item()))
    return table


# -- oracle: each set view by view ---------------------------------------------------------


def angles_of(images):
    """Find which azimuth each view was rendered from, for the fixture's objects."""
    scenes = sample_scenes(PROMPTS, per_prompt=1, generator=generator())
    every = torch.arange(len(PROMPTS))
    known = scenes.images(every, torch.arange(8).expand(len(PROMPTS), 8))
    error = (images[:, :, None] - known[:, None]).abs().amax((-1, -2, -3))
    # Two azimuths of a body of revolution look alike where the part hides: any of them will do.
    return [
        [{a for a in range(8) if error[o, v, a] < 1e-5} for v in range(6)]
        for o in range(len(PROMPTS))
    ]


def test_real_sets_show_one_heading(sets):
    """All six views of an object are its renders under one of the three headings."""
    for views in angles_of(sets["real"]):
        assert any(
            all(azimuth in views[v] for v, azimuth in enumerate(row))
            for row in azimuth_index(WORLD_RIG).tolist()
        )


def test_the_far_side_is_turned_to_show_the_part(sets):
    """Sides that show the part stay; the others become one that does."""
    real, shown = angles_of(sets["real"]), angles_of(sets["part_in_every_view"])
    for object in range(len(PROMPTS)):
        for view in range(6):
            if real[object][view] & {0, 1, 2, 6, 7}:
                assert shown[object][view] == real[object][view]
            assert shown[object][view] & {0, 1, 2, 6, 7}


def test_copies_are_of_the_objects_own_front(sets):
    """The front camera is the rig's first, the back camera its fourth."""
    real = sets["real"]

    assert torch.equal(sets["front_copied"], real[:, :1].expand_as(real))
    assert torch.equal(sets["back_is_front"][:, 3], real[:, 0])
    rest = [0, 1, 2, 4, 5]
    assert torch.equal(sets["back_is_front"][:, rest], real[:, rest])


def test_headings_that_disagree_are_headings(sets):
    """Each view is its camera's under some heading, and no one heading fits all."""
    index = azimuth_index(WORLD_RIG)
    for views in angles_of(sets["headings_disagree"]):
        for view in range(6):
            assert views[view] & set(index[:, view].tolist())
        assert not any(
            all(azimuth in views[v] for v, azimuth in enumerate(row)) for row in index.tolist()
        )


def test_the_blurred_mean_is_the_mean_over_headings(sets):
    """Three renders, equally."""
    scenes = sample_scenes(PROMPTS, per_prompt=1, generator=generator())
    every = torch.arange(len(PROMPTS))
    total = sum(
        scenes.images(every, row.expand(len(PROMPTS), 6)) for row in azimuth_index(WORLD_RIG)
    )

    torch.testing.assert_close(sets["blurred_mean"], total / 3)


def test_a_missing_part_has_no_pixel_of_its_colour(sets):
    """Elsewhere the set is the real one."""
    for index, prompt in enumerate(PROMPTS):
        assert (colour_area(sets["part_missing"][index], parse(prompt).part_colour) == 0).all()
        assert colour_area(sets["real"][index], parse(prompt).part_colour).max() > 0
    same = (sets["part_missing"] - sets["real"]).abs().amax(2) < 1e-6
    assert 0.8 < same.double().mean() < 1


def test_the_wrong_prompt_is_the_same_scene_in_another_colour(sets):
    """Only the body changes."""
    for index, prompt in enumerate(PROMPTS):
        other = parse(other_prompt(prompt))
        assert colour_area(sets["wrong_prompt"][index], other.body_colour).min() > 50
        assert (colour_area(sets["wrong_prompt"][index], parse(prompt).body_colour) == 0).all()
    covered = (sets["wrong_prompt"] - 0.45).abs().amax(2) > 1e-3
    assert torch.equal(covered, (sets["real"] - 0.45).abs().amax(2) > 1e-3)


def test_blank_and_noise_show_nothing(sets):
    """The background, and uniform noise of mean one half."""
    assert sets["blank"].unique().tolist() == pytest.approx([0.45])
    assert sets["noise"].mean().item() == pytest.approx(0.5, abs=0.02)
    assert sets["noise"].std().item() == pytest.approx(12**-0.5, abs=0.02)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cheat", "margin"),
    [("part_in_every_view", 0.6), ("back_is_front", 0.4), ("front_copied", 0.4)],
)
def test_the_per_view_judge_is_fooled_by_many_faces(means, cheat, margin):
    """A part where there should be none beats an honest set, under every seed."""
    for real, faked in zip(means["real"], means[cheat], strict=True):
        assert faked[0] > real[0] + margin


@pytest.mark.parametrize(
    "cheat", ["part_in_every_view", "back_is_front", "front_copied", "headings_disagree"]
)
def test_the_joint_judge_is_not(means, cheat):
    """An honest set beats views that no one object explains by more than 5 dB."""
    for real, faked in zip(means["real"], means[cheat], strict=True):
        assert real[1] > faked[1] + 5


def test_headings_that_disagree_are_honest_views(means):
    """Each alone is as good as a real one: only the joint judge can tell."""
    for real, faked in zip(means["real"], means["headings_disagree"], strict=True):
        assert abs(faked[0] - real[0]) < 0.4


@pytest.mark.parametrize(
    ("fault", "per_view", "joint"),
    [
        ("blurred_mean", 5, 6),
        ("part_missing", 5, 9),
        ("wrong_prompt", 15, 17),
        ("blank", 13, 15),
        ("noise", 18, 20),
    ],
)
def test_bad_images_lose_on_both(means, fault, per_view, joint):
    """By these decibels at least, under every seed."""
    for real, faked in zip(means["real"], means[fault], strict=True):
        assert real[0] > faked[0] + per_view
        assert real[1] > faked[1] + joint


def test_sets_come_from_the_generator_alone():
    """The same seed, the same sets; the global generator stays where it was."""
    state = torch.get_rng_state()
    one, same, other = (
        hand_built_sets(PROMPTS[:1], generator=generator(seed)) for seed in (1, 1, 2)
    )

    for name in one:
        assert torch.equal(one[name], same[name])
    assert not torch.equal(one["real"], other["real"])
    assert not torch.equal(one["noise"], other["noise"])
    assert torch.equal(torch.get_rng_state(), state)


def test_sets_are_images(sets):
    """One object a prompt, six views, values in [0, 1]."""
    for images in sets.values():
        assert images.shape == (4, 6, 3, 32, 32)
        assert images.min() >= 0
        assert images.max() <= 1


@given(st.sampled_from(all_prompts()))
def test_the_other_prompt_differs_in_the_bodys_colour_alone(prompt):
    """And is a sentence of the grammar."""
    one, other = parse(prompt), parse(other_prompt(prompt))

    assert other.body_colour in set(COLOURS) - {one.body_colour, one.part_colour}
    assert (other.shape, other.part, other.part_colour) == (one.shape, one.part, one.part_colour)


# -- errors ------------------------------------------------------------------------------


def test_a_prompt_outside_the_grammar_is_refused():
    """As `parse` does."""
    with pytest.raises(ConfigError, match="`prompt` must read"):
        hand_built_sets(["a cat"], generator=generator())
