"""Loading flow pipelines: laws, errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.flow.loading import load_flow
from tests.unit.models.flow_small import PROMPTS, fresh_flux, small_flux, small_sd3

MEAN, STD = (0.5, -1.0, 2.0, 0.0), (2.0, 0.5, 1.0, 3.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Save the small FLUX pipeline once, in fp64, each channel scaled by itself."""
    path = tmp_path_factory.mktemp("flux")
    c = replace(fresh_flux(), latent_mean=torch.tensor(MEAN), latent_std=torch.tensor(STD))
    c.save(path)
    return path


def states(c):
    networks = {"vae": c.vae, "policy": c.policy, **dict(enumerate(c.text_encoders))}
    return {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


def assert_same(found, expected):
    found, expected = states(found), states(expected)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# -- laws --------------------------------------------------------------------------------


def test_flux_returns_as_it_was_saved(folder):
    """Every tensor, token and number of the scaling; nothing drawn from the generator."""
    before = torch.get_rng_state()
    c = load_flow(str(folder), text_length=16, dtype=torch.float64, vae_dtype=torch.float64)

    assert torch.equal(torch.get_rng_state(), before)
    assert_same(c, small_flux())
    assert c.latent_mean.tolist() == list(MEAN)
    assert c.latent_std.tolist() == list(STD)
    assert torch.equal(c.encode_prompts(PROMPTS)[0], small_flux().encode_prompts(PROMPTS)[0])
    assert c.noise_shift(8, 8) == small_flux().noise_shift(8, 8)
    for network in (*c.text_encoders, c.vae, c.policy):
        assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for encoder in c.text_encoders for p in encoder.parameters())
    assert all(p.requires_grad for p in c.policy.parameters())


def test_sd3_returns_as_it_was_saved(tmp_path):
    """Three encoders, one factor for all channels, and a fixed shift."""
    small_sd3().save(tmp_path)
    c = load_flow(tmp_path, text_length=12).to(dtype=torch.float64)

    assert_same(c, small_sd3())
    assert c.latent_mean.tolist() == [0.25] * 4
    assert c.latent_std.tolist() == [2.0] * 4
    assert c.noise_shift(8, 8) == 3.0
    pairs = zip(c.encode_prompts(PROMPTS), small_sd3().encode_prompts(PROMPTS), strict=True)
    assert all(torch.equal(ours, saved) for ours, saved in pairs)


def test_types_and_lengths_are_the_caller_s(folder):
    """The autoencoder stays in full precision unless asked."""
    c = load_flow(folder, text_length=12, dtype=torch.bfloat16)

    assert c.policy.dtype == torch.bfloat16
    assert {encoder.dtype for encoder in c.text_encoders} == {torch.bfloat16}
    assert c.vae.dtype == torch.float32
    assert c.max_tokens == 12
    assert load_flow(folder).max_tokens == 16  # the longest text of its tokenizer


def test_a_copy_does_not_tell_where_it_was_read_from(folder, tmp_path):
    """Settings saved again name no folder of this machine."""
    load_flow(folder).save(tmp_path)
    texts = [path.read_text("utf-8") for path in tmp_path.rglob("*.json")]

    assert len(texts) >= 7
    assert not any(str(folder) in text for text in texts)


# -- errors ------------------------------------------------------------------------------


def test_names_every_bad_tensor(folder, tmp_path):
    """Missing, left over and misshapen, in one message."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["stranger"] = tensors.pop("x_embedder.bias")
    tensors["proj_out.bias"] = torch.zeros(7)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_flow(tmp_path)

    text = str(caught.value)
    assert "missing x_embedder.bias; unexpected stranger; proj_out.bias of shape (7,)" in text


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler", "tokenizer_2"])
def test_names_an_absent_part(part, folder, tmp_path):
    """Before anything is read."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / part)
    with pytest.raises(CheckpointError, match=f"absent: {part}\\."):
        load_flow(tmp_path)


def test_a_flux_is_no_stable_diffusion(folder, tmp_path):
    """Its third encoder is not there."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text("utf-8").replace("FluxPipeline", "StableDiffusion3Pipeline"))
    with pytest.raises(CheckpointError, match=r"absent: tokenizer_3, text_encoder_3\."):
        load_flow(tmp_path)


def test_rejects_a_damaged_file(folder, tmp_path):
    """Cut short."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors` must .* a cut safetensors"):
        load_flow(tmp_path)


@pytest.mark.parametrize("source", ["nobody/no-such-model", "no/such/folder"])
def test_rejects_a_name_that_is_not_here(source):
    """Nothing is downloaded: the message says how to."""
    with pytest.raises(CheckpointError, match=f"`source` must be .* hf download {source}"):
        load_flow(source)


@pytest.mark.parametrize("scale", [0, None, "0.3"])
def test_an_autoencoder_without_a_scale_is_refused(folder, tmp_path, scale):
    """Before a transformer is read."""
    shutil.copytree(folder, tmp_path / "flux")
    config = tmp_path / "flux" / "vae" / "config.json"
    plain = {"latents_mean": None, "latents_std": None, "scaling_factor": scale}
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | plain))
    with pytest.raises(CheckpointError, match="must have a positive scaling_factor"):
        load_flow(tmp_path / "flux")


def test_a_tokenizer_without_a_length_is_given_its_encoder_s(folder, tmp_path):
    """Prompts would be padded to 10**30 tokens."""
    shutil.copytree(folder, tmp_path / "flux")
    config = tmp_path / "flux" / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(config.read_text("utf-8"))
    del settings["model_max_length"]
    config.write_text(json.dumps(settings))
    c = load_flow(tmp_path / "flux", text_length=16)
    encoder = c.text_encoders[0].config
    assert c.tokenizers[0].model_max_length == encoder.max_position_embeddings
