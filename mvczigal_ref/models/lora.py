"""Low-rank updates (LoRA) of a diffusers network's layers, in PEFT's layout and names."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mvczigal_ref.models.loading import load_strict

__all__ = [
    "LORA_TARGETS",
    "adapter_names",
    "add_lora",
    "insert_lora",
    "load_lora_state_dict",
    "lora_parameters",
    "lora_state_dict",
    "one_adapter",
]

LORA_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "to_q_mv",
    "to_k_mv",
    "to_v_mv",
    "to_out_mv.0",
)
"""Every projection of every attention of the multi-view UNet, row attention included."""

Network: TypeAlias = Any
"""A diffusers network; to name its class would import diffusers wherever a LoRA's file is read."""

# The name PEFT gives the only adapter, here the trained one; published files leave it out.
_ADAPTER = "default"


def add_lora(
    network: Network,
    *,
    rank: int,
    alpha: float,
    seed: int,
    targets: Sequence[str] = LORA_TARGETS,
) -> None:
    r"""Add a trainable low-rank update to some layers of a network; freeze the rest.

    .. math:: W' = W + \tfrac{\alpha}{r} B A,\qquad A \sim N(0, r^{-2}),\quad B = 0

    Source:
        Hu et al., LoRA, arXiv:2106.09685, section 4.1; the initial values are
        PEFT's "gaussian". Here they come from a generator of their own, drawn
        on the CPU, so they are the same on any device. Flow-GRPO's code takes
        rank 64 and alpha 128 for FLUX.1, 32 and 64 for Stable Diffusion 3.5.

    Args:
        network: UNet or flow transformer, changed in place: B is zero, so its
            output is not. All other parameters stop requiring a gradient.
        rank: r; at least 1.
        alpha: Numerator of the scale [1]; positive.
        seed: Seed of the initial values. The global generator is not touched.
        targets: Ends of the names of the layers to adapt; by default those of
            the multi-view UNet.

    Raises:
        ValueError: If ``rank`` or ``alpha`` is out of range, the network holds
            a LoRA already, or no layer has such a name.

    Examples:
        >>> from mvczigal_ref.models.flow.tiny import tiny_flow_components
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> unet = tiny_components(seed=0).policy.unet
        >>> add_lora(unet, rank=4, alpha=4.0, seed=0)
        >>> sum(p.numel() for p in unet.parameters() if p.requires_grad)
        52864
        >>> flux = tiny_flow_components(seed=0).policy
        >>> add_lora(flux.transformer, rank=4, alpha=8.0, seed=0, targets=flux.lora_targets)
        >>> sum(p.numel() for p in flux.parameters() if p.requires_grad)
        49152
    """
    if rank < 1:
        msg = f"`rank` must be at least 1; got {rank}."
        raise ValueError(msg)
    if not alpha > 0.0:
        msg = f"`alpha` must be positive; got {alpha!r}. It is often set to the rank or twice it."
        raise ValueError(msg)
    if adapters := adapter_names(network):
        msg = (
            f"`network` must hold no LoRA yet; got one that does, {', '.join(adapters)}. Load into "
            "it instead, or fuse and unload it first with diffusers' `fuse_lora` and "
            "`unload_lora`."
        )
        raise ValueError(msg)
    insert_lora(network, rank=rank, alpha=alpha, seed=seed, targets=targets)


