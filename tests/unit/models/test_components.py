"""Components: oracle, laws, gradients, errors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from mvczigal_ref.cameras import camera_image
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.lora import add_lora
from mvczigal_ref.models.tiny import tiny_components
from tests.compare import FP64, assert_equal_to
from tests.unit.models.small import PROMPTS, fresh_components, randn, rig, small_components

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
    "mv_adapter": "mv_adapter.safetensors",
}
NETWORKS = ("text_encoder", "text_encoder_2", "vae", "policy")
MEAN, STD = (0.5, -1.0, 2.0, 0.0), (2.0, 0.5, 1.0, 3.0)


def scaled(components):
    return replace(components, latent_mean=torch.tensor(MEAN), latent_std=torch.tensor(STD))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Save the small pipeline once, in fp64."""
    path = tmp_path_factory.mktemp("components")
    scaled(small_components()).save(path)
    return path


def states(components):
    return {
        f"{network}.{name}": value
        for network in NETWORKS
        for name, value in getattr(components, network).state_dict().items()
    }


# -- oracle: the autoencoder called by hand, channel by channel --------------------------


@torch.no_grad()
def test_encode_and_decode_scale_each_channel():
    """Latents are the posterior's mean, less a mean, over a standard deviation; and back."""
    c, images = scaled(small_components()), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    latent = c.encode(images)
    raw = torch.empty_like(latent)
    for channel in range(4):
        raw[:, channel] = latent[:, channel] * STD[channel] + MEAN[channel]

    assert_equal_to(raw, c.vae.encode(images * 2 - 1).latent_dist.mode(), FP64, axes=3)
    expected = (c.vae.decode(raw).sample / 2 + 0.5).clamp(0, 1)
    assert_equal_to(c.decode(latent), expected, FP64, axes=3)


# -- laws --------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 2), max_size=3).map(tuple))
def test_any_leading_axes(batch):
    """Objects and views, rows, or one image alone."""
    c = small_components()
    images = torch.rand(*batch, 3, 16, 8, dtype=torch.float64)
    with torch.no_grad():
        latent = c.encode(images)
        decoded = c.decode(latent)

    assert latent.shape == (*batch, 4, 4, 2)
    assert decoded.shape == images.shape


