"""Tensors of several processes' files are read as one process would have written them."""

import torch
from safetensors.torch import save_file

from mvczigal_ref.training.tensor_groups import SavedParts, read_groups, write_groups


def test_parts_are_joined_in_the_order_of_the_processes(tmp_path):
    """Along the first axis, uneven and empty ones; what the first holds alone is whole."""
    weight, bias = torch.arange(15.0).view(5, 3), torch.tensor([7.0])
    for rank, part in enumerate(weight.tensor_split([2, 4])):
        own = {"step": torch.tensor(4.0), "alone": weight.clone()} if rank == 0 else {}
        cut = {"weight": part.contiguous(), "bias": bias[rank:]}
        save_file({**cut, **own}, tmp_path / f"policy.{rank:05d}-of-00003.safetensors")
    write_groups(tmp_path, {"old": {"weight": weight}})

    groups = read_groups(tmp_path, [*(path.name for path in tmp_path.iterdir()), "state.json"])
    read = groups["policy"]
    assert isinstance(read, SavedParts)
    assert set(groups) == {"policy", "old"}
    assert set(read) == {"weight", "bias", "step", "alone"}
    assert len(read) == 4
    assert torch.equal(read["weight"], weight)
    assert torch.equal(read["bias"], bias)
    assert torch.equal(read["alone"], weight)
    assert read["step"] == 4.0
    assert torch.equal(groups["old"]["weight"], weight)
    assert "absent" not in read
