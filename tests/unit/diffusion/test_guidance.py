"""`diffusion.guidance`: oracle, laws, gradients, golden values, errors."""

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.guidance import classifier_free_guidance, guidance_embedding
from tests import golden, oracles
from tests.compare import FP32, FP64, assert_equal_to
from tests.strategies import latents, randn

SCALES = st.floats(0.0, 15.0)


# -- oracle ------------------------------------------------------------------------------


@given(latents(2), SCALES)
def test_guidance_equals_the_scalar_formula(drawn, scale):
    """One element at a time, in floats."""
    expected = oracles.per_element(lambda u, c: u + scale * (c - u), drawn)

    assert_equal_to(classifier_free_guidance(*drawn, guidance_scale=scale), expected, FP64, axes=3)


@given(st.lists(SCALES, min_size=1, max_size=4), st.integers(4, 33))
def test_embedding_equals_its_waves(scales, width):
    """One number at a time, in floats; angles reach 14,000 radians, so 1e-16 becomes 1e-12."""
    actual = guidance_embedding(
        torch.tensor(scales, dtype=torch.float64), width=width, dtype=torch.float64
    )
    expected = torch.tensor([oracles.waves(w, width) for w in scales], dtype=torch.float64)

    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-11)


@pytest.mark.parametrize("width", [4, 9, 32, 256])
def test_embedding_equals_diffusers(width):
    """Bit for bit in fp32, as the published networks were trained."""
    scale = torch.tensor([1.0, 2.5, 7.0, 14.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    expected = theirs(None, scale - 1, embedding_dim=width, dtype=torch.float32)

    assert torch.equal(guidance_embedding(scale, width=width), expected)


# -- laws --------------------------------------------------------------------------------


@given(latents(2))
def test_scale_zero_is_unconditional_and_one_is_conditional(drawn):
    """The two ends of the line that guidance goes along."""
    uncond, cond = drawn

    assert torch.equal(classifier_free_guidance(uncond, cond, guidance_scale=0.0), uncond)
    torch.testing.assert_close(classifier_free_guidance(uncond, cond, guidance_scale=1.0), cond)


@given(latents(1), SCALES)
def test_equal_predictions_need_no_guidance(drawn, scale):
    """Where the prompt changes nothing, no scale changes anything."""
    (same,) = drawn

    assert torch.equal(classifier_free_guidance(same, same, guidance_scale=scale), same)


def test_guidance_keeps_the_wider_dtype():
    """At scale 0 too."""
    narrow = torch.zeros(1, 1, 1)
    for pair in [(narrow, narrow.double()), (narrow.double(), narrow)]:
        assert classifier_free_guidance(*pair, guidance_scale=0.0).dtype == torch.float64


@given(SCALES, st.integers(4, 33))
def test_each_wave_is_on_the_unit_circle(scale, width):
    """Sine and cosine of one angle; an odd width ends with a zero."""
    row = guidance_embedding(torch.tensor([scale]), width=width)[0]
    half = width // 2

    torch.testing.assert_close(
        row[:half].square() + row[half : 2 * half].square(), torch.ones(half), rtol=0, atol=1e-6
    )
    assert row.shape == (width,)
    assert (row[2 * half :] == 0).all()


def test_no_guidance_is_embedded_as_zero_angles():
    """The scale counts from 1."""
    row = guidance_embedding(torch.ones(1), width=8)[0]

    assert row.tolist() == [0.0] * 4 + [1.0] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrow_embedding_is_rounded_after_it_is_computed(dtype):
    """Half precision can hold the waves, but not their angles."""
    scale = torch.tensor([7.0, 3.3])
    narrow = guidance_embedding(scale, width=16, dtype=dtype)

    assert torch.equal(narrow, guidance_embedding(scale, width=16).to(dtype))


# -- gradients ---------------------------------------------------------------------------


def test_gradients_flow_to_both_predictions_and_to_the_scale():
    """By finite differences."""
    uncond, cond = randn(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.001, 1.002], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(
        lambda u, c: classifier_free_guidance(u, c, guidance_scale=7.0), (uncond, cond)
    )
    assert torch.autograd.gradcheck(
        lambda w: guidance_embedding(w, width=5, dtype=torch.float64), (scale,), rtol=1e-2
    )


# -- golden parity -----------------------------------------------------------------------


def test_golden_embedding():
    """High and low guidance of the zigzag sampler."""
    name = "sampling_lcm_embedded_guidance"
    settings, reference = golden.constants("diffusion", name), golden.tensors("diffusion", name)
    width = settings["time_cond_proj_dim"]
    scales = torch.tensor([settings["guidance_scale"], settings["inv_guidance_scale"]])
    actual = guidance_embedding(scales, width=width)

    assert_equal_to(actual[:1], reference["timestep_cond_w"], FP32)
    assert_equal_to(actual[1:], reference["timestep_cond_inv"], FP32)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0, 3])
def test_a_width_without_two_waves_is_refused(width):
    """Frequencies are spaced between a first and a last."""
    with pytest.raises(ValueError, match=f"`width` must be at least 4.*got {width}"):
        guidance_embedding(torch.ones(1), width=width)


@pytest.mark.parametrize("name", ["uncond", "cond"])
def test_guidance_refuses_half_precision_by_name(name):
    """The difference of two near predictions is what it multiplies."""
    pair = {"uncond": torch.zeros(1, 1, 1), "cond": torch.zeros(1, 1, 1)}
    pair[name] = pair[name].half()
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64"):
        classifier_free_guidance(**pair, guidance_scale=7.0)
