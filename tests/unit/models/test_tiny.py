"""The tiny pipeline: laws, errors."""

import time

import pytest
import torch

from mvczigal_ref.models.tiny import TINY_WORDS, tiny_components, tiny_tokenizer
from mvczigal_ref.tiny_world.grammar import all_prompts
from tests.unit.models.small import rig


def weights(components):
    networks = (
        components.text_encoder,
        components.text_encoder_2,
        components.vae,
        components.policy,
    )
    return [parameter for network in networks for parameter in network.parameters()]


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("word", TINY_WORDS)
def test_every_word_is_one_token(word):
    """Alone and in a sentence."""
    tokenizer = tiny_tokenizer()
    assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert len(tokenizer.tokenize(f"{word} and {word}")) == 3


def test_every_sentence_of_the_world_is_whole_words():
    """Seven or so words and two ends, well within sixteen."""
    tokenizer = tiny_tokenizer()
    for prompt in all_prompts():
        assert tokenizer.tokenize(prompt) == [f"{word}</w>" for word in prompt.split()]


def test_words_that_are_not_known_fall_into_pieces():
    """No text is refused, and none is lost."""
    tokenizer = tiny_tokenizer()
    pieces = tokenizer.tokenize("redder Zebra!")

    assert "".join(pieces) == "redder</w>zebra</w>!</w>"
    assert tokenizer.unk_token not in pieces
    assert (
        tokenizer.decode(tokenizer("a red cube").input_ids, skip_special_tokens=True)
        == "a red cube"
    )


def test_any_words_can_be_kept_whole():
    """Also words whose pieces overlap."""
    words = ("banana", "ban", "anna", "nab", "aaaa", "a", "nanana")
    tokenizer = tiny_tokenizer(words)
    assert all(tokenizer.tokenize(word) == [f"{word}</w>"] for word in words)


def test_the_tokenizers_pad_as_sdxl_s():
    """The first with the end of text, the second with an exclamation mark of number 0."""
    c = tiny_components(seed=0)
    first, second = (t("a can", padding="max_length") for t in (c.tokenizer, c.tokenizer_2))

    assert first.input_ids[4:] == [c.tokenizer.eos_token_id] * 12
    assert second.input_ids[4:] == [0] * 12
    assert first.input_ids[:4] == second.input_ids[:4]
    assert c.tokenizer_2.convert_ids_to_tokens(0) == "!"
    assert len(c.tokenizer) == c.text_encoder.config.vocab_size


def test_weights_depend_on_the_seed_alone():
    """Not on the global generator, which is left as it was."""
    before = torch.get_rng_state()
    first = weights(tiny_components(seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    second, other = weights(tiny_components(seed=3)), weights(tiny_components(seed=4))

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert sum(not torch.equal(a, b) for a, b in zip(first, other, strict=True)) > len(first) / 2


def test_size_and_speed():
    """What the world's weights are sized for: 9 MB in half precision; a second to build."""
    start = time.process_time()
    c = tiny_components(seed=0)

    assert time.process_time() - start < 1.0
    assert sum(p.numel() for p in c.policy.parameters()) == 3_348_852
    assert sum(p.numel() for p in c.vae.parameters()) == 648_375
    assert 2 * sum(p.numel() for p in weights(c)) < 9e6


def test_nothing_trains_but_policy_and_autoencoder():
    """The text encoders stay as drawn; everything is in evaluation mode."""
    c = tiny_components(seed=0)
    frozen = [*c.text_encoder.parameters(), *c.text_encoder_2.parameters()]

    assert not any(p.requires_grad for p in frozen)
    assert all(p.requires_grad for p in (*c.policy.parameters(), *c.vae.parameters()))
    for network in (c.text_encoder, c.text_encoder_2, c.vae, c.policy):
        assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("width", [None, 4, 32])
def test_guidance_embedding_starts_neutral(width):
    """Its weight is zero, or it is not there."""
    policy = tiny_components(seed=0, time_cond_proj_dim=width).policy
    assert policy.guidance_width == width
    if width is not None:
        assert policy.unet.time_embedding.cond_proj.weight.shape == (48, width)
        assert not policy.unet.time_embedding.cond_proj.weight.any()


def test_camera_features_start_small_and_differ_by_view():
    """Beside hidden states of order one; no two cameras look the same."""
    features = tiny_components(seed=0).encode_rig(rig(6), image_size=32)

    assert [tuple(f.shape) for f in features] == [
        (6, 48, 4, 4),
        (6, 80, 4, 4),
        (6, 80, 2, 2),
        (6, 80, 2, 2),
    ]
    for feature in features:
        assert 0.05 < feature.std() < 0.5
        assert torch.pdist(feature.flatten(1)).min() > 0.1 * feature.flatten(1).norm(dim=1).mean()


@pytest.mark.parametrize(
    "sizes",
    [
        {"channels": (8, 16, 24), "num_heads": (1, 2, 3)},
        {"layers_per_block": 2, "transformer_layers": (1, 1, 2)},
        {"vae_channels": (8, 8, 16, 16)},
        {"text_width": 12},
        {"num_groups": 4},
    ],
    ids=lambda sizes: next(iter(sizes)),
)
def test_any_width_fits_together(sizes):
    """Every part follows the others' sizes."""
    c = tiny_components(seed=0, **{"channels": (8, 16, 16), "num_heads": (1, 2, 2), **sizes})
    image_size = 2 ** (len(c.vae.config.block_out_channels) - 1) * 8
    latent = c.encode(torch.rand(2, 3, image_size, image_size))
    conditioning = c.build_conditioning(["a cube"], rig(2), image_size=image_size)

    assert latent.shape == (2, 4, 8, 8)
    with torch.no_grad():
        y = c.policy(latent, torch.tensor(99), conditioning, guidance_scale=2.0)
    assert c.decode(y).shape == (2, 3, image_size, image_size)


# -- errors ------------------------------------------------------------------------------


def test_rejects_an_empty_word():
    """It has no last letter."""
    with pytest.raises(ValueError, match="`words` must be non-empty"):
        tiny_tokenizer(["red", ""])
