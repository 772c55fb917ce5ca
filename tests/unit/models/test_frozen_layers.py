"""`frozen_layers`: torch's own layers are the oracle, to the bit; graphs keep what they must."""

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import nn
from torch.nn.functional import silu

from mvczigal_ref.models.frozen_layers import activated_norm
from mvczigal_ref.models.projections import install_merged_linears
from tests.unit.models.quick import outcome, same
from tests.unit.models.quick import quickened as quick_form
from tests.unit.models.small import randn

LAYOUTS = [torch.contiguous_format, torch.channels_last]
CONVOLUTIONS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "halving": {"kernel_size": 3, "stride": 2, "padding": 1},
    "by groups": {"kernel_size": 3, "groups": 2},
    "dilated": {"kernel_size": 3, "dilation": 2, "bias": False},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "same": {"kernel_size": 3, "padding": "same"},
}


@pytest.fixture(autouse=True)
def own_generator():
    """Draw weights without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def quickened(layer):
    """Copy a layer, and let the copy run in the quick form."""
    quick = quick_form(layer)
    assert type(quick) is not type(layer)
    return quick


def saved(layer, given):
    """Give the memory that the graph of a call keeps, weights left out."""
    weights = {p.data_ptr() for p in layer.parameters()}
    places = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: places.update({t.data_ptr(): t.numel()}) or t, lambda t: t
    ):
        layer(given)
    return sum(size for place, size in places.items() if place not in weights)


# -- oracle -------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_has_torchs_bits(options, layout, frozen):
    """Value and gradients; where weights train, they get theirs."""
    layer = nn.Conv2d(8, 16, **options).requires_grad_(requires_grad=not frozen)
    layer = layer.to(memory_format=layout)
    given = randn(2, 8, 9, 8, seed=1).float().contiguous(memory_format=layout)
    ours, theirs = (outcome(each, given) for each in (quickened(layer), layer))
    assert same(ours, theirs)
    assert len(ours) == (2 if frozen else 2 + len(list(layer.parameters())))
    with torch.no_grad():
        assert torch.equal(quickened(layer)(given), theirs[0])


def test_a_convolution_of_one_pixel_is_a_linear_map_where_channels_are_last():
    """Value and gradient to 1e-5 of the largest, in the same layout."""
    layer = nn.Conv2d(8, 16, 1).requires_grad_(requires_grad=False)
    given = randn(2, 8, 5, 4, seed=1).float().contiguous(memory_format=torch.channels_last)
    ours, theirs = (outcome(each, given) for each in (quickened(layer), layer))
    for value, other in zip(ours, theirs, strict=True):
        assert (value - other).abs().max() <= 1e-5 * other.abs().max()
        assert value.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_gated_linear_unit_has_diffusers_bits(frozen):
    """Value and gradients."""
    layer = GEGLU(6, 10).requires_grad_(requires_grad=not frozen)
    given = randn(2, 3, 6, seed=1).float()
    assert same(outcome(quickened(layer), given), outcome(layer, given))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_activated_norm_has_torchs_bits(layout, frozen):
    """Value and gradients, with weights that are no ones."""
    norm = nn.GroupNorm(4, 8)
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data = randn(8, seed=seed).float()
    norm.requires_grad_(requires_grad=not frozen)
    given = randn(2, 8, 5, 4, seed=3).float().contiguous(memory_format=layout)
    results = []
    for apply in (lambda x: activated_norm(norm, x), lambda x: silu(norm(x))):
        leaf = given.clone().requires_grad_()
        norm.zero_grad()
        output = apply(leaf)
        output.square().sum().backward()
        results.append([output, leaf.grad, *(p.grad for p in norm.parameters() if not frozen)])
    assert same(*results)
    with torch.no_grad():
        assert torch.equal(activated_norm(norm, given), results[0][0])


# -- laws ---------------------------------------------------------------------------------


def test_graphs_keep_what_their_backward_passes_read():
    """A convolution nothing, a gated unit its projection, a norm its input and statistics."""
    conv = quickened(nn.Conv2d(4, 8, 3).requires_grad_(requires_grad=False))
    maps = randn(2, 4, 6, 6, seed=1).float().requires_grad_()
    assert saved(conv, maps) == 0
    unit = quickened(GEGLU(6, 10).requires_grad_(requires_grad=False))
    install_merged_linears(unit)
    assert saved(unit, randn(3, 6, seed=1).float().requires_grad_()) == 3 * 20
    norm = nn.GroupNorm(2, 4).requires_grad_(requires_grad=False)
    block = nn.Sequential(norm)
    block.forward = lambda x: activated_norm(norm, x)
    assert saved(block, maps) == maps.numel() + 2 * 2 * 2


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_forward_hook"])
def test_a_norm_with_a_hook_is_called(register):
    """And its hook hears of it."""
    norm, heard = nn.GroupNorm(1, 2).double().requires_grad_(False), []
    getattr(norm, register)(lambda *_: heard.append(True))
    activated_norm(norm, randn(1, 2, 3, 3).requires_grad_()).sum().backward()
    assert heard == [True]
