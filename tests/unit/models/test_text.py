"""Text features: oracle, laws, errors."""

from dataclasses import replace

import pytest
import torch

from mvczigal_ref.models.tiny import tiny_components
from tests.compare import FP64, assert_equal_to
from tests.unannotated import without_shape_checks
from tests.unit.models.small import PROMPTS, fresh_components, small_components

SENTENCES = [
    f"a {body} {shape} with a {other} {part}"
    for body in ("red", "green", "blue", "yellow")
    for shape in ("ball", "cube", "cone", "can")
    for other in ("red", "green", "blue", "yellow", "purple", "white")
    for part in ("nose", "fin")
]


# -- oracle: the layers called one by one ------------------------------------------------


def layers_one_by_one(tokenizer, encoder, prompts):
    """Return the hidden states before the last layer, and after it normalised."""
    ids = torch.full((len(prompts), 16), tokenizer.pad_token_id)
    for row, prompt in enumerate(prompts):
        words = tokenizer(prompt).input_ids
        ids[row, : len(words)] = torch.tensor(words)
    text = getattr(encoder, "text_model", encoder)
    mask = torch.full((16, 16), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    hidden = text.embeddings(ids)
    for layer in text.encoder.layers[:-1]:
        hidden = layer(hidden, mask)
    return ids, hidden, text.final_layer_norm(text.encoder.layers[-1](hidden, mask))


@torch.no_grad()
def test_equals_the_layers_called_one_by_one():
    """Penultimate states of both encoders side by side; the end's projection of the second."""
    c = small_components()
    _, first, _ = layers_one_by_one(c.tokenizer, c.text_encoder, PROMPTS)
    ids, second, last = layers_one_by_one(c.tokenizer_2, c.text_encoder_2, PROMPTS)
    ends = [row.tolist().index(c.tokenizer_2.eos_token_id) for row in ids]
    at_end = torch.stack([states[end] for states, end in zip(last, ends, strict=True)])

    embeds, pooled = c.encode_prompts(PROMPTS)
    assert_equal_to(embeds, torch.cat([first, second], -1), FP64, axes=1)
    assert_equal_to(pooled, at_end @ c.text_encoder_2.text_projection.weight.T, FP64, axes=1)


# -- laws --------------------------------------------------------------------------------


def test_a_prompt_s_features_are_its_own():
    """Its neighbours in the batch do not matter."""
    together, pooled = small_components().encode_prompts(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone, pooled_alone = small_components().encode_prompts([prompt])
        assert_equal_to(together[row : row + 1], alone, FP64, axes=1)
        assert_equal_to(pooled[row : row + 1], pooled_alone, FP64, axes=1)


def test_features_carry_no_gradient():
    """The encoders are frozen and nothing waits for a backward."""
    c = fresh_components()
    for encoder in (c.text_encoder, c.text_encoder_2):
        encoder.requires_grad_(requires_grad=True)

    assert not any(t.requires_grad for t in c.encode_prompts(PROMPTS))


def test_long_prompts_are_cut_at_the_tokenizer_s_length():
    """Sixteen tokens, the last of them the end."""
    c = small_components()
    long = " ".join(["red"] * 40)

    embeds, _ = c.encode_prompts([long])
    assert embeds.shape == (1, 16, 16)
    assert torch.equal(embeds, c.encode_prompts([f"{long} blue"])[0])


@pytest.mark.parametrize("factor", [1, 2, 5, 6])
def test_random_tiny_encoders_tell_every_word_apart(factor):
    """A linear reading of the pooled features finds each word of a sentence never seen."""
    embeds, pooled = tiny_components(seed=0).encode_prompts(SENTENCES)
    # Features of order one, as a trained encoder's.
    assert 0.5 < embeds.std() < 3.0
    assert 0.5 < pooled.std() < 3.0
    words = sorted({sentence.split()[factor] for sentence in SENTENCES})
    truth = torch.tensor([words.index(sentence.split()[factor]) for sentence in SENTENCES])
    inputs = torch.cat([pooled, torch.ones(len(pooled), 1)], 1).double()
    order = torch.randperm(len(SENTENCES), generator=torch.Generator().manual_seed(0))
    seen, unseen = order[:140], order[140:]
    one_hot = torch.nn.functional.one_hot(truth).double()
    reading = torch.linalg.lstsq(inputs[seen], one_hot[seen]).solution

    right = (inputs[unseen] @ reading).argmax(1) == truth[unseen]
    assert right.double().mean() > 0.95


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [[], "a red cube"])
def test_rejects_no_prompts_and_a_bare_text(prompts):
    """A text would be read letter by letter."""
    with without_shape_checks(), pytest.raises(ValueError, match="`prompts` must be a sequence"):
        small_components().encode_prompts(prompts)


def test_rejects_a_second_encoder_without_projection():
    """Its pooled features would be of another kind."""
    c = small_components()
    with without_shape_checks():
        swapped = replace(c, text_encoder_2=c.text_encoder)
    with pytest.raises(ValueError, match=r"`text_encoder_2` must project.*got CLIPTextModel\."):
        swapped.encode_prompts(PROMPTS)
