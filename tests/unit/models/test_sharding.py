"""`models.sharding`: memory. Whole runs in parts are in `tests/integration/test_sharding.py`."""

import pytest
import torch
import torch.distributed.fsdp as engine
from torch import distributed

from mvczigal_ref.distributed import World
from mvczigal_ref.models.sharding import gathered, is_sharded, shard_network
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.models.unet.tiny import tiny_unet_components
from mvczigal_ref.preflight.shards import block_bytes


@pytest.fixture
def group(tmp_path):
    """Give the process to itself as a group."""
    store = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


NETWORKS = {
    "multiview": lambda: tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1)),
    "unet": lambda: tiny_unet_components("sdxl", seed=0),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.usefixtures("group")
def test_one_block_at_a_time_is_whole_in_another_type(kind, monkeypatch):
    """In bytes, whenever a block is cut: of a UNet in fp16 that is used in fp32."""
    network, sizes, cut = NETWORKS[kind]().policy.unet, [], engine.fully_shard
    largest = block_bytes(network, whole=[])
    total = sum(p.nbytes for p in network.parameters())
    network.to(torch.float16)

    def counted(module, **how):
        whole = [p for p in network.parameters() if not is_sharded(p)]
        sizes.append(sum(p.nbytes for p in whole if p.dtype == torch.float32))
        return cut(module, **how)

    monkeypatch.setattr(engine, "fully_shard", counted)
    shard_network(network, World(), dtype=torch.float32)

    assert len(sizes) > 5
    assert max(sizes) == largest < total / 4
    assert all(is_sharded(p) and p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.usefixtures("group")
def test_an_export_holds_one_whole_copy():
    """A state dict within `gathered` is of the tensors that were gathered, however often."""
    network = NETWORKS["unet"]().policy.unet
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    shard_network(network, World())
    with gathered(network):
        one, other = network.state_dict(), network.state_dict()

    assert one.keys() == expected.keys()
    assert all(torch.equal(one[name], value) for name, value in expected.items())
    assert [t.data_ptr() for t in one.values()] == [t.data_ptr() for t in other.values()]
    assert all(is_sharded(value) for value in network.state_dict().values())
