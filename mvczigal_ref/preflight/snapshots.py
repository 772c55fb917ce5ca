"""Snapshots of networks and optimisers: bits, gradients, moments and values to put back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mvczigal_ref.preflight.trial import Trial
from mvczigal_ref.system import System

__all__ = ["fingerprints", "gradients", "in_fp32", "moments", "put_back"]


def fingerprints(trial: Trial) -> dict[str, int]:
    """Sum up the bits of everything that does not train, where it is."""
    trained = {id(p) for p in trial.system.trained().values()}
    return {
        f"{part}: {name}": int(_bits(tensor).sum(dtype=torch.int64))
        for part, module in trial.modules()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if id(tensor) not in trained
    }


def _bits(tensor: Tensor) -> Tensor:
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(whole[tensor.element_size()])


def gradients(system: System) -> dict[str, Tensor]:
    """Collect the gradients of what trains, by name."""
    return {name: p.grad for name, p in system.trained().items() if p.grad is not None}


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy everything that an optimiser remembers."""
    return {
        f"optimiser {index} {name}": value.detach().clone()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


@contextmanager
def in_fp32(network: nn.Module) -> Iterator[bool]:
    """Widen what a network holds in half precision, for a while; no bit of it is lost.

    Args:
        network: Network whose half-precision parameters and buffers are fp32 meanwhile.

    Yields:
        Whether there was anything to widen.
    """
    held = [*network.parameters(), *network.buffers()]
    half = [(t, t.dtype) for t in held if t.dtype in (torch.float16, torch.bfloat16)]
    try:
        for tensor, _ in half:
            tensor.data = tensor.data.float()
        yield bool(half)
    finally:
        for tensor, dtype in half:
            tensor.data = tensor.data.to(dtype)


def put_back(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Give parameters their values back, and forget their gradients."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
            parameter.grad = None
