"""Loading single-view UNet pipelines: laws, errors."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline

from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.models.lora import add_lora
from mvczigal_ref.models.unet.loading import load_unet
from tests.unit.models.unet.parts import KINDS, PROMPTS, fresh_unet, small_unet


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save both small pipelines once."""
    root = tmp_path_factory.mktemp("unets")
    for kind in KINDS:
        fresh_unet(kind).save(root / kind)
    return root


def states(components):
    networks = [components.vae, components.policy, *components.text_encoders]
    return [value for network in networks for value in network.state_dict().values()]


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_returns_as_it_was_saved(kind, folders):
    """Every tensor, token and number of the scaling; nothing drawn from the generator."""
    before = torch.get_rng_state()
    loaded, saved = load_unet(folders / kind).to(dtype=torch.float64), small_unet(kind)

    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, states(loaded), states(saved)))
    assert loaded.latent_std.tolist() == [2.0] * 4
    pairs = zip(loaded.encode_prompts(PROMPTS), saved.encode_prompts(PROMPTS), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert not any(module.training for module in loaded.policy.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_reads_the_same_folder(kind, folders):
    """As the pipeline that its index names, with one scaling factor."""
    pipeline = DiffusionPipeline.from_pretrained(folders / kind, local_files_only=True)

    assert type(pipeline).__name__ == small_unet(kind).family.pipeline
    assert pipeline.vae.config.scaling_factor == 0.5


def test_half_precision_prefers_the_files_in_it(folders, tmp_path):
    """As SDXL is published; the autoencoder stays in full precision."""
    shutil.copytree(folders / "sd15", tmp_path / "p")
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        full = tmp_path / "p" / f"{name}.safetensors"
        full.rename(full.with_name(full.name.replace(".safetensors", ".fp16.safetensors")))
    loaded = load_unet(tmp_path / "p", dtype=torch.bfloat16)

    assert loaded.policy.dtype == torch.bfloat16
    assert loaded.vae.dtype == torch.float32


def test_a_unet_may_come_from_another_place(folders, tmp_path):
    """A folder of its own, or a pipeline's."""
    other = fresh_unet("sd15", channels=(16, 16))
    other.save(tmp_path)
    for place in (tmp_path, tmp_path / "unet"):
        loaded = load_unet(folders / "sd15", parts={"unet": str(place)})

        assert loaded.policy.unet.config.block_out_channels == [16, 16]


# -- errors ------------------------------------------------------------------------------


def test_what_is_not_there_is_named(folders, tmp_path):
    """Absent parts, a name that is not cached, and an unknown part."""
    shutil.copytree(
        folders / "sdxl", tmp_path / "p", ignore=shutil.ignore_patterns("vae", "tokenizer_2")
    )
    for source, parts, error, message in (
        (tmp_path / "p", {}, CheckpointError, "absent: vae, tokenizer_2"),
        ("no/such", {}, CheckpointError, "hf download no/such"),
        (folders / "sdxl", {"adapter": "x"}, ConfigError, "must name some of .*'adapter'"),
        (folders / "sdxl", {"unet": "no/such"}, CheckpointError, "`unet` must be .*hf download"),
        (folders / "sdxl", {"lora": "no/such"}, CheckpointError, "`lora` must be .*hf download"),
    ):
        with pytest.raises(error, match=message):
            load_unet(source, parts=parts)


def test_another_pipeline_is_refused_by_name(folders, tmp_path):
    """Those of a flow have another kind of network."""
    shutil.copytree(folders / "sd15", tmp_path / "p")
    index = tmp_path / "p" / "model_index.json"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(CheckpointError, match=r"must hold one of \['Stable.*got 'FluxPipeline'"):
        load_unet(tmp_path / "p")


def test_a_pipeline_with_a_lora_is_not_saved_whole(tmp_path):
    """The files would leave it out."""
    components = fresh_unet("sd15")
    add_lora(components.policy.unet, rank=2, alpha=2.0, seed=0)
    with pytest.raises(ValueError, match="`policy` must hold no LoRA"):
        components.save(tmp_path)
