"""A person's own SDXL: its networks, and what they predict, through every loader."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from mvczigal_ref.config import load_config
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.models.hub import load_sdxl_components
from mvczigal_ref.models.loading import load_model
from mvczigal_ref.models.plain_pipelines import stored_prediction
from mvczigal_ref.models.published import LCM_UNET, SdxlSources
from mvczigal_ref.pipeline import TextToMultiviewPipeline
from mvczigal_ref.recipes import recipe
from mvczigal_ref.reward.convert import convert_checkpoint
from mvczigal_ref.system import networks
from mvczigal_ref.system.networks import load_network
from tests.unit.models.published import write_cache, write_published

SETTINGS = {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "num_train_timesteps": 1000,
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Published parts, as folders and as the hub's cache."""
    root = tmp_path_factory.mktemp("published")
    sources = write_published(root)
    return sources, write_cache(sources, root / "cache")


@pytest.fixture
def mine(here, tmp_path):
    """A fine-tuned SDXL, saved whole: another UNet, the base's scheduler predicting v."""
    sources, _ = here
    folder = tmp_path / "my-sdxl"
    shutil.copytree(sources.base, folder)
    for name in ("unet", "vae"):
        shutil.copytree(getattr(sources, name), folder / name)
        path = folder / name / "diffusion_pytorch_model.safetensors"
        tuned = {key: 1.5 * value for key, value in load_file(path).items()}
        save_file(tuned, path, metadata={"format": "pt"})
    (folder / "scheduler").mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SETTINGS))
    return folder


def load(here, source, **options):
    return TextToMultiviewPipeline.from_pretrained(
        source, cache_dir=here[1].cache, local_files_only=True, **options
    )


def is_tuned(pipeline, folder):
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return torch.equal(pipeline.unet.conv_in.weight, stored["conv_in.weight"])


def configuration(mine, prediction):
    sources = {"base": str(mine), "unet": str(mine), "vae": str(mine)}
    return load_config(
        recipe("lcm_sdxl_simple"),
        overrides=[f"model.sources={json.dumps(sources)}", f"sampler.prediction_type={prediction}"],
    )


# -- oracle: the files themselves -----------------------------------------------------------


def test_a_folder_brings_its_own_networks(here, mine):
    """UNet, autoencoder and prediction; the published adapter goes with them."""
    pipeline = load(here, mine)
    assert is_tuned(pipeline, mine)
    stored = load_file(mine / "vae" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(pipeline.vae.post_quant_conv.weight, stored["post_quant_conv.weight"])
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert isinstance(pipeline.scheduler, LCMScheduler)


def test_another_unet_brings_its_prediction(here, mine):
    """The base is SDXL's; the UNet is named, and its own pipeline says what it predicts."""
    pipeline = load(here, here[1].base, unet=str(mine))
    assert is_tuned(pipeline, mine)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


# -- laws -----------------------------------------------------------------------------------


def test_a_given_scheduler_goes_first(here, mine):
    """Whoever gives one answers for it."""
    given = DDIMScheduler(clip_sample=False)
    assert load(here, mine, scheduler=given).scheduler is given


def test_what_is_taken_instead_is_told(here):
    """A folder of text encoders alone."""
    with pytest.warns(UserWarning, match=f"holds no .*{LCM_UNET}|fp16-fix is taken") as told:
        pipeline = load(here, here[0].base)
    assert len(told) == 2
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_a_base_named_alone_is_told(mine, monkeypatch):
    """Of a recipe: it takes the published UNet and autoencoder all the same, and says so."""

    def stop(sources, **_):
        raise CheckpointError(sources.unet)

    monkeypatch.setattr(networks, "load_sdxl_components", stop)
    config = load_config(recipe("lcm_sdxl_simple"), overrides=[f"model.sources={{base: '{mine}'}}"])
    with (
        pytest.warns(UserWarning, match=r"not the one in .*my-sdxl") as told,
        pytest.raises(CheckpointError, match=LCM_UNET),
    ):
        load_network(config)
    assert [str(w.message).split(" for its ")[1][:3] for w in told] == ["une", "vae"]


def test_published_places_are_not_asked(here):
    """Nothing is looked up where everything is known."""
    assert stored_prediction(LCM_UNET, SdxlSources(local_files_only=True)) is None


# -- errors ---------------------------------------------------------------------------------


def test_a_recipe_must_say_the_same(mine):
    """Before anything is loaded: sampling and training read the recipe."""
    with pytest.raises(ConfigError, match=r"`sampler\.prediction_type` must be 'v_prediction'"):
        load_network(configuration(mine, "epsilon"))


@pytest.mark.parametrize(
    "change",
    [
        {"rescale_betas_zero_snr": True},
        {"beta_schedule": "linear"},
        {"trained_betas": [0.1]},
        {"num_train_timesteps": 500},
        {"prediction_type": "flow"},
    ],
    ids=str,
)
def test_another_noise_is_refused_by_name(here, mine, change):
    """A network trained on other noise than SDXL's would be sampled on SDXL's."""
    path = mine / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(SETTINGS | change))
    (name,) = change
    with pytest.raises(CheckpointError, match=rf"scheduler_config\.json` must have .*{name}"):
        load(here, mine)


