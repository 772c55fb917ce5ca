"""The pretend device refuses what CUDA refuses and computes what the CPU computes."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.pretend_device import NAME

pytestmark = pytest.mark.usefixtures("device")
SAME = "all tensors to be on the same device"
ELSEWHERE = "indices should be either on cpu or on the same device"


def there(*shape):
    """Give ones on the device."""
    return torch.ones(shape, device=NAME)


# -- laws: where operands may be ---------------------------------------------------------

TOGETHER = {
    "elementwise": lambda: there(2) + torch.ones(2),
    "product": lambda: there(2, 2) @ torch.ones(2, 2),
    "concatenation": lambda: torch.cat([there(2), torch.ones(2)]),
    "stack of numbers": lambda: torch.stack([there().sum(), torch.tensor(1.0)]),
    "convolution": lambda: torch.conv1d(there(1, 1, 4), torch.ones(1, 1, 2)),
    "embedding": lambda: torch.embedding(torch.ones(4, 2), there(2).long()),
    "gather": lambda: there(4).gather(0, torch.tensor([1])),
    "choice": lambda: torch.where(there(2) > 0, there(2), torch.ones(2)),
    "in place on the CPU": lambda: torch.tensor(1.0).add_(there()),
    "values for a row": lambda: there(4).index_put_((torch.tensor([1]),), torch.ones(1)),
    "equality": lambda: torch.equal(there(2), torch.ones(2)),
}


@pytest.mark.parametrize("mixed", TOGETHER.values(), ids=TOGETHER)
def test_operands_of_two_devices_are_refused(mixed):
    """Whatever the operation, and whichever of them comes first."""
    with pytest.raises(RuntimeError, match=SAME):
        mixed()


def test_a_number_of_the_cpu_goes_with_the_device():
    """A tensor without dimensions counts as a number where an operation works elementwise."""
    assert (there(2) * torch.tensor(3.0)).tolist() == [3.0, 3.0]
    assert torch.where(there(2) > 0, there(2), torch.tensor(0.0)).device.type == NAME
    assert there(2).masked_fill(there(2) > 0, torch.tensor(5.0)).tolist() == [5.0, 5.0]


def test_indices_of_the_cpu_reach_into_the_device_and_not_the_other_way():
    """As CUDA: masks count as indices too."""
    table, index = torch.arange(4.0), torch.tensor([2, 0])

    assert table.to(NAME)[index].tolist() == [2.0, 0.0]
    assert table.to(NAME)[table > 1].tolist() == [2.0, 3.0]
    assert table.to(NAME)[index.to(NAME)].tolist() == [2.0, 0.0]
    with pytest.raises(RuntimeError, match=ELSEWHERE):
        table[index.to(NAME)]
    with pytest.raises(RuntimeError, match=ELSEWHERE):
        table[index.to(NAME)] = 0.0


def test_numbers_leave_the_device_only_when_asked_to():
    """No array of NumPy sees them; copies, lists and numbers do."""
    value = torch.arange(3.0).to(NAME)

    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
        value.numpy()
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
        np.asarray(value)
    assert value.cpu().numpy().tolist() == value.tolist() == [0.0, 1.0, 2.0]
    assert (value.sum().item(), float(value[2])) == (3.0, 2.0)


def test_a_generator_of_the_cpu_draws_on_the_cpu_alone():
    """What is drawn there is moved."""
    generator = torch.Generator().manual_seed(0)

    with pytest.raises(RuntimeError, match="for generator"):
        torch.randn(2, device=NAME, generator=generator)
    assert torch.randn(2, generator=generator).to(NAME).device.type == NAME


def test_integers_have_no_matrix_product():
    """CUDA has no kernel for it."""
    with pytest.raises(RuntimeError, match="not implemented for"):
        there(2, 2).long() @ there(2, 2).long()


# -- laws: what is computed ---------------------------------------------------------------


@given(st.integers(0, 99))
def test_values_and_gradients_are_the_cpu_s_to_the_bit(seed):
    """Through views, changes in place, an embedding, a normalisation and attention."""
    draws = torch.Generator().manual_seed(seed)
    table, weight = (torch.randn(8, 8, generator=draws) for _ in range(2))
    results = []
    for device in ("cpu", NAME):
        leaves = [value.clone().to(device).requires_grad_() for value in (table, weight)]
        rows = torch.embedding(leaves[0], torch.arange(6, device=device).flip(0))
        mixed = torch.nn.functional.silu(rows @ leaves[1].mT).view(2, 3, 8)
        mixed = torch.nn.functional.layer_norm(mixed, (8,))
        held = mixed.new_zeros(2, 3, 8)
        held[:, 1:] = mixed[:, 1:] * torch.tensor(2.0)
        loss = held.transpose(1, 2).softmax(-1).square().sum()
        loss.backward()
        results.append([loss.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])

    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_ranges_and_networks_are_made_on_the_device():
    """Ranges, fills, copies, parameters, and a change of their type."""
    network = torch.nn.Linear(2, 2).to(NAME)
    parameter = network.weight
    network.to(torch.bfloat16)

    assert torch.arange(3, device=NAME).shape == torch.linspace(0, 1, 3, device=NAME).shape == (3,)
    assert torch.tensor([[1.0]], device=NAME).tolist() == torch.ones(1, 1, device=NAME).tolist()
    assert torch.tensor([there()[None].sum(), there()], device=NAME).tolist() == [1.0, 1.0]
    assert isinstance(parameter, torch.nn.Parameter)
    assert (parameter.dtype, parameter.device.type) == (torch.bfloat16, NAME)
    assert copy.deepcopy(network)(there(1, 2).bfloat16()).device.type == NAME


def test_files_hold_the_numbers(tmp_path):
    """What is on the device is written by safetensors."""
    value = torch.arange(3.0).to(NAME)
    save_file({"value": value}, tmp_path / "file.safetensors")

    assert torch.equal(load_file(tmp_path / "file.safetensors")["value"], value.cpu())
