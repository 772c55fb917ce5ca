"""The merged low-rank product: oracle, gradients, both forms of them, laws of the choice."""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.nn.functional import linear

from mvczigal_ref.models import merged_linear as module
from mvczigal_ref.models.merged_linear import merge, merged_linear, product
from tests.compare import FP64, assert_equal_to
from tests.unit.models.small import randn

SCALE = 0.5
HAS_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN")


def maps(parts, *, rank=2, into=6, out=5, dtype=torch.float64):
    """Draw stacked weights, biases and factors."""
    weight = randn(parts * out, into, seed=1).to(dtype)
    bias = randn(parts * out, seed=2).to(dtype)
    down = [randn(rank, into, seed=10 + k).to(dtype).requires_grad_() for k in range(parts)]
    up = [randn(out, rank, seed=20 + k).to(dtype).requires_grad_() for k in range(parts)]
    return weight, bias, down, up


@pytest.fixture(params=[False, pytest.param(True, marks=HAS_ONEDNN)], ids=["MKL", "oneDNN"])
def onednn(request, monkeypatch):
    """Choose as on a CPU with AVX-512, or without."""
    monkeypatch.setattr(module, "_ONEDNN", request.param)
    return request.param


def beside(tokens, weight, bias, down, up):
    """Write the low-rank update out beside each weight, as PEFT does."""
    outputs = [
        linear(tokens, w, b) + SCALE * linear(linear(tokens, a), u)
        for w, b, a, u in zip(weight.chunk(len(down)), bias.chunk(len(down)), down, up, strict=True)
    ]
    return torch.cat(outputs, -1)


# -- oracle -------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("thin", [0, 100], ids=["thin products", "whole gradient"])
@pytest.mark.parametrize("size", [0, 1000], ids=["summed in each pass", "summed once"])
def test_value_and_gradients_equal_the_form_beside_the_weight(parts, rank, thin, size, monkeypatch):
    """Both ways to differentiate, of one map and of three, and both times to add."""
    monkeypatch.setattr(module, "_THIN", thin)
    monkeypatch.setattr(module, "_KEPT", size)
    weight, bias, down, up = maps(parts, rank=rank)
    tokens = randn(2, 4, 6, seed=0).double().requires_grad_()
    output, expected = (
        f(tokens, weight, bias, down, up)
        for f in (lambda *given: merged_linear(*given, scale=SCALE), beside)
    )
    assert_equal_to(output, expected, 10 * FP64, axes=3)
    towards = randn(*output.shape, seed=3).double()
    leaves = [tokens, *down, *up]
    ours = torch.autograd.grad(output, leaves, towards)
    for gradient, plain in zip(ours, torch.autograd.grad(expected, leaves, towards), strict=True):
        torch.testing.assert_close(gradient, plain, rtol=1e-12, atol=1e-12)


def test_without_a_low_rank_update_it_is_the_linear_map():
    """No factors."""
    weight, bias, _, _ = maps(1)
    tokens = randn(4, 6, seed=0).double()
    assert torch.equal(merged_linear(tokens, weight, bias), linear(tokens, weight, bias))


# -- laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("into", [6, 512], ids=["small", "large enough for oneDNN"])
def test_values_are_the_same_with_and_without_a_graph(parts, into, onednn):
    """Replay has the bits of sampling."""
    given = maps(parts, into=into, out=256, dtype=torch.float32)
    tokens = randn(2, 8, into, seed=0).float()
    with torch.no_grad():
        sampled = merged_linear(tokens, *given, scale=SCALE)
    assert torch.equal(merged_linear(tokens, *given, scale=SCALE), sampled)


@pytest.mark.parametrize("size", [0, 1000], ids=["large", "small"])
def test_the_graph_keeps_no_sum_of_its_own(size, monkeypatch):
    """A large one would be the largest tensor of the graph; a small one is that of every call."""
    monkeypatch.setattr(module, "_KEPT", size)
    weight, bias, down, up = maps(2)
    tokens = randn(4, 6, seed=0).double()
    update = merge(weight, down, up, scale=SCALE)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        merged_linear(tokens, update.weight, bias, down, up, update=update)
    assert (update.weight is weight) == (size == 0)
    places = {t.data_ptr() for t in (tokens, update.weight, update.down, update.up)}
    assert {t.data_ptr() for t in saved} == places


@pytest.mark.parametrize("shape", [(3, 7), (2, 300, 512)])
def test_product_is_the_linear_map_with_either_library(shape, onednn):
    """Weights in either layout, with and without a bias."""
    tokens, weight = randn(*shape, seed=0).float(), randn(64, shape[-1], seed=1).float()
    bias = randn(64, seed=2).float()
    expected = linear(tokens.double(), weight.double(), bias.double())
    for laid in (weight, weight.t().contiguous().t()):
        torch.testing.assert_close(
            product(tokens, laid, bias).double(), expected, rtol=1e-5, atol=1e-4
        )
        if not onednn:
            assert torch.equal(product(tokens, laid, bias), linear(tokens, laid, bias))


def test_shapes_inside_layers_are_checked_for_these_tests():
    """Under decorators too; `tests/conftest.py` spares other tests the checks in every layer."""
    with pytest.raises(TypeCheckError, match="tokens"):
        product(torch.ones(2, 3), torch.ones(4, 2))
    with pytest.raises(TypeCheckError, match="down"):
        merge(torch.ones(4, 3), [torch.ones(1, 2)], [torch.ones(4, 1)], scale=1.0)
