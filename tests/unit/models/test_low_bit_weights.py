"""`models.low_bit_weights`: frozen weights of 8 and 4 bits."""

import importlib.util

import pytest
import torch
from torch import nn

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models import low_bit_weights
from mvczigal_ref.models.low_bit_weights import (
    LOW_BITS,
    check_low_bit,
    low_bit_layers,
    low_bit_saving,
    store_low_bit,
)
from mvczigal_ref.models.projections import install_merged_linears, project

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs the extra `lowbit`"
)
# What the package and torch warn of while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KINDS = pytest.mark.parametrize(("kind", "error"), [("int8", 0.01), ("nf4", 0.12)])


def network():
    """Build a large frozen layer, a small one, and one that is trained."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 8), nn.Linear(8, 1024))
    for parameter in layers.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    layers[:2].requires_grad_(requires_grad=False)
    return layers


# -- laws --------------------------------------------------------------------------------


@needs_torchao
@KINDS
def test_products_and_gradients_are_near_those_of_whole_weights(kind, error):
    """Relative to their norm; the gradient reaches what lies below."""
    tokens = torch.randn(16, 128, generator=torch.Generator().manual_seed(1), requires_grad=True)
    layers = network()
    expected = layers[0](tokens)
    (before,) = torch.autograd.grad(expected.square().sum(), tokens)
    assert store_low_bit(layers, kind) == 1
    install_merged_linears(layers)
    found = layers[0](tokens)
    (after,) = torch.autograd.grad(found.square().sum(), tokens)

    assert 0 < (found - expected).norm() < error * expected.norm()
    assert 0 < (after - before).norm() < 3 * error * before.norm()
    assert LOW_BITS not in layers[1].__dict__


@needs_torchao
@KINDS
def test_sampling_and_replay_see_the_same_weight(kind, error):
    """Products without and with gradient are equal to the bit, alone and beside others."""
    tokens = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    layers = network()
    store_low_bit(layers, kind)
    install_merged_linears(layers)
    with torch.no_grad():
        sampled = layers[0](tokens)
    replayed = layers[0](tokens.requires_grad_())
    (side_by_side,) = project(tokens, layers[0], heads=1)

    assert torch.equal(sampled, replayed)
    assert torch.equal(sampled, side_by_side[0])


@needs_torchao
@KINDS
def test_what_is_spared_is_what_torchao_spares(kind, error):
    """Counted before from the shapes alone."""
    layers = network()
    spared, weight = low_bit_saving(layers, kind), layers[0].weight
    store_low_bit(layers, kind)
    names, _ = layers[0].weight.__tensor_flatten__()
    tensors = [getattr(layers[0].weight, name) for name in names]
    stored = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))

    # Beside the weight's own numbers there is one table of 16 for nf4, and a mean.
    assert weight.numel() * 4 - stored == spared - (68 if kind == "nf4" else 0)


def test_trained_and_small_layers_stay_as_they_are():
    """They are few, or change."""
    layers = network()
    assert list(low_bit_layers(layers, "int8")) == [layers[0]]
    layers[0].requires_grad_()
    assert list(low_bit_layers(layers, "nf4")) == []


# -- errors ------------------------------------------------------------------------------


def test_an_absent_package_is_named(monkeypatch):
    """Before anything is loaded."""
    monkeypatch.setattr(low_bit_weights.importlib.util, "find_spec", lambda name: None)
    check_low_bit("stored")
    with pytest.raises(ConfigError, match=r"needs the package torchao.*\.\[lowbit\]"):
        check_low_bit("nf4")
