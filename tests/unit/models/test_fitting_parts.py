"""`fitting_parts`: parts that each are whole, and do not belong together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.flow.tiny_z_image import tiny_z_image_components
from mvczigal_ref.models.hub import load_sdxl_components
from mvczigal_ref.models.unet.loading import load_unet
from tests.unit.models.flow_small import fresh_sd3
from tests.unit.models.published import write_published
from tests.unit.models.small import fresh_components
from tests.unit.models.unet.parts import fresh_unet

SDXL = [
    ("unet", {"in_channels": 9}, "in_channels = 4, the autoencoder's latent_channels; got 9"),
    ("unet", {"out_channels": 8}, "out_channels = 4, .* got 8"),
    ("unet", {"cross_attention_dim": 24}, "cross_attention_dim = 16, the width of .* got 24"),
    ("unet", {"addition_embed_type": "text"}, "addition_embed_type = 'text_time', as published"),
    ("unet", {"addition_time_embed_dim": 16}, "class_embeddings_input_dim = 104, .*; got 56"),
    ("unet", {"num_class_embeds": 3}, "num_class_embeds = None, as published; got 3"),
    ("unet", {"class_embed_type": "timestep"}, "class_embed_type = None, .* got 'timestep'"),
    ("unet", {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type = None"),
    ("unet", {"block_out_channels": [16, 16, 16]}, r"camera encoder = \[16, 16, 16, 16\]"),
    ("unet", {"block_out_channels": "x"}, "a list of numbers as block_out_channels; got 'x'"),
    ("vae", {"latent_channels": 16}, "unet` must have in_channels = 16, .* got 4"),
    ("vae", {"out_channels": 4}, "vae` must have out_channels = 3, red, green and blue; got 4"),
    ("vae", {"block_out_channels": [8, 16]}, "vae` must have twice its reduction = 8, .* got 4"),
    ("text_encoder", {"hidden_size": 16}, "cross_attention_dim = 24, .* got 16"),
    ("text_encoder", {"num_hidden_layers": 0}, "text_encoder` must have num_hidden_layers = 1"),
    ("text_encoder_2", {"projection_dim": 4}, "class_embeddings_input_dim = 52"),
    ("text_encoder_2", {"projection_dim": "4"}, "config.json` must describe a network"),
]
FLOW = [
    ("flux", "transformer", {"in_channels": 64}, "in_channels = 16, .* of 2 x 2 positions; got 64"),
    ("flux", "transformer", {"joint_attention_dim": 9}, "joint_attention_dim = 32, .* T5; got 9"),
    ("flux", "text_encoder", {"hidden_size": 8}, "pooled_projection_dim = 8, .*; got 32"),
    ("flux", "text_encoder_2", {"d_model": 8}, "joint_attention_dim = 8"),
    ("flux", "vae", {"latent_channels": 16}, "in_channels = 64"),
    ("sd3", "transformer", {"in_channels": 16}, "in_channels = 4, the latent_channels; got 16"),
    ("sd3", "text_encoder_2", {"projection_dim": 5}, "pooled_projection_dim = .*, both CLIPs'"),
    ("sd3", "text_encoder_3", {"d_model": 8}, "joint_attention_dim = 8, the width of T5"),
    ("z_image", "transformer", {"cap_feat_dim": 7}, "cap_feat_dim = 16, .* got 7"),
    ("z_image", "vae", {"latent_channels": 16}, "in_channels = 16, the latent_channels; got 4"),
    ("sd3", "vae", {"in_channels": 1}, "vae` must have in_channels = 3"),
]


def change(folder: Path, settings: dict) -> None:
    """Change settings of a network."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), "utf-8")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Write SDXL's parts as they are published."""
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize(("part", "settings", "message"), SDXL, ids=str)
def test_parts_of_several_places(published, tmp_path, part, settings, message):
    """The folder, the setting and both values, before a tensor is read."""
    source = "base" if part.startswith("text") else part
    place = tmp_path / part if source == part else tmp_path
    shutil.copytree(getattr(published, source), place, dirs_exist_ok=True)
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(b"not read yet")
    change(tmp_path / part, settings)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_sdxl_components(replace(published, **{source: str(place)}))
    assert str(tmp_path) in str(caught.value) or str(published.unet) in str(caught.value)


def test_parts_of_one_folder(tmp_path):
    """As this package saves them; whole ones are read."""
    fresh_components().save(tmp_path)
    load_components(tmp_path)
    change(tmp_path / "camera_encoder", {"channels": [8, 8, 8, 8]})
    with pytest.raises(CheckpointError, match=r"levels of the camera encoder = .*; got \[8, 8, 8"):
        load_components(tmp_path)


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    """Save a small pipeline of each family."""
    folder = tmp_path_factory.mktemp("flows")
    tiny_flow_components(seed=0, num_layers=1, num_single_layers=1).save(folder / "flux")
    fresh_sd3().save(folder / "sd3")
    tiny_z_image_components(seed=0).save(folder / "z_image")
    return folder


@pytest.mark.parametrize(("family", "part", "settings", "message"), FLOW, ids=str)
def test_parts_of_flow_pipelines(flows, tmp_path, family, part, settings, message):
    """Of both families."""
    shutil.copytree(flows / family, tmp_path / "a")
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(b"not read yet")
    change(tmp_path / "a" / part, settings)
    with pytest.raises(CheckpointError, match=message):
        load_flow(tmp_path / "a")


@pytest.mark.parametrize(
    ("kind", "part", "settings", "message"),
    [
        ("sd15", "unet", {"cross_attention_dim": 7}, "cross_attention_dim = .*; got 7"),
        ("sd15", "unet", {"addition_embed_type": "text_time"}, "addition_embed_type = None"),
        ("sd15", "vae", {"latent_channels": 16}, "in_channels = 16"),
        ("sdxl", "text_encoder_2", {"projection_dim": 4}, "class_embeddings_input_dim = "),
    ],
)
def test_parts_of_single_view_unets(tmp_path, kind, part, settings, message):
    """Whole ones are read; SDXL has two text encoders, Stable Diffusion 1.5 one."""
    fresh_unet(kind).save(tmp_path)
    load_unet(tmp_path)
    change(tmp_path / part, settings)
    with pytest.raises(CheckpointError, match=message):
        load_unet(tmp_path)
