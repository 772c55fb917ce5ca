"""The tiny flow pipeline: laws, errors."""

import time

import pytest
import torch

from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.flow.tiny_t5 import tiny_t5, tiny_t5_tokenizer
from mvczigal_ref.models.tiny import TINY_WORDS, tiny_components

SMALL = {"num_heads": 1, "head_width": 16, "num_layers": 1, "num_single_layers": 1}


def weights(c):
    networks = (*c.text_encoders, c.vae, c.policy)
    return [p for network in networks for p in network.parameters()]


# -- laws --------------------------------------------------------------------------------


def test_size_and_speed():
    """Less than 6 MB in half precision; a second to build; 16 tokens an image."""
    start = time.process_time()
    c = tiny_flow_components(seed=0)

    assert time.process_time() - start < 1.0
    assert sum(p.numel() for p in c.policy.parameters()) == 2_288_144
    assert 2 * sum(p.numel() for p in weights(c)) < 6.1e6
    assert c.policy.num_tokens(8, 8) == 16
    assert c.vae.config.latent_channels == 4


def test_weights_depend_on_the_seed_alone():
    """Not on the global generator, which is left as it was."""
    before = torch.get_rng_state()
    first, same, other = (weights(tiny_flow_components(seed=s, **SMALL)) for s in (3, 3, 4))

    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert sum(not torch.equal(a, b) for a, b in zip(first, other, strict=True)) > len(first) / 2


def test_clip_and_autoencoder_are_the_multi_view_pipeline_s():
    """Of the same seed, so that one set of trained weights serves both."""
    flow, views = tiny_flow_components(seed=2, **SMALL), tiny_components(seed=2)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    flow.vae.load_state_dict(views.vae.state_dict())
    flow.text_encoders[0].load_state_dict(views.text_encoder.state_dict())

    assert torch.equal(flow.encode(images), views.encode(images))


@pytest.mark.parametrize("seed", range(3))
def test_a_word_s_features_tell_its_neighbours(seed):
    """Text tokens have no order for the transformer: swapped colours must look different."""
    tokenizer = tiny_t5_tokenizer()
    encoder = tiny_t5(tokenizer, width=32, seed=seed)
    texts = ["a red cube with a white nose", "a white cube with a red nose"]
    with torch.no_grad():
        one, other = encoder(**tokenizer(texts, return_tensors="pt", padding=True))[0]

    # Each against its nearest in the other text; features have length sqrt(32) = 5.7.
    assert torch.cdist(one[:7], other[:7]).amin(dim=1).mean() > 1.0


def test_known_words_are_whole_and_no_word_is_lost():
    """Others are spelt; what is not ASCII is unknown."""
    tokenizer = tiny_t5_tokenizer()
    for word in TINY_WORDS:
        assert len(tokenizer.tokenize(word)) == 1
    assert "".join(tokenizer.tokenize("Zebra!")).strip("\u2581") == "Zebra!"
    assert tokenizer.tokenize("\u00e9")[-1] == "\u00e9"
    assert tokenizer.convert_tokens_to_ids("\u00e9") == tokenizer.unk_token_id
    assert tokenizer("a can", padding="max_length").input_ids[2:] == [1] + [0] * 13


def test_nothing_trains_but_policy_and_autoencoder():
    """The text encoders stay as drawn; everything is in evaluation mode."""
    c = tiny_flow_components(seed=0, **SMALL)

    assert not any(p.requires_grad for encoder in c.text_encoders for p in encoder.parameters())
    assert all(p.requires_grad for p in (*c.policy.parameters(), *c.vae.parameters()))
    for network in (*c.text_encoders, c.vae, c.policy):
        assert not any(module.training for module in network.modules())


@torch.no_grad()
def test_guidance_embedding_starts_neutral():
    """Every scale gives the same velocity until it is trained."""
    c = tiny_flow_components(seed=0, guidance_embeds=True, **SMALL)
    z, record = torch.ones(1, 4, 8, 8), c.build_conditioning(["a can"])
    weak, strong = (c.policy(z, torch.tensor(500.0), record, guidance_scale=w) for w in (1.0, 9.0))

    assert c.policy.embeds_guidance
    assert torch.equal(weak, strong)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_heads": 3, "head_width": 32},
        {"head_width": 8},
        {"num_layers": 2, "num_single_layers": 0},
        {"vae_channels": (8, 8, 16, 16)},
        {"text_width": 12},
        {"num_groups": 4},
        {"max_tokens": 9},
    ],
    ids=lambda sizes: next(iter(sizes)),
)
@torch.no_grad()
def test_any_width_fits_together(sizes):
    """Every part follows the others' sizes."""
    c = tiny_flow_components(seed=0, **{**SMALL, "vae_channels": (8, 8, 16), **sizes})
    edge = 8 * 2 ** (len(c.vae.config.block_out_channels) - 1)
    latent = c.encode(torch.full((2, 3, edge, edge), 0.5))
    y = c.policy(
        latent, torch.tensor(99.0), c.build_conditioning(["a cube"] * 2), guidance_scale=1.0
    )

    assert latent.shape == (2, 4, 8, 8)
    assert c.decode(y).shape == (2, 3, edge, edge)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [6, 9])
def test_rejects_a_head_without_pairs(width):
    """Two coordinates turn a pair each, at least."""
    with pytest.raises(ValueError, match="`head_width` must be even and at least 8"):
        tiny_flow_components(seed=0, head_width=width)


def test_rejects_an_empty_word():
    """It has no letters."""
    with pytest.raises(ValueError, match="`words` must be non-empty"):
        tiny_t5_tokenizer(["red", ""])