def test_images_stay_in_their_range_and_type():
    """Whatever the latent, and whatever the autoencoder computes in."""
    c = tiny_components(seed=0).to(dtype=torch.bfloat16)
    image = c.decode(100.0 * randn(2, 4, 8, 8))

    assert image.dtype == torch.float64
    assert image.min() == 0.0
    assert image.max() == 1.0
    assert c.encode(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_conditioning_holds_each_thing_once():
    """Prompts once, cameras once, one negative prompt for all; no gradient."""
    c = small_components()
    record = c.build_conditioning(PROMPTS, rig(4), image_size=(48, 32), negative_prompt="black")
    embeds, pooled = c.encode_prompts(PROMPTS)
    negative, negative_pooled = c.encode_prompts(["black"])

    assert torch.equal(record.prompt_embeds, embeds)
    assert torch.equal(record.pooled_prompt_embeds, pooled)
    assert torch.equal(record.negative_prompt_embeds, negative)
    assert torch.equal(record.negative_pooled_prompt_embeds, negative_pooled)
    assert record.time_ids.tolist() == [[48, 32, 0, 0, 48, 32]] * 3
    assert record.num_views == 4
    with torch.no_grad():
        cameras = c.policy.encode_cameras(camera_image(rig(4), height=48, width=32))
    for found, expected in zip(record.camera_features, cameras, strict=True):
        assert torch.equal(found, expected)
        assert not found.requires_grad


def test_encoded_cameras_are_used_again():
    """A rig is encoded once a run."""
    c = small_components()
    features = c.encode_rig(rig(2), image_size=32)
    record = c.build_conditioning(["a can"], rig(2), image_size=32, camera_features=features)

    assert record.camera_features is features
    assert record.negative_prompt_embeds is None
    fresh = c.build_conditioning(["a can"], rig(2), image_size=32).camera_features
    assert all(torch.equal(a, b) for a, b in zip(fresh, features, strict=True))


def test_loading_returns_what_was_saved(folder):
    """Every tensor, every token and the scaling, bit for bit; nothing drawn from the generator."""
    saved, before = scaled(small_components()), torch.get_rng_state()
    loaded = load_components(folder, dtype=torch.float64)

    assert torch.equal(torch.get_rng_state(), before)
    expected, found = states(saved), states(loaded)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert loaded.latent_mean.tolist() == list(MEAN)
    assert loaded.latent_std.tolist() == list(STD)
    for name in ("tokenizer", "tokenizer_2"):
        old, new = (getattr(c, name)(PROMPTS[0], padding="max_length") for c in (saved, loaded))
        assert old.input_ids == new.input_ids
    for network in NETWORKS:
        modules = getattr(loaded, network).modules()
        assert not any(module.training for module in modules)
    for encoder in (loaded.text_encoder, loaded.text_encoder_2):
        assert not any(p.requires_grad for p in encoder.parameters())
    assert all(p.requires_grad for p in loaded.policy.parameters())


def test_a_copy_does_not_tell_where_it_was_read_from(folder, tmp_path):
    """Settings saved again name no folder of this machine."""
    load_components(folder).save(tmp_path / "again")
    texts = [path.read_text("utf-8") for path in (tmp_path / "again").rglob("*.json")]

    assert len(texts) >= 5
    assert not any(str(folder) in text for text in texts)


def test_half_precision_storage_rounds_once(tmp_path):
    """Half the bytes; the components in memory keep theirs."""
    c = fresh_components()
    before = {name: value.clone() for name, value in states(c).items()}
    c.save(tmp_path, dtype=torch.float16)
    after, found = states(c), states(load_components(tmp_path))

    for name, value in before.items():
        assert torch.equal(after[name], value)
        if value.is_floating_point():
            assert torch.equal(found[name], value.to(torch.float16).float())


def test_the_tiny_world_s_weights_take_under_9_megabytes(tmp_path):
    """In half precision, tokenizers and all."""
    tiny_components(seed=0).save(tmp_path, dtype=torch.float16)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 9e6


def test_the_unet_s_folder_is_a_plain_unet(folder):
    """Other tools load it, and row attention stands beside the cameras in the adapter's file."""
    _, info = UNet2DConditionModel.from_pretrained(folder / "unet", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    adapter = load_file(folder / "mv_adapter.safetensors")
    rows = {name for name in adapter if "_mv." in name}
    assert len(rows) == 7 * 5
    assert {name.split(".")[0] for name in set(adapter) - rows} == {"adapter"}


def test_an_autoencoder_without_statistics_has_a_factor(folder, tmp_path):
    """Published ones divide by one factor alone."""
    copied(folder, tmp_path)
    config = tmp_path / "vae" / "config.json"
    c = small_components()
    c.vae.register_to_config(latents_mean=None, latents_std=None, scaling_factor=0.25)
    c.vae.save_config(tmp_path / "vae")
    assert "0.25" in config.read_text()
    c.vae.register_to_config(scaling_factor=1.0)
    loaded = load_components(tmp_path)

    assert loaded.latent_mean.tolist() == [0.0] * 4
    assert loaded.latent_std.tolist() == [4.0] * 4


def test_libraries_speak_as_before(folder):
    """Loading is quiet and leaves their loggers and progress bars alone."""
    libraries = (diffusers_logging, transformers_logging)

    def voices():
        return [(lib.get_verbosity(), lib.is_progress_bar_enabled()) for lib in libraries]

    before = voices()
    load_components(folder)
    assert voices() == before
    assert all(enabled for _, enabled in before)


def test_moving_returns_components_of_the_same_networks():
    """Networks move in place, the scaling is replaced."""
    c = scaled(fresh_components())
    moved = c.to("cpu", torch.float32)

    assert moved.policy is c.policy
    assert {value.dtype for value in c.policy.parameters()} == {torch.float32}
    assert {value.dtype for value in c.vae.parameters()} == {torch.float32}
    assert moved.latent_mean.tolist() == list(MEAN)
    assert moved.latent_std.tolist() == list(STD)


# -- gradients ---------------------------------------------------------------------------


def test_gradient_flows_through_both_ways():
    """Images to latents, latents to images."""
    c = small_components()
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64).requires_grad_()
    latent = randn(1, 4, 4, 4).requires_grad_()
    c.encode(images).sum().backward()
    c.decode(latent).sum().backward()

    assert images.grad.any()
    assert latent.grad.any()


# -- errors ------------------------------------------------------------------------------


def copied(folder: Path, target: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(folder)).write_bytes(path.read_bytes())


@pytest.mark.parametrize("part", FILES)
def test_names_every_tensor_that_does_not_fit(part, folder, tmp_path):
    """Missing, left over and misshapen ones, in one message, for every file."""
    copied(folder, tmp_path)
    path = tmp_path / FILES[part]
    values = load_file(path)
    gone, first, second = sorted(values)[:3]
    values["stranger"] = values.pop(gone)
    values[first], values[second] = torch.zeros(7), torch.zeros(3, 3, 3)
    save_file(values, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_components(tmp_path)

    text = str(caught.value)
    assert str(tmp_path / part) in text
    for fault in (
        f"missing {gone}",
        "unexpected stranger",
        f"{first} of shape (7,), not (",
        f"{second} of shape (3, 3, 3), not (",
    ):
        assert fault in text


@pytest.mark.parametrize("part", FILES)
def test_rejects_a_cut_file(part, folder, tmp_path):
    """A file that ends early is not half a checkpoint."""
    copied(folder, tmp_path)
    path = tmp_path / FILES[part]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_components(tmp_path)


def test_names_the_parts_that_are_absent(folder, tmp_path):
    """Before anything is looked for elsewhere."""
    copied(folder, tmp_path)
    (tmp_path / "mv_adapter.safetensors").unlink()
    (tmp_path / "vae").rename(tmp_path / "autoencoder")
    with pytest.raises(CheckpointError, match=r"absent: vae, mv_adapter\.safetensors\."):
        load_components(tmp_path)


def test_rejects_saving_a_lora(tmp_path):
    """It would be lost in silence; merged, it is saved."""
    c = fresh_components()
    add_lora(c.policy.unet, rank=1, alpha=1.0, seed=0)
    with pytest.raises(ValueError, match="`policy` must hold no LoRA to be saved whole"):
        c.save(tmp_path)

    assert not any(tmp_path.iterdir())
    c.policy.unet.fuse_lora()
    c.policy.unet.unload_lora()
    c.save(tmp_path)
    load_components(tmp_path)