def test_a_pickle_is_refused_with_the_command(here, mine):
    """In place of a part's tensors, of a file of its own, and as the whole."""
    path = mine / "unet" / "diffusion_pytorch_model.safetensors"
    pickle = path.with_suffix(".bin")
    torch.save(load_file(path), pickle)
    path.unlink()
    command = rf"mvczigal convert-reward {pickle} {path}`"
    for call in (
        lambda: load(here, mine),
        lambda: load_sdxl_components(SdxlSources(base=str(mine), unet=str(mine / "unet"))),
        lambda: load_model(UNet2DConditionModel, mine / "unet", dtype=torch.float32),
        lambda: load(here, pickle),
        lambda: load(here, here[0].base, adapter=str(pickle), unet=here[0].unet, vae=here[0].vae),
    ):
        with pytest.raises(CheckpointError, match=command):
            call()
    convert_checkpoint(pickle)
    assert is_tuned(load(here, mine), mine)


def test_one_file_is_refused_with_the_remedy(here, mine, tmp_path):
    """A single-file checkpoint, by every loader; one of a folder asks for the folder."""
    with pytest.raises(CheckpointError, match=r"a safetensors file, .* Give the folder that"):
        load(here, mine / "unet" / "diffusion_pytorch_model.safetensors")
    file = str(tmp_path / "sd_xl_base_1.0.safetensors")
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, file)
    for call in (
        lambda: load(here, file),
        lambda: load_sdxl_components(SdxlSources(base=file)),
        lambda: load_network(load_config(recipe("tiny"), overrides=[f"model.weights={file}"])),
    ):
        with pytest.raises(CheckpointError, match=r"which is a safetensors .* P\.from_single_file"):
            call()
    for name, change in (
        ("model.weights", ["model.weights={file}"]),
        ("model.sources.unet", ["model.weights=sdxl", "model.sources={{unet: {file}}}"]),
        ("model.sources.base", ["model.weights=sdxl", "model.sources={{base: {file}}}"]),
    ):
        changes = [word.format(file=file) for word in change]
        with pytest.raises(CheckpointError, match=f"`{name}` must be a folder or hub id"):
            load_network(load_config(recipe("tiny"), overrides=changes))


def test_one_pickle_is_refused_with_both_steps(here, tmp_path):
    """First its tensors without the pickle, and then the folder."""
    file = tmp_path / "sd_xl_base_1.0.ckpt"
    torch.save({"state_dict": {"model.diffusion_model.out.2.bias": torch.zeros(4)}}, file)
    step = r"First convert it once by `mvczigal convert-reward .*ckpt .*1\.0\.safetensors`\."
    with pytest.raises(CheckpointError, match=rf"{step} .*from_single_file\('.*1\.0\.safetensors"):
        load(here, file)
