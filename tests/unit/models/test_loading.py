"""Strict loading: laws, errors."""

import pytest
import torch
from safetensors.torch import save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models import loading
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.latents import latent_statistics, shifted_statistics
from mvczigal_ref.models.loading import check_folder, load_strict, stored
from mvczigal_ref.models.low_bit_reading import FewBits
from mvczigal_ref.models.weight_files import check_safetensors
from tests.unit.models.small import fresh_components

# -- laws --------------------------------------------------------------------------------


def test_values_are_copied_into_the_target_s_type():
    """The target keeps its memory and its type."""
    target = {"a": torch.zeros(2, dtype=torch.float32)}
    before = target["a"]
    load_strict(target, {"a": torch.tensor([1.5, 2.5], dtype=torch.float64)}, source="file")

    assert before.tolist() == [1.5, 2.5]
    assert before.dtype == torch.float32


def test_parameters_are_filled_without_a_graph():
    """A leaf that requires a gradient may be overwritten."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    load_strict({"a": parameter}, {"a": torch.ones(2, requires_grad=True)}, source="file")

    assert parameter.tolist() == [1.0, 1.0]
    assert parameter.is_leaf


def test_only_floating_tensors_are_cast_for_storage():
    """A count stays a count; what is written is contiguous and detached."""
    values = {
        "weight": torch.rand(2, 3, requires_grad=True).T,
        "count": torch.tensor([3]),
    }
    half = stored(values, torch.float16)

    assert half["weight"].dtype == torch.float16
    assert half["weight"].is_contiguous()
    assert not half["weight"].requires_grad
    assert half["count"].dtype == torch.int64
    assert stored(values, None)["weight"].dtype == torch.float32


# -- errors ------------------------------------------------------------------------------


def test_names_every_fault_and_changes_nothing():
    """One message says all that is wrong."""
    target = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(1)}
    values = {"b": torch.ones(3), "c": torch.ones(1), "d": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        load_strict(target, values, source="some/file")

    assert str(caught.value) == (
        "`some/file` must hold exactly the network's tensors: missing a; unexpected d; "
        "b of shape (3,), not (2,)."
    )
    assert target["c"].item() == 0.0


def test_quantised_weights_are_no_numbers(tmp_path):
    """In a network's file, before it is read, and among tensors that are there."""
    with pytest.raises(CheckpointError, match=r"a of torch\.int8, not floating-point"):
        load_strict({"a": torch.zeros(2)}, {"a": torch.ones(2, dtype=torch.int8)}, source="file")
    path = tmp_path / "model.safetensors"
    counted = {"a": torch.ones(2), "position_ids": torch.arange(2)}
    save_file(counted, path)
    check_safetensors(path, floats=True)
    save_file(counted | {"a": torch.ones(2, dtype=torch.int8)}, path)
    with pytest.raises(CheckpointError, match="must hold floating-point weights; got a of I8"):
        check_safetensors(path, floats=True)


def test_a_config_that_names_no_class_is_none(tmp_path):
    """A server's answer is JSON, too."""
    (tmp_path / "config.json").write_text('{"error": "Access to model X is restricted"}')
    with pytest.raises(CheckpointError, match=r"config\.json` must name its model's class; got"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"scaling_factor": 0}, {"scaling_factor": None}, {"scaling_factor": "0.13"},
        {"scaling_factor": -1}, {"latents_mean": [0.0] * 3}, {"latents_std": [0.0] * 4},
        {"latents_std": "a"}, {"latents_mean": [float("nan")] * 4},
        {"latents_mean": None, "latents_std": [2.0] * 4}, {"latents_std": None},
    ],
)  # fmt: skip
def test_statistics_that_are_none_are_refused(change):
    """Of an autoencoder of 4 channels."""
    vae = fresh_components().vae
    vae.register_to_config(**{"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4} | change)
    for read in (latent_statistics, shifted_statistics):
        if "scaling_factor" in change and read is shifted_statistics:
            continue  # the deviation holds it
        with pytest.raises(CheckpointError, match="must have a positive scaling_factor"):
            read(vae)


def test_a_failed_rounding_is_told(tmp_path, monkeypatch):
    """The network is not read whole in its place, which may not fit."""
    network = tiny_flow_components(seed=0, num_heads=1, head_width=16).policy.transformer
    network.save_pretrained(tmp_path)
    kind = type(network)
    right = kind.from_pretrained

    def read(*given, quantization_config=None, **options):
        if quantization_config is not None:
            raise torch.OutOfMemoryError("no memory is left")
        return right(*given, **options)

    monkeypatch.setattr(kind, "from_pretrained", read)
    monkeypatch.setattr(loading, "low_bit_reading", lambda *_: {"quantization_config": "int8"})
    few = FewBits("int8", torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"OutOfMemoryError: no memory is left\.$"):
        loading.load_model(kind, tmp_path, dtype=torch.float32, few_bits=few)
