"""`hub` and `sources`: laws, errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from mvczigal_ref.cameras import PAPER_RIG
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.hub import load_sdxl_components
from mvczigal_ref.models.published import SdxlSources
from tests.unit.models.published import DIFFUSERS, FACTOR, parts, write_cache, write_published

NETWORKS = ("text_encoder", "text_encoder_2", "vae", "policy")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> SdxlSources:
    """Write the four repositories once."""
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def own(published, tmp_path) -> SdxlSources:
    """Copy the four folders, for a test that damages one."""
    root = Path(published.base).parent
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return SdxlSources(**{n: str(tmp_path / n) for n in ("base", "unet", "vae", "adapter")})


def states(components):
    return {
        f"{network}.{name}": value
        for network in NETWORKS
        for name, value in getattr(components, network).state_dict().items()
    }


def same(found, expected):
    return list(found) == list(expected) and all(torch.equal(found[n], expected[n]) for n in found)


# -- laws --------------------------------------------------------------------------------


def test_folders_in_the_published_layout_load_whole(published):
    """Every tensor, token and the factor; ready to use; nothing drawn from the generator."""
    before = torch.get_rng_state()
    loaded = load_sdxl_components(published)

    assert torch.equal(torch.get_rng_state(), before)
    assert same(states(loaded), states(parts()))
    torch.testing.assert_close(loaded.latent_std, torch.full((4,), 1 / FACTOR))
    assert not loaded.latent_mean.any()
    assert loaded.policy.guidance_width == 8
    for network in NETWORKS:
        assert not any(module.training for module in getattr(loaded, network).modules())
    for encoder in (loaded.text_encoder, loaded.text_encoder_2):
        assert not any(p.requires_grad for p in encoder.parameters())
    found, expected = (
        c.build_conditioning(["a red cube"], PAPER_RIG, image_size=32) for c in (loaded, parts())
    )
    assert torch.equal(found.prompt_embeds, expected.prompt_embeds)
    assert torch.equal(found.camera_features[0], expected.camera_features[0])


def test_ids_are_read_from_the_cache_at_their_revision(published, tmp_path):
    """The published ids are the defaults; a revision stands after the id."""
    latest = write_cache(published, tmp_path / "cache")
    pinned = write_cache(published, tmp_path / "pinned", revision="v2")
    with pytest.raises(CheckpointError, match="lcm-sdxl"):
        load_sdxl_components(pinned)
    names = {n: f"{getattr(pinned, n)}@v2" for n in ("base", "unet", "vae", "adapter")}
    for sources in (latest, replace(pinned, **names)):
        assert same(states(load_sdxl_components(sources)), states(parts()))


def test_half_precision_reads_the_half_files(own):
    """Where there are any; the autoencoder has none. Single precision reads the full ones."""
    for file in Path(own.base).rglob("model.safetensors"):
        file.unlink()
    (Path(own.unet) / f"{DIFFUSERS}.safetensors").write_bytes(b"not read")
    loaded = load_sdxl_components(own, dtype=torch.float16)

    found = states(loaded)
    assert all(torch.equal(found[name], value.half()) for name, value in states(parts()).items())
    assert loaded.vae.dtype == torch.float16
    with pytest.raises(CheckpointError, match=r"text_encoder/model\.safetensors"):
        load_sdxl_components(own)


def test_an_autoencoder_that_would_overflow_stays_in_single_precision(own):
    """As its settings say."""
    config = Path(own.vae) / "config.json"
    config.write_text(config.read_text().replace('"force_upcast": false', '"force_upcast": true'))
    loaded = load_sdxl_components(own, dtype=torch.float16)

    assert loaded.vae.dtype == torch.float32
    assert loaded.policy.dtype == torch.float16


def test_the_base_s_own_networks_and_a_file(own):
    """A whole pipeline in one folder, the adapter named as a file."""
    for name in ("unet", "vae"):
        shutil.move(getattr(own, name), Path(own.base) / name)
    file = Path(own.adapter) / "mvadapter_t2mv_sdxl.safetensors"
    # A UNet may be named by its pipeline's folder too.
    whole = SdxlSources(base=own.base, unet=own.base, vae=None, adapter=str(file))
    assert same(states(load_sdxl_components(whole)), states(parts()))


def test_tensors_in_shards(own):
    """As diffusers writes a network of more than ten gigabytes."""
    unet = UNet2DConditionModel.from_pretrained(own.unet)
    shutil.rmtree(own.unet)
    unet.save_pretrained(own.unet, max_shard_size="200KB")
    assert len(list(Path(own.unet).glob("*.safetensors"))) > 1
    assert same(states(load_sdxl_components(own)), states(parts()))

    next(Path(own.unet).glob("*-00002-of*")).unlink()
    with pytest.raises(CheckpointError, match=r"`unet` must be .* the folder holds no .*00002-of"):
        load_sdxl_components(own)


def test_saved_again_it_says_the_same(published, tmp_path):
    """By this loader and by the other; the factor is not counted twice."""
    load_sdxl_components(published).save(tmp_path)
    settings = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert settings["scaling_factor"] == 1.0
    whole = SdxlSources(base=str(tmp_path), unet=None, vae=None, adapter=str(tmp_path))
    for again in (load_sdxl_components(whole), load_components(tmp_path)):
        assert same(states(again), states(parts()))
        torch.testing.assert_close(again.latent_std, torch.full((4,), 1 / FACTOR))


# -- errors ------------------------------------------------------------------------------


def test_what_is_absent_is_named_with_its_source_and_size(tmp_path):
    """All of it in one line, before anything is loaded."""
    with pytest.raises(CheckpointError) as caught:
        load_sdxl_components(
            SdxlSources(cache=str(tmp_path), local_files_only=True), dtype=torch.float16
        )
    text = str(caught.value)

    assert len(text.splitlines()) == 1
    assert text.count("hf download") == 7
    assert "hold their parts, 7 of which are absent; got" in text
    for command in (
        "hf download latent-consistency/lcm-sdxl config.json "
        "diffusion_pytorch_model.fp16.safetensors` (about 5.14 GB)",
        "hf download stabilityai/stable-diffusion-xl-base-1.0 text_encoder_2/config.json "
        "text_encoder_2/model.fp16.safetensors` (about 1.39 GB)",
        "hf download madebyollin/sdxl-vae-fp16-fix config.json "
        "diffusion_pytorch_model.safetensors` (about 335 MB)",
        "hf download huanngzh/mv-adapter mvadapter_t2mv_sdxl.safetensors` (about 982 MB in half ",
        "tokenizer_2/tokenizer_config.json",
    ):
        assert command in text
    with pytest.raises(CheckpointError, match=r"`unet` .*got .*'a/b@c' \(.*--revision c"):
        load_sdxl_components(SdxlSources(unet="a/b@c", cache=str(tmp_path)))


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("unet/config.json", "`unet` must be a folder or hub id that holds config.json"),
        ("base/text_encoder/model.safetensors", "`base` must be .* text_encoder/model.safeten"),
        ("base/tokenizer_2/merges.txt", "`base` must be .* tokenizer_2/merges.txt"),
        ("adapter/mvadapter_t2mv_sdxl.safetensors", "`adapter` must be .* mvadapter_t2mv_sdxl"),
    ],
)
def test_a_file_that_a_folder_lacks(own, tmp_path, gone, named):
    """Nothing is looked for on the hub in its place."""
    (tmp_path / gone).unlink()
    with pytest.raises(CheckpointError, match=named):
        load_sdxl_components(own)


def test_a_folder_that_is_not_there(own):
    """A path is not taken for an id."""
    with pytest.raises(CheckpointError, match=r"got '\./nowhere/at/all': there is no such f"):
        load_sdxl_components(replace(own, unet="./nowhere/at/all"))


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (f"unet/{DIFFUSERS}.safetensors", "conv_in.bias"),
        (f"vae/{DIFFUSERS}.safetensors", "decoder.conv_in.bias"),
        ("adapter/mvadapter_t2mv_sdxl.safetensors", "adapter.conv_in.bias"),
    ],
)
def test_every_bad_tensor_is_named(own, tmp_path, file, kind):
    """Missing, left over and misshapen, in one message."""
    values = load_file(tmp_path / file)
    values["stranger"] = values.pop(kind)
    bad = next(name for name in values if name.endswith("conv_in.weight"))
    values[bad] = torch.zeros(3)
    save_file(values, tmp_path / file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_sdxl_components(own)

    for fault in (f"missing {kind}", "unexpected stranger", f"{bad} of shape (3,), not ("):
        assert fault in str(caught.value)


def test_a_pickle_is_not_read(own):
    """Not even where there is nothing else; the command that converts it is named."""
    file = Path(own.unet) / f"{DIFFUSERS}.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(
        CheckpointError, match=r"it holds diffusion_pytorch_model\.bin, and pickles"
    ):
        load_sdxl_components(own)


def test_a_cut_file(own):
    """A file that ends early is told as such."""
    file = Path(own.adapter) / "mvadapter_t2mv_sdxl.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"sdxl\.safetensors` must .* that is cut"):
        load_sdxl_components(own)
