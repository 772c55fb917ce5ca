"""Strict loading: laws, errors."""

import pytest
import torch

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.loading import load_strict, stored

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
