"""Prompts to features: oracle, laws, errors."""

import pytest
import torch

from tests.unit.models.flow_small import (
    PROMPTS,
    flux_pipeline,
    sd3_pipeline,
    small_flux,
    small_sd3,
)

# One text is far longer than any tokenizer takes; one word is unknown.
TEXTS = [*PROMPTS, "a red cube with " * 9, "Zebra"]


# -- oracle: diffusers' own pipelines ----------------------------------------------------


def test_flux_equals_diffusers():
    """T5's tokens and CLIP's pooled text, bit for bit."""
    c = small_flux()
    text, pooled, _ = flux_pipeline(c).encode_prompt(TEXTS, max_sequence_length=16)
    ours = c.encode_prompts(TEXTS)

    assert torch.equal(ours[0], text)
    assert torch.equal(ours[1], pooled)
    assert text.shape == (4, 16, 8)


def test_sd3_equals_diffusers():
    """Both CLIPs side by side, filled with zeros, then T5; both pooled texts."""
    c = small_sd3()
    text, _, pooled, _ = sd3_pipeline(c).encode_prompt(
        TEXTS, None, None, do_classifier_free_guidance=False, max_sequence_length=12
    )
    ours = c.encode_prompts(TEXTS)

    assert torch.equal(ours[0], text)
    assert torch.equal(ours[1], pooled)
    assert text.shape == (4, 16 + 12, 24)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [small_flux, small_sd3])
def test_no_gradient_and_no_company(small):
    """A prompt's features are its own."""
    text, pooled = small().encode_prompts(TEXTS)
    alone, pooled_alone = small().encode_prompts(TEXTS[1:2])

    assert not text.requires_grad
    assert not pooled.requires_grad
    # Another batch is another matrix product.
    assert torch.allclose(text[1:2], alone, rtol=0.0, atol=1e-12)
    assert torch.allclose(pooled[1:2], pooled_alone, rtol=0.0, atol=1e-12)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [small_flux, small_sd3])
@pytest.mark.parametrize("prompts", [[], "a can"])
def test_rejects_what_is_no_list_of_prompts(small, prompts):
    """A bare string would be read letter by letter."""
    with pytest.raises(ValueError, match="`prompts` must be a sequence of at least one text"):
        small().encode_prompts(prompts)
