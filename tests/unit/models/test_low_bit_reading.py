"""`models.low_bit_reading`: weights that diffusers rounds as it reads them."""

import importlib.util

import pytest
import torch
from torch import nn

from mvczigal_ref.config import load_config
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models import low_bit_reading, low_bit_weights
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.loading import cast_network, load_model
from mvczigal_ref.models.low_bit_reading import FewBits
from mvczigal_ref.models.low_bit_weights import LOW_BITS, low_bit_saving
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.models.unet.tiny import tiny_unet_components
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system import build_system
from mvczigal_ref.system.networks import load_network
from mvczigal_ref.system.scorers import no_scorers

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(
        importlib.util.find_spec("torchao") is None, reason="needs the extra `lowbit`"
    ),
]
CPU = torch.device("cpu")
WIDE = {"channels": (64, 128, 128), "num_heads": (2, 4, 4)}
NETWORKS = {
    "multiview": (lambda: tiny_components(seed=0, **WIDE), "tiny"),
    "flow": (lambda: tiny_flow_components(seed=0), "tiny_mv_grpo_vlm"),
    "unet": (lambda: tiny_unet_components("sdxl", seed=0, channels=(64, 128)), "sdxl_grpo"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save each tiny network once, in the files that users have."""
    places = {}
    for name, (build, _) in NETWORKS.items():
        places[name] = tmp_path_factory.mktemp(name)
        build().save(places[name])
    return places


def configuration(name, folder, kind, dtype):
    """Train a LoRA on a folder's network."""
    changes = {"weights": folder, "frozen_weights": kind, "dtype": dtype, "network": name}
    words = [f"model.{key}={value}" for key, value in changes.items()]
    return load_config(recipe(NETWORKS[name][1]), overrides=words)


def stored(network):
    """List the tensors of every weight of few bits, by the layer's name before it had a LoRA."""
    tensors = {}
    for name, module in network.named_modules():
        if LOW_BITS in module.__dict__:
            weight = module.weight.data
            inner = [getattr(weight, part) for part in weight.__tensor_flatten__()[0]]
            tensors[name] = [value for value in inner if isinstance(value, torch.Tensor)]
    return tensors


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_weights_are_those_that_are_rounded_at_their_place(folders, monkeypatch, name, kind, dtype):
    """To the bit and in the same layers, row attention among them; the LoRA is plain."""
    config = configuration(name, folders[name], kind, dtype)
    placed = build_system(config, device=CPU, components=load_network(config), scorers=no_scorers())
    rounded = []
    whole = low_bit_weights.low_bit_layers

    def layers(network, kind):
        for layer in whole(network, kind):
            rounded.append(layer.weight.device.type)
            yield layer

    for module in (low_bit_reading, low_bit_weights):
        monkeypatch.setattr(module, "low_bit_layers", layers)
    read = build_system(config, device=CPU, scorers=no_scorers())
    ours, theirs = stored(read.backbone.network), stored(placed.backbone.network)

    assert list(ours) == list(theirs)
    assert len(ours) > 10
    for layer, tensors in ours.items():
        assert all(map(torch.equal, tensors, theirs[layer]))
    # Only row attention was ever whole: others are counted by their shapes, before the reading.
    placed_later = rounded.count("cpu")
    assert placed_later == sum("_mv." in layer for layer in ours)
    assert rounded.count("meta") == len(ours) - placed_later
    assert {p.dtype for p in read.trained().values()} == {torch.float32}
    expected = {p.dtype for p in placed.backbone.network.parameters()}
    assert {p.dtype for p in read.backbone.network.parameters()} == expected
    adapted = [layer.removesuffix(".base_layer") for layer in ours if ".base_layer" in layer]
    for layer in (adapted[0], adapted[-1]):
        width = read.backbone.network.get_submodule(layer).in_features
        tokens = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
        tokens = tokens.to(torch.bfloat16 if dtype == "bf16" else torch.float32)
        with torch.no_grad():
            sampled = read.backbone.network.get_submodule(layer)(tokens)
        replayed = read.backbone.network.get_submodule(layer)(tokens.requires_grad_())
        assert torch.equal(sampled, replayed)
        assert torch.equal(sampled, placed.backbone.network.get_submodule(layer)(tokens))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_shards_are_read_like_one_file(tmp_path, kind):
    """As a network of many gigabytes lies on the disk."""
    network = tiny_flow_components(seed=0).policy.transformer
    weights = []
    for size in ("10GB", "200KB"):
        network.save_pretrained(tmp_path / size, max_shard_size=size)
        few = FewBits(kind, CPU)
        loaded = load_model(type(network), tmp_path / size, dtype=torch.bfloat16, few_bits=few)
        weights.append(stored(loaded))
    assert len(list((tmp_path / "200KB").iterdir())) > 10
    assert weights[0]
    assert weights[0].keys() == weights[1].keys()
    for layer, tensors in weights[0].items():
        assert all(map(torch.equal, tensors, weights[1][layer]))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_what_is_read_takes_the_bytes_that_the_plan_counts(tmp_path, kind):
    """The whole network less what its shapes say is spared."""
    network = tiny_flow_components(seed=0).policy.transformer.bfloat16().requires_grad_(False)
    network.save_pretrained(tmp_path)
    whole = sum(p.nbytes for p in network.parameters())
    few = FewBits(kind, CPU)
    loaded = load_model(type(network), tmp_path, dtype=torch.bfloat16, few_bits=few)
    tensors = stored(loaded)
    plain = [p for p in loaded.parameters() if type(p.data) is torch.Tensor]
    size = sum(t.nbytes for t in [*plain, *(t for each in tensors.values() for t in each)])

    # Beside each weight's own numbers there is a table of 16 for nf4, and a mean.
    more = 34 * len(tensors) if kind == "nf4" else 0
    assert whole - size == low_bit_saving(network, kind) - more


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_cast_leaves_weights_of_few_bits(tmp_path, kind):
    """To the bit: torch's own would break them."""
    network = tiny_flow_components(seed=0).policy.transformer
    network.save_pretrained(tmp_path)
    few = FewBits(kind, CPU)
    loaded = load_model(type(network), tmp_path, dtype=torch.float32, few_bits=few)
    before = {name: [t.clone() for t in each] for name, each in stored(loaded).items()}
    cast_network(loaded, CPU, torch.bfloat16)

    assert stored(loaded).keys() == before.keys()
    assert before
    for layer, tensors in stored(loaded).items():
        assert all(map(torch.equal, tensors, before[layer]))
    others = {p.dtype for p in loaded.parameters() if type(p.data) is torch.Tensor}
    assert others == {torch.bfloat16}


def test_a_network_of_small_layers_is_read_whole(tmp_path):
    """There is nothing to round."""
    network = tiny_flow_components(seed=0, num_heads=1, head_width=16).policy.transformer
    network.save_pretrained(tmp_path)
    loaded = load_model(type(network), tmp_path, dtype=torch.float32, few_bits=FewBits("nf4", CPU))

    assert stored(loaded) == {}
    assert all(
        type(m.weight.data) is torch.Tensor for m in loaded.modules() if type(m) is nn.Linear
    )


# -- errors ------------------------------------------------------------------------------


def test_a_damaged_file_is_named_as_ever(tmp_path):
    """By the tensor that does not fit, not by the rounding."""
    network = tiny_flow_components(seed=0).policy.transformer
    name = "transformer_blocks.0.attn.to_q"
    network.get_submodule(name.rpartition(".")[0]).to_q = nn.Linear(128, 64)
    network.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{name}\.weight of shape \(64, 128\), not"):
        load_model(type(network), tmp_path, dtype=torch.float32, few_bits=FewBits("int8", CPU))
