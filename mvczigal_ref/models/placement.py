"""Device, memory layout and precision of networks, at work and while they wait."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["at_work", "compile_network", "lay_channels_last", "set_tf32", "take_latents_from"]


@contextmanager
def at_work(*parts: Any, device: torch.device) -> Iterator[None]:  # noqa: ANN401 - see below
    """Bring networks that wait on the CPU to a device while they work.

    Args:
        *parts: Networks; or scorers, which have a method ``to`` and no device of their own.
            A network that is on the device already stays there afterwards.
        device: Device on which they work.

    Yields:
        Nothing.

    Examples:
        >>> network = nn.Linear(1, 1)
        >>> with at_work(network, device=torch.device("cpu")):
        ...     network(torch.zeros(1)).shape
        torch.Size([1])
    """
    away = [part for part in parts if not _is_on(part, device)]
    try:
        for part in away:
            _move(part, device)
        yield
    finally:
        for part in away:
            _move(part, torch.device("cpu"))


def take_latents_from(
    policy: nn.Module, device: torch.device, *, work: torch.device | None = None
) -> None:
    """Let a policy take latents from another device than its own, and answer there.

    Each call moves only its own rows of what sampling has stored. Gradient flows both ways.

    Args:
        policy: Network that is called with latents and timesteps first; changed in place.
        device: Device of the latents.
        work: Device on which the policy computes; None is that of its first parameter.
    """

    def fetch(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        there = work or next(module.parameters()).device
        return tuple(value.to(there) if isinstance(value, Tensor) else value for value in given)

    def answer(_module: nn.Module, _given: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.to(device)

    policy.register_forward_pre_hook(fetch)
    policy.register_forward_hook(answer)


def compile_network(network: nn.Module, *, backend: str | Callable[..., Any]) -> None:
    """Compile a network's forward pass, one program for sampling and for training.

    torch would compile one program with gradient and one without; they round differently, so that
    no first ratio would be 1. So sampling runs the one with gradient and drops its graph, which
    takes as much memory as a replay's forward pass, and no more time. For the same reason every
    shape has a program of its own.

    Args:
        network: Network that returns a tuple of tensors; changed in place.
        backend: Backend of :func:`torch.compile`.
    """
    compiled = torch.compile(network.forward, backend=backend, dynamic=False)

    @wraps(network.forward)
    def forward(*given: Any, **named: Any) -> tuple[Tensor, ...]:  # noqa: ANN401 - the network's
        with_gradient = torch.is_grad_enabled()
        with torch.enable_grad():
            output: tuple[Tensor, ...] = compiled(*given, **named)
        return output if with_gradient else tuple(tensor.detach() for tensor in output)

    network.forward = forward


def lay_channels_last(*networks: nn.Module) -> None:
    """Lay out the weights of convolutions with channels last; their outputs follow.

    Args:
        *networks: Networks, changed in place; the values stay the same.
    """
    for network in networks:
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def set_tf32(device: torch.device, *, allowed: bool) -> None:
    """Choose how CUDA multiplies fp32 numbers, in the whole process.

    Args:
        device: Device of the networks; on any but a CUDA device nothing is set.
        allowed: Whether products and convolutions may round their factors to the 10 bits of TF32;
            if not, both keep fp32's 23.
    """
    if device.type == "cuda":
        # These set `fp32_precision` too. Set alone, that makes torch refuse questions by the older
        # names, as `torch.get_float32_matmul_precision` and `torch.backends.cudnn.flags` do.
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


def _is_on(part: Any, device: torch.device) -> bool:  # noqa: ANN401 - networks and scorers
    if not isinstance(part, nn.Module):
        return False
    return all(parameter.device == device for parameter in part.parameters())


def _move(part: Any, device: torch.device) -> None:  # noqa: ANN401 - networks and scorers
    if isinstance(part, nn.Module):
        nn.Module.to(part, device)  # diffusers' own method warns about types
    else:
        part.to(device)