def insert_lora(
    network: Network,
    *,
    rank: int,
    alpha: float,
    seed: int,
    targets: Sequence[str] = LORA_TARGETS,
    adapter: str = _ADAPTER,
) -> None:
    """Add a LoRA beside other adapters, which stay active and are frozen.

    Args:
        network: UNet or flow transformer, changed in place.
        rank: Rank r, as in :func:`add_lora`.
        alpha: Numerator of the scale [1], as in :func:`add_lora`.
        seed: Seed of the initial values, as in :func:`add_lora`.
        targets: Ends of the names of the layers to adapt, as in :func:`add_lora`.
        adapter: Name of the new adapter; by default the trained one.
    """
    from peft import LoraConfig

    beside = list(network.active_adapters()) if adapter_names(network) else []
    config = LoraConfig(
        r=rank,
        # PEFT types it as an integer and divides by it all the same.
        lora_alpha=alpha,
        target_modules=list(targets),
        # Drawn below: PEFT would take them from the global generator.
        init_lora_weights=False,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        if beside:  # which PEFT warns of
            warnings.simplefilter("ignore", UserWarning)
        # Weights of few bits are never merged.
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated", UserWarning)
        network.add_adapter(config, adapter_name=adapter)
    if beside:  # PEFT has switched them off; it makes active adapters trainable
        network.set_adapter([*beside, adapter])
        trained = lora_parameters(network, adapter).values()
        for parameter in set(network.parameters()) - set(trained):
            parameter.requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora_parameters(network, adapter).items():
            # In half precision the updates of one optimiser step would round away.
            parameter.data = parameter.data.float()
            if parameter.is_meta:
                continue  # a shape alone: there is nothing to fill
            if ".lora_A." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / rank)
            else:
                parameter.zero_()


def adapter_names(network: Network) -> tuple[str, ...]:
    """List the adapters of a network; "default" is the trained one.

    Args:
        network: UNet or flow transformer, with or without adapters.

    Returns:
        Names of the adapters.
    """
    return tuple(getattr(network, "peft_config", None) or ())


def one_adapter(network: Network) -> str:
    """Choose the adapter that is saved: the trained one, or the only one.

    Args:
        network: UNet or flow transformer, with adapters.

    Returns:
        Name of the adapter.

    Raises:
        ValueError: If there is none, or several and none of them is the trained one.
    """
    names = adapter_names(network)
    if not names:
        msg = "`network` must hold a LoRA; got one without. Call add_lora first."
        raise ValueError(msg)
    if _ADAPTER not in names and len(names) > 1:
        msg = (
            f"`network` must hold one LoRA, or one that is named {_ADAPTER!r}; got "
            f"{', '.join(names)}. Delete the others with `delete_adapters`."
        )
        raise ValueError(msg)
    return _ADAPTER if _ADAPTER in names else names[0]


def lora_parameters(network: Network, adapter: str = _ADAPTER) -> dict[str, nn.Parameter]:
    """Find an adapter's parameters under their published names.

    Args:
        network: UNet or flow transformer, with or without a LoRA.
        adapter: Name of the adapter; by default the trained one.

    Returns:
        Parameters by name, empty without that adapter.
    """
    kinds = (f".lora_A.{adapter}.", f".lora_B.{adapter}.")
    return {
        name.replace(f".{adapter}.", "."): parameter
        for name, parameter in network.named_parameters()
        if any(kind in name for kind in kinds)
    }


def lora_state_dict(network: Network) -> dict[str, Tensor]:
    """Copy the LoRA's values out, under the names of published LoRA files.

    Args:
        network: UNet or flow transformer that holds a LoRA; of several the trained one is copied.

    Returns:
        Detached copies by name.

    Raises:
        ValueError: If there is no LoRA, or several of which none is the trained one.
    """
    parameters = lora_parameters(network, one_adapter(network))
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def load_lora_state_dict(
    network: Network,
    tensors: Mapping[str, Tensor],
    *,
    source: str = "tensors",
    adapter: str = _ADAPTER,
) -> None:
    """Copy values into a LoRA of the same rank and targets.

    Args:
        network: UNet or flow transformer that holds a LoRA, changed in place.
        tensors: Values by published name.
        source: Origin of the values, for the message.
        adapter: Name of the LoRA; by default the trained one.

    Raises:
        ValueError: If there is no LoRA.
        CheckpointError: If a tensor is missing, left over or of another
            shape; the message names each, and nothing is changed.
    """
    parameters = lora_parameters(network, adapter)
    if not parameters:
        msg = "`network` must hold a LoRA; got one without. Call add_lora first."
        raise ValueError(msg)
    load_strict(parameters, tensors, source=source)
