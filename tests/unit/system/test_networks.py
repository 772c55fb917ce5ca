"""`networks`: what a configuration names is what is loaded; errors."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mvczigal_ref.config import from_dict
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.models.backbone import FlowBackbone, MultiviewBackbone, UnetBackbone
from mvczigal_ref.models.flow import loading as flow_loading
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.published import LCM_UNET, SDXL_BASE, published_sources, weights_folder
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.models.unet.tiny import tiny_unet_components
from mvczigal_ref.system.networks import backbone_of, load_network
from tests.unit.models.flow_small import fresh_sd3
from tests.unit.models.published import write_published

FLOW = {
    "model": {"network": "flow"},
    "sampler": {"kind": "flow"},
    "reward": {"joint": "per_view"},
    "advantage": {"mode": "per_view"},
    "rollout": {"kind": "group"},
    "objective": {"kind": "policy_gradient"},
}


def config_of(**model):
    """Configure a multi-view network."""
    return from_dict({"model": model})


def test_published_parts_are_loaded_from_where_the_settings_say(tmp_path):
    """In the dtype asked for, the file named by its key."""
    at = write_published(tmp_path)
    sources = {name: getattr(at, name) for name in ("base", "unet", "vae", "adapter")}
    config = config_of(weights="lcm_sdxl", sources=sources, dtype="bf16")

    assert load_network(config).policy.dtype == torch.bfloat16


def test_a_base_with_a_grid_of_its_own_is_told_of(tmp_path):
    """A run samples on the grid of its settings; the file and what it says are named."""
    at = write_published(tmp_path)
    sources = {name: getattr(at, name) for name in ("base", "unet", "vae", "adapter")}
    config = config_of(weights="sdxl", sources=sources)
    config = replace(config, sampler=replace(config.sampler, kind="ddim"))
    folder = Path(at.unet) / "scheduler"
    folder.mkdir()
    settings = {
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": config.sampler.prediction_type,
        "timestep_spacing": "trailing",
    }
    (folder / "scheduler_config.json").write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="beta_schedule = linear, timestep_spacing = trailing; "):
        load_network(config)


def test_the_names_of_published_models():
    """The few-step one has a UNet of its own, the other its base's."""
    assert published_sources("lcm_sdxl", {}).unet == LCM_UNET
    assert published_sources("sdxl", {}).unet is None
    assert published_sources("sdxl", {"unet": "folder"}).unet == "folder"
    assert published_sources("sdxl", {"vae": "folder"}).base == SDXL_BASE


def test_a_flow_pipeline_is_known_by_its_index(tmp_path):
    """And a tokenizer's own length bounds the prompts'."""
    tiny_flow_components(seed=0, num_layers=1, num_single_layers=1).save(tmp_path)
    loaded = load_network(
        from_dict({**FLOW, "model": {"network": "flow", "weights": str(tmp_path)}})
    )

    assert loaded.max_tokens == 16


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """Save a small FLUX pipeline whose tokenizer ends after 16 tokens."""
    folder = tmp_path_factory.mktemp("flux")
    tiny_flow_components(seed=0, num_layers=1, num_single_layers=1).save(folder)
    return folder


@pytest.mark.parametrize("length", [5, 16])
def test_prompts_are_as_long_as_the_settings_say(flux, length):
    """Every prompt has so many T5 tokens, whatever its words."""
    config = from_dict({**FLOW, "model": {"network": "flow", "weights": str(flux)},
                        "flow": {"text_length": length}})  # fmt: skip
    record = load_network(config).build_conditioning(["a red cube", "a blue can beside a red cube"])

    assert record.prompt_embeds.shape[:2] == (2, length)


