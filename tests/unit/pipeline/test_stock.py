"""`stock` and `stock_files`: what stock diffusers makes of a saved folder; errors."""

import shutil
import sys
import warnings

import pytest
import torch
from diffusers import DiffusionPipeline, T2IAdapter
from diffusers.utils import dynamic_modules_utils
from diffusers.utils import logging as diffusers_log
from transformers.utils import logging as transformers_log

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.lora_files import load_lora
from mvczigal_ref.models.policy_files import save_policy, trained_lora
from mvczigal_ref.pipeline.stock import StockPipeline
from tests.unit.models.test_policy_files import unet_policy
from tests.unit.pipeline.test_text_to_multiview import FEW, build, quiet, seeded

CAN = {"prompt": "a can", **FEW}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save a pipeline; no test changes either."""
    pipeline, folder = build(snr_shift=2.0), tmp_path_factory.mktemp("stock") / "saved"
    with torch.no_grad():  # else row attention begins as a copy of what is in the plain UNet
        for parameter in pipeline.unet.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=seeded(1)))
    pipeline.save_pretrained(folder)
    return folder, pipeline


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load by stock diffusers, whose copies of custom code go into a folder of the test."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def from_folder(folder):
        return DiffusionPipeline.from_pretrained(
            folder, custom_pipeline=str(folder), trust_remote_code=True
        )

    return from_folder


def test_stock_diffusers_loads_a_saved_pipeline_without_a_word(saved, load, capfd):
    """The same images to the bit, cameras and size; no warning, and nothing logged."""
    folder, pipeline = saved
    for library in (diffusers_log, transformers_log):
        library.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stock = quiet(load(folder))
    for library in (diffusers_log, transformers_log):
        library.enable_progress_bar()

    assert capfd.readouterr() == ("", "")
    assert isinstance(stock, StockPipeline)
    found, expected = (p(generator=seeded(), **CAN).images for p in (stock, pipeline))
    # Tensors from a file lie differently in memory, which shows in a product's last bit.
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    assert stock.default_rig == pipeline.default_rig
    assert (stock.config.image_size, stock.config.snr_shift) == (16, 2.0)


def test_the_camera_encoder_is_a_folder_of_its_own(saved):
    """By its class, every value."""
    folder, pipeline = saved
    values = T2IAdapter.from_pretrained(folder / "camera_encoder").state_dict()

    assert all(torch.equal(values[n], v) for n, v in pipeline.camera_encoder.state_dict().items())


def test_what_diffusers_loaded_is_saved_and_loaded_again(saved, load, tmp_path):
    """The second copy paints as the first."""
    first = quiet(load(saved[0]))
    first.save_pretrained(tmp_path / "again")
    found = quiet(load(tmp_path / "again"))(generator=seeded(), **CAN).images

    assert torch.equal(found, first(generator=seeded(), **CAN).images)


def test_without_row_attention_it_is_refused(saved, load, tmp_path):
    """Otherwise it would paint with untrained weights."""
    folder = tmp_path / "saved"
    shutil.copytree(saved[0], folder)
    (folder / "mv_adapter.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"mv_adapter\.safetensors', which is absent"):
        load(folder)


def test_loras_are_named_and_loaded_one_after_the_other_without_a_word(tmp_path, capfd):
    """By the pipeline and by `load_lora`, in turn; each acts until it is switched off."""
    pipeline = build()
    bare = pipeline(generator=seeded(), **CAN).images
    save_policy(trained_lora(unet_policy()), tmp_path / "policy")
    file = tmp_path / "policy" / "pytorch_lora_weights.safetensors"
    for _ in range(2):
        load_lora(pipeline.unet, file)
    for name in ("a", "b"):
        pipeline.load_lora_weights(file, adapter_name=name)
    load_lora(pipeline.unet, file)

    assert pipeline.get_list_adapters() == {"unet": ["default", "a", "b"]}
    assert capfd.readouterr() == ("", "")
    pipeline.set_adapters(["a", "b"], [0.5, 0.5])
    halves = pipeline(generator=seeded(), **CAN).images
    pipeline.set_adapters(["default"])
    torch.testing.assert_close(pipeline(generator=seeded(), **CAN).images, halves)
    assert not torch.allclose(halves, bare, atol=1e-3)
    pipeline.unload_lora_weights()
    assert torch.equal(pipeline(generator=seeded(), **CAN).images, bare)
