"""`optimizer_state`: taken apart and put together, an optimiser goes on with the same bits."""

import json

import pytest
import torch
from torch import nn

from mvczigal_ref.training.checkpoint import join_optimizer_state, split_optimizer_state


def trained(steps, *, optimizer=None, parameters=None, kind=torch.optim.AdamW):
    """A network after some steps on fixed gradients."""
    if parameters is None:
        generator = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(n, generator=generator)) for n in (3, 5, 2)]
        optimizer = kind(
            [{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:]}], lr=0.01
        )
    for step in range(steps):
        for parameter in parameters[:2]:
            parameter.grad = torch.sin(parameter.detach() + step)
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adam])
def test_a_restored_optimiser_goes_on_with_the_same_bits(kind):
    """Two steps, a way through JSON, two steps equal four; the third parameter is never trained."""
    half, optimizer = trained(2, kind=kind)
    tensors, rest = split_optimizer_state(optimizer.state_dict())
    fresh = [nn.Parameter(p.detach().clone()) for p in half]
    restored = kind([{"params": fresh[:1]}, {"params": fresh[1:]}], lr=9.0)
    restored.load_state_dict(join_optimizer_state(tensors, json.loads(json.dumps(rest))))
    trained(2, optimizer=restored, parameters=fresh)
    whole, whole_optimizer = trained(2, kind=kind)
    trained(2, optimizer=whole_optimizer, parameters=whole)

    assert all(torch.equal(a, b) for a, b in zip(fresh, whole, strict=True))


def test_join_inverts_split_exactly():
    """State, numbers that are no tensors, groups, and AdamW's pair of betas."""
    _, optimizer = trained(1)
    state = optimizer.state_dict()
    state["state"][1]["count"] = 3
    tensors, rest = split_optimizer_state(state)
    back = join_optimizer_state(tensors, json.loads(json.dumps(rest)))

    assert back["param_groups"] == state["param_groups"]
    assert rest["numbers"] == {"1.count": 3}
    assert {k: set(v) for k, v in back["state"].items()} == {
        k: set(v) for k, v in state["state"].items()
    }
    assert back["state"][1]["count"] == 3
    assert all(
        back["state"][p][e] is state["state"][p][e] for p, e in [(0, "step"), (1, "exp_avg")]
    )
