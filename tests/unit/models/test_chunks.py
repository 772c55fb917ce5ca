"""Work in slices: oracle, laws, gradients, errors."""

import pytest
import torch
from torch import nn

from mvczigal_ref.models.chunks import as_input, device_of, in_chunks

ROWS = torch.arange(14.0, dtype=torch.float64).reshape(7, 2)

# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (9, [7])])
def test_every_row_passes_once_and_in_order(size, sizes):
    """The last slice is what is left."""
    seen = []

    def function(part):
        seen.append(len(part))
        return part.sum(dim=-1) + 1.0

    result = in_chunks(function, ROWS, size=size)

    assert result.tolist() == [sum(row) + 1.0 for row in ROWS.tolist()]
    assert seen == sizes


# -- laws --------------------------------------------------------------------------------


def test_no_row_is_one_empty_slice():
    """The function still says what shape a row's result has."""
    assert in_chunks(lambda part: part.sum(dim=-1), ROWS[:0], size=3).shape == (0,)


def test_numbers_take_the_network_s_dtype_and_ids_do_not():
    """Token ids stay whole numbers."""
    network = nn.Linear(2, 1, dtype=torch.bfloat16)

    assert as_input(torch.ones(2), network).dtype == torch.bfloat16
    assert as_input(torch.tensor([3]), network).dtype == torch.int64


def test_inputs_follow_the_network_s_device():
    """Numbers and ids alike."""
    network = nn.Linear(2, 1, device="meta")

    assert device_of(network) == torch.device("meta")
    assert as_input(torch.ones(2), network).device == torch.device("meta")
    assert as_input(torch.tensor([3]), network).device == torch.device("meta")


# -- gradients ---------------------------------------------------------------------------


def test_gradient_flows_through_every_slice():
    """Joining cuts no graph."""
    rows = ROWS.clone().requires_grad_()
    in_chunks(lambda part: part.square().sum(dim=-1), rows, size=3).sum().backward()

    assert torch.equal(rows.grad, 2 * ROWS)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1])
def test_rejects_a_size_that_is_not_positive(size):
    """A slice has at least one row."""
    with pytest.raises(ValueError, match=r"`size` must be positive; got"):
        in_chunks(torch.clone, ROWS, size=size)


@pytest.mark.parametrize("function", [lambda part: part[:1], torch.sum])
def test_rejects_a_function_that_loses_rows(function):
    """Results would no longer belong to rows."""
    with pytest.raises(ValueError, match=r"`function` must return one entry per row"):
        in_chunks(function, ROWS, size=3)
