"""`rollout.noise`: oracle, laws, golden values."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.rollout.noise import SeededNoise, derived_generator
from tests.trajectories import noise
from tests.unannotated import without_shape_checks

NAMES = st.lists(st.one_of(st.integers(-5, 5), st.sampled_from(["1", "zigzag", ""])), max_size=4)


# -- oracle ------------------------------------------------------------------------------


@given(st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_each_draw_has_a_generator_of_its_own(seed, iteration, index, step):
    """Seeded by the hash of what it is for."""
    source = SeededNoise(seed=seed, iteration=iteration, objects=[index], shape=(1, 2, 3, 4))
    name = repr((seed, iteration, index, "zigzag", step, 1)).encode()
    hashed = hashlib.blake2b(name, digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(hashed, "little"))
    expected = torch.randn((1, 2, 3, 4), generator=generator)

    assert torch.equal(source.arm("zigzag")(step, 1)[0], expected)


# -- laws --------------------------------------------------------------------------------


@given(NAMES, NAMES)
def test_streams_are_equal_where_the_names_are(one, two):
    """And differ wherever a name does; the number 1 and the text "1" are two names."""
    draws = [torch.randn(4, generator=derived_generator(*names)) for names in (one, two)]

    assert torch.equal(*draws) == (one == two)


@given(st.permutations(range(4)), st.integers(1, 4))
def test_noise_belongs_to_the_object(order, count):
    """Not to its place in the batch, nor to the batch."""
    objects = order[:count]
    together = noise(objects)
    for place, index in enumerate(objects):
        alone = noise([index])

        assert torch.equal(together.initial()[place], alone.initial()[0])
        assert torch.equal(together.arm("zigzag")(2, 1)[place], alone.arm("zigzag")(2, 1)[0])


@given(st.permutations(range(3)), st.integers(1, 3), st.integers(1, 3))
def test_noise_belongs_to_the_member(order, count, objects):
    """Not to its place in the group, nor to the group or the batch."""
    paths = [(0, branch) for branch in order[:count]]
    together = noise(range(objects)).members(paths, "group", 2)
    for place, path in enumerate(paths):
        alone = noise([objects - 1]).members([path], "group", 2)

        assert torch.equal(together[place, -1], alone[0, 0])


def test_every_branch_of_a_path_counts():
    """Four members, and the same of another step or use: seven streams, no two of them equal."""
    source = noise([0], (1, 1, 2, 2))
    draws = [*source.members([(0,), (1,), (0, 0), (0, 1)], "group", 0)]
    draws += [*source.members([(0,)], "group", 1), *source.members([(0,)], "initial")]
    draws += [source.initial()]

    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws) == 7


def test_every_name_counts():
    """Seed, iteration, object, arm, step and draw: eight streams, no two of them equal."""
    base = {"seed": 0, "iteration": 0, "objects": [0], "shape": (1, 1, 2, 2)}
    changes = ({}, {"seed": 1}, {"iteration": 1}, {"objects": [1]}, {"iteration": "other"})
    draws = [SeededNoise(**{**base, **change}).arm("zigzag")(0, 0) for change in changes]
    source = SeededNoise(**base)
    draws += [source.initial(), source.arm("standard")(0, 0)]
    draws += [source.arm("zigzag")(1, 0), source.arm("zigzag")(0, 1)]

    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)


def test_is_standard_normal_in_fp32():
    """Mean, variance and correlation of steps within four standard errors of 24,000 draws."""
    source = noise(range(4), (6, 4, 16, 16))
    one, two = source.initial(), source.arm("standard")(0, 0)
    error = one.numel() ** -0.5

    assert one.dtype == two.dtype == torch.float32
    assert one.shape == (4, 6, 4, 16, 16)
    assert abs(one.mean()) < 4 * error
    assert abs(one.var() - 1) < 4 * error * 2**0.5
    assert abs((one * two).mean()) < 4 * error


def test_the_global_generator_is_left_alone():
    """Neither read nor moved."""
    before = torch.random.get_rng_state()
    first = noise().initial()
    after = torch.random.get_rng_state()
    torch.randn(3)

    assert torch.equal(before, after)
    assert torch.equal(noise().initial(), first)


def test_noise_goes_to_the_device():
    """It is drawn on the CPU and moved, so it is the same on every device."""
    source = SeededNoise(seed=0, iteration=0, objects=[0], shape=(1, 1, 2, 2), device="meta")

    assert source.initial().device.type == "meta"


# -- golden ------------------------------------------------------------------------------


def test_pinned_draws():
    """A change here would make every run of an older version another run; torch 2.13, CPU."""
    source = SeededNoise(seed=42, iteration=7, objects=[3], shape=(1, 1, 1, 4))
    draw = source.arm("zigzag")(1, 0).flatten().tolist()

    assert [round(x, 6) for x in draw] == [0.673982, 1.316204, -0.199649, 0.095309]


@pytest.mark.parametrize("integer", [np.int64, np.uint8, torch.tensor])
def test_an_integer_is_a_name_whatever_its_type(integer):
    """Objects taken out of an array have the noise that they have by Python's numbers."""
    plain = SeededNoise(seed=5, iteration=2, objects=[3, 4], shape=(1, 1, 2, 2))
    with without_shape_checks():
        other = SeededNoise(
            seed=integer(5),
            iteration=integer(2),
            objects=[integer(3), integer(4)],
            shape=(1, 1, 2, 2),
        )
        assert torch.equal(other.initial(), plain.initial())
        assert torch.equal(other.arm("zigzag")(1, 0), plain.arm("zigzag")(1, 0))
