"""Low-rank updates of the UNet's attention, in PEFT's layout and names."""

import warnings
from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
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
    "merge_lora",
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
"""Every projection of every attention, row attention included."""

# The name PEFT gives the only adapter, here the trained one; published files leave it out.
_ADAPTER = "default"


def add_lora(unet: UNet2DConditionModel, *, rank: int, alpha: float, seed: int) -> None:
    r"""Add a trainable low-rank update to every attention projection; freeze the rest.

    .. math:: W' = W + \tfrac{\alpha}{r} B A,\qquad A \sim N(0, r^{-2}),\quad B = 0

    Source:
        Hu et al., LoRA, arXiv:2106.09685, section 4.1; the initial values are
        PEFT's "gaussian". Here they come from a generator of their own, drawn
        on the CPU, so they are the same on any device.

    Args:
        unet: Changed in place: B is zero, so its output is not. All other
            parameters stop requiring a gradient.
        rank: r; at least 1.
        alpha: Numerator of the scale [1]; positive.
        seed: Of the initial values. The global generator is not touched.

    Raises:
        ValueError: If ``rank`` or ``alpha`` is out of range, or a LoRA is
            there already.

    Examples:
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> unet = tiny_components(seed=0).policy.unet
        >>> add_lora(unet, rank=4, alpha=4.0, seed=0)
        >>> sum(p.numel() for p in unet.parameters() if p.requires_grad)
        52864
    """
    if rank < 1:
        msg = f"`rank` must be at least 1; got {rank}."
        raise ValueError(msg)
    if not alpha > 0.0:
        msg = f"`alpha` must be positive; got {alpha!r}. It is often set to the rank."
        raise ValueError(msg)
    if adapters := adapter_names(unet):
        msg = (
            f"`unet` must hold no LoRA yet; got one that does, {', '.join(adapters)}. Merge or "
            "load into it instead."
        )
        raise ValueError(msg)
    insert_lora(unet, rank=rank, alpha=alpha, seed=seed)


def insert_lora(unet: UNet2DConditionModel, *, rank: int, alpha: float, seed: int) -> None:
    """Add the trained LoRA beside whatever adapters there are, which stay active and frozen.

    Args:
        unet: Changed in place.
        rank: As of :func:`add_lora`.
        alpha: Likewise.
        seed: Likewise.
    """
    beside = list(unet.active_adapters()) if adapter_names(unet) else []
    config = LoraConfig(
        r=rank,
        # PEFT types it as an integer and divides by it all the same.
        lora_alpha=alpha,
        target_modules=list(LORA_TARGETS),
        # Drawn below: PEFT would take them from the global generator.
        init_lora_weights=False,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        if beside:  # which PEFT warns of
            warnings.simplefilter("ignore", UserWarning)
        unet.add_adapter(config, adapter_name=_ADAPTER)
    if beside:  # PEFT has switched them off; it makes whatever is active trainable
        unet.set_adapter([*beside, _ADAPTER])
        trained = lora_parameters(unet).values()
        for parameter in set(unet.parameters()) - set(trained):
            parameter.requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora_parameters(unet).items():
            # In half precision the updates of one optimiser step would round away.
            parameter.data = parameter.data.float()
            if ".lora_A." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / rank)
            else:
                parameter.zero_()


def adapter_names(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """List the adapters of a network; "default" is the trained one.

    Args:
        unet: With or without adapters.

    Returns:
        Their names.
    """
    return tuple(getattr(unet, "peft_config", None) or ())


def one_adapter(unet: UNet2DConditionModel) -> str:
    """Choose the adapter that is saved: the trained one, or the only one.

    Args:
        unet: With adapters.

    Returns:
        Its name.

    Raises:
        ValueError: If there is none, or several and none of them is the trained one.
    """
    names = adapter_names(unet)
    if not names:
        msg = "`unet` must hold a LoRA; got one without. Call add_lora first."
        raise ValueError(msg)
    if _ADAPTER not in names and len(names) > 1:
        msg = (
            f"`unet` must hold one LoRA, or one that is named {_ADAPTER!r}; got "
            f"{', '.join(names)}. Delete the others with `delete_adapters`."
        )
        raise ValueError(msg)
    return _ADAPTER if _ADAPTER in names else names[0]


def lora_parameters(unet: UNet2DConditionModel, adapter: str = _ADAPTER) -> dict[str, nn.Parameter]:
    """Find an adapter's parameters under their published names.

    Args:
        unet: With or without a LoRA.
        adapter: Its name; the trained one's.

    Returns:
        Parameters by name, empty without that adapter.
    """
    kinds = (f".lora_A.{adapter}.", f".lora_B.{adapter}.")
    return {
        name.replace(f".{adapter}.", "."): parameter
        for name, parameter in unet.named_parameters()
        if any(kind in name for kind in kinds)
    }


def lora_state_dict(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Copy the LoRA's values out, under the names of published LoRA files.

    Args:
        unet: That holds a LoRA; of several the trained one.

    Returns:
        Detached copies by name.

    Raises:
        ValueError: If there is no LoRA, or several of which none is the trained one.
    """
    parameters = lora_parameters(unet, one_adapter(unet))
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def load_lora_state_dict(
    unet: UNet2DConditionModel, tensors: Mapping[str, Tensor], *, source: str = "tensors"
) -> None:
    """Copy values into a LoRA of the same rank and targets.

    Args:
        unet: That holds a LoRA, changed in place.
        tensors: Values by published name.
        source: Where they came from, for the message.

    Raises:
        ValueError: If there is no LoRA.
        CheckpointError: If a tensor is missing, left over or of another
            shape; the message names each, and nothing is changed.
    """
    parameters = lora_parameters(unet)
    if not parameters:
        msg = "`unet` must hold a LoRA; got one without. Call add_lora first."
        raise ValueError(msg)
    load_strict(parameters, tensors, source=source)


def merge_lora(unet: UNet2DConditionModel) -> None:
    """Add the LoRA's update to the weights and take the LoRA away.

    Args:
        unet: That holds a LoRA, changed in place; several that are active are all added. Its
            parameters stay frozen.

    Raises:
        ValueError: If there is no LoRA.
    """
    if not adapter_names(unet):
        msg = "`unet` must hold a LoRA; got one without. Call add_lora first."
        raise ValueError(msg)
    unet.fuse_lora()
    unet.unload_lora()