@pytest.mark.parametrize(
    ("fresh", "usual"),
    [
        (partial(tiny_flow_components, seed=0, num_layers=1, num_single_layers=1), 512),
        (fresh_sd3, 256),
    ],
)
def test_a_family_has_its_pipeline_s_length_where_none_is_said(fresh, usual, tmp_path):
    """512 of FLUX.1 and 256 of Stable Diffusion 3, if the tokenizer allows as much."""
    components = fresh()
    components.tokenizers[-1].model_max_length = 600
    components.save(tmp_path)

    assert load_flow(tmp_path).max_tokens == usual
    assert load_flow(tmp_path, text_length=600).max_tokens == 600


def test_prompts_longer_than_the_tokenizer_allows_are_refused(flux, monkeypatch):
    """Before any weights are read."""
    monkeypatch.setattr(flow_loading, "_read", None)
    with pytest.raises(ConfigError, match=r"`flow.text_length` must be at most 16.*got 17"):
        load_flow(flux, text_length=17)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"weights": "sdxl", "sources": {"unett": "x"}}, "must name some of .*got .'unett'"),
        ({"weights": "tiny", "sources": {"unet": "x"}}, "`model.sources` is for"),
    ],
)
def test_places_for_parts_that_are_not_there_are_refused(model, told):
    """Nothing is loaded."""
    with pytest.raises(ConfigError, match=told):
        load_network(config_of(**model))


@pytest.mark.parametrize("length", [None, 5])
def test_an_absent_tokenizer_is_named_with_every_absent_part(flux, tmp_path, length):
    """The length of prompts does not hide it."""
    shutil.copytree(flux, tmp_path / "part", ignore=shutil.ignore_patterns("tokenizer_2"))
    with pytest.raises(CheckpointError, match=r"every part of a pipeline; absent: tokenizer_2"):
        load_flow(tmp_path / "part", text_length=length)


SINGLE = {
    "reward": {"joint": "per_view"},
    "advantage": {"mode": "per_view"},
    "sampler": {"prediction_type": "epsilon"},
}


def test_a_single_view_unet_is_known_by_its_index(tmp_path):
    """What its scheduler says it predicts is compared; its parts may come from elsewhere."""
    components = tiny_unet_components("sd15", seed=0)
    components.save(tmp_path / "base")
    tiny_unet_components("sd15", seed=0, time_cond_proj_dim=8).save(tmp_path / "few")
    model = {"network": "unet", "weights": str(tmp_path / "base")}
    loaded = load_network(from_dict({**SINGLE, "model": model}))
    few = {**model, "sources": {"unet": str(tmp_path / "few")}}
    backbone = backbone_of(from_dict({**SINGLE, "model": model}), loaded)

    assert isinstance(backbone, UnetBackbone)
    assert (backbone.num_views, backbone.embeds_guidance) == (1, False)
    assert backbone.latent_shape == (1, 4, 8, 8)
    assert load_network(from_dict({**SINGLE, "model": few})).policy.guidance_width == 8
    other = {**SINGLE, "sampler": {"prediction_type": "v_prediction"}, "model": model}
    with pytest.raises(ConfigError, match=r"`sampler.prediction_type` must be 'epsilon'"):
        load_network(from_dict(other))
    with pytest.raises(ConfigError, match="`components` must be of the kind"):
        backbone_of(from_dict({**SINGLE, "model": model}), tiny_components(seed=0))


def test_components_of_the_other_kind_are_refused():
    """Either way."""
    flow, views = tiny_flow_components(seed=0), tiny_components(seed=0)

    assert isinstance(backbone_of(from_dict(FLOW), flow), FlowBackbone)
    assert isinstance(backbone_of(config_of(), views), MultiviewBackbone)
    for config, components in ((from_dict(FLOW), views), (config_of(), flow)):
        with pytest.raises(ConfigError, match="`components` must be of the kind"):
            backbone_of(config, components)


def test_the_shipped_weights_are_found_by_name_and_others_by_path():
    """`~` is the home folder."""
    assert weights_folder("tiny").name == "tiny_world"
    assert weights_folder("some/folder") == Path("some/folder")
    assert weights_folder("~/w") == Path.home() / "w"
