"""`finite`: what is sampled or scored ends with the name of the part that went wrong."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mvczigal_ref.cli import main
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.evaluation.evaluate import sample_objects
from mvczigal_ref.models.finite import AUTOENCODER_IMAGE, NETWORK_LATENT, require_finite
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.pipeline import TextToMultiviewPipeline
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.system import build_system
from mvczigal_ref.system.scorers import no_scorers
from tests.unit.reward import tiny_files


def broken(part, value):
    """Tiny networks of which one has a weight that is not finite, or overflows."""
    components = tiny_components(seed=0)
    network = components.vae.decoder if part == "vae" else components.policy.unet
    with torch.no_grad():
        network.conv_out.bias[0] = value
    return components


# -- oracle ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "object_", "view"), [((0, 0, 0), 4, 0), ((1, 2, 3), 9, 2), ((1, 0, 4), 9, 0)]
)
def test_the_first_place_is_named(index, object_, view):
    """By the object's own index."""
    values = torch.zeros(2, 3, 5)
    require_finite("x", values, [4, 9])
    values[index] = float("-inf")
    with pytest.raises(NonFiniteError) as caught:
        require_finite("x", values, [4, 9])
    error = caught.value
    assert (error.what, error.object, error.view, error.value) == ("x", object_, view, -torch.inf)


def test_a_joint_score_has_no_view():
    """One number an object."""
    with pytest.raises(NonFiniteError, match=r"`joint` must be finite; got nan at object 1\."):
        require_finite("joint", torch.tensor([0.0, torch.nan]), range(2))


# -- laws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("part", "what"), [("unet", NETWORK_LATENT), ("vae", AUTOENCODER_IMAGE)])
def test_sampling_names_the_part(part, what, value):
    """By the pipeline and by what the command line calls; an infinite colour is not white."""
    components = broken(part, value)
    config, device = TrainConfig(), torch.device("cpu")
    system = build_system(config, device=device, components=components, scorers=no_scorers())
    given = SeededNoise(seed=0, iteration="mine", objects=[3], shape=system.latent_shape)
    with pytest.raises(NonFiniteError, match=rf"`{what}` .* at object 3, view 0"):
        sample_objects(system, ["a red ball"], given, config=config)
    pipeline = TextToMultiviewPipeline.from_components(broken(part, value), image_size=32)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(NonFiniteError, match=rf"`{what}` .* at object 0, view 0"):
        pipeline("a can", num_inference_steps=1, output_type="pt")


def test_overflow_in_half_precision_is_named():
    """An autoencoder that says that it does not overflow, and does."""
    components = broken("vae", 0.0)
    with torch.no_grad():
        components.vae.decoder.conv_out.weight.mul_(1e6)
    components = components.to(dtype=torch.float16)
    components.vae.register_to_config(force_upcast=False)
    images = components.decode(torch.randn(1, 2, 4, 4, 4, generator=torch.Generator()))
    assert images.isnan().any()


def test_a_score_that_is_none_is_not_told(tmp_path, capsys):
    """Neither printed nor written."""
    tiny_files.write_clip(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["text_projection.weight"][:] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    picture, told = tmp_path / "picture.png", tmp_path / "told.json"
    Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(picture)
    place = str(tmp_path)
    words = ["--reward", "clip_score", "--weights", place, "--tokenizer", place]
    assert main(["score", str(picture), "--prompt", "a", *words, "--json", str(told)]) == 2
    assert "`clip_score` must be finite; got nan at object 0, view 0" in capsys.readouterr().err
    assert not told.exists()
