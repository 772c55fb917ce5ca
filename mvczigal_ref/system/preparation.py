"""Preparation of a run's networks: places and types, what is trained, quicker layers, parts.

Functions stand in the order in which a system is built.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.backbone import AnyComponents, Backbone
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.loading import cast_network
from mvczigal_ref.models.low_bit_reading import FewBits
from mvczigal_ref.models.low_bit_weights import check_low_bit, store_low_bit
from mvczigal_ref.models.placement import compile_network, lay_channels_last, set_tf32
from mvczigal_ref.models.projections import install_merged_linears
from mvczigal_ref.models.quick_blocks import install_quick_blocks
from mvczigal_ref.models.recomputation import Recomputation, activation_budget, free_bytes
from mvczigal_ref.models.sharding import shard_network
from mvczigal_ref.system.networks import DTYPES

__all__ = [
    "check_training",
    "choose_trained",
    "cut_network",
    "few_bits_of",
    "place_parts",
    "quicken",
]


def check_training(config: TrainConfig) -> None:
    """Refuse types and few bits in which the networks could not be trained.

    Args:
        config: Read for its section ``model`` and for ``run.sharding``.

    Raises:
        ConfigError: If all weights are to be trained in half precision, or weights of few bits are
            to be cut or compiled, or their library is absent.
    """
    model = config.model
    if model.finetune == "full" and model.dtype != "fp32":
        msg = (
            '`model.dtype` must be "fp32" where `model.finetune` is "full"; got '
            f"{model.dtype!r}. Updates of trained half-precision weights round away; train "
            "a LoRA, whose weights are fp32."
        )
        raise ConfigError(msg)
    few_bits = _few_bits(config)
    check_low_bit(few_bits)
    if few_bits != "stored" and (config.run.sharding == "full" or model.compile != "none"):
        msg = (
            '`model.frozen_weights` must be "stored" where `run.sharding` is "full" or '
            f"`model.compile` is set; got {few_bits!r}. The engine cuts plain weights, and "
            "compiled networks of few bits have not been tried."
        )
        raise ConfigError(msg)


def place_parts(
    config: TrainConfig, parts: AnyComponents, device: torch.device, *, cut: bool
) -> AnyComponents:
    """Bring every part to its device, type and memory layout.

    Frozen parts wait on the CPU from the beginning, and a network that is cut is never whole
    elsewhere.

    Args:
        config: Read for its section ``model``.
        parts: Models, changed in place.
        device: Device on which the networks compute.
        cut: Whether the trained network will be cut, and cast block by block.

    Returns:
        Parts there.
    """
    model = config.model
    set_tf32(device, allowed=model.tf32)
    home = torch.device("cpu") if model.offload_frozen or cut else device
    placed = parts.to(home)
    dtype = DTYPES[model.dtype] if model.finetune == "lora" else None
    if not cut:
        cast_network(placed.policy, device, dtype)
    elif isinstance(placed, Components):
        cast_network(placed.policy.camera_encoder, home, dtype)
    last = model.channels_last
    if (device.type == "cpu" and not cut) if last == "auto" else last:
        lay_channels_last(placed.policy, placed.vae)
    if isinstance(placed, Components):
        placed.policy.camera_encoder.to("cpu" if model.offload_frozen else device)
    return placed


def choose_trained(
    config: TrainConfig, backbone: Backbone, device: torch.device, lora: Path | None
) -> None:
    """Freeze everything but what is trained.

    Args:
        config: Read for its section ``model`` and ``run.seed``.
        backbone: Model, changed in place.
        device: Device on which the networks compute; on "meta" none is stored in few bits.
        lora: A trained LoRA in place of what ``model.finetune`` would train, if any.

    Raises:
        CheckpointError: If the LoRA cannot be read.
    """
    model, few_bits = config.model, few_bits_of(config, device)
    backbone.freeze()
    if lora is not None:
        backbone.load_lora(lora)
    elif model.finetune == "full":
        backbone.network.requires_grad_(requires_grad=True)
    else:
        backbone.add_lora(rank=model.lora_rank, alpha=model.lora_alpha, seed=config.run.seed)
    if few_bits is not None:  # what was not read so
        store_low_bit(backbone.network, few_bits.kind)


def quicken(config: TrainConfig, backbone: Backbone, vae: nn.Module, device: torch.device) -> None:
    """Give layers their quicker forms, and choose what is computed again or compiled.

    Args:
        config: Read for its section ``model``.
        backbone: Model, changed in place.
        vae: Autoencoder, changed in place.
        device: Device on which the networks compute.
    """
    model, network = config.model, backbone.network
    install_merged_linears(network)
    install_quick_blocks(network)
    install_quick_blocks(vae)
    if model.gradient_checkpointing == "auto":
        Recomputation(network, partial(_free_for_a_graph, backbone, device))
    elif model.gradient_checkpointing:
        # diffusers recomputes wherever gradients are on, so the network stays in evaluation mode.
        network.enable_gradient_checkpointing()
    if model.compile != "none":
        compile_network(network, backend=model.compile)


def cut_network(
    config: TrainConfig, backbone: Backbone, vae: nn.Module, device: torch.device, world: World
) -> None:
    """Cut the trained network into parts, one per process; other parts stay whole.

    Args:
        config: Read for its sections ``model`` and ``run``.
        backbone: Model, changed in place.
        vae: Autoencoder.
        device: Device on which the networks compute.
        world: Processes that hold the parts.
    """
    model, run = config.model, config.run
    if not model.offload_frozen:
        for part in (*backbone.text_encoders, vae):
            cast_network(part, device, None)
    world.barrier()  # until every process has its weights
    shard_network(
        backbone.network, world, dtype=DTYPES[model.dtype],
        compute_dtype=torch.bfloat16 if run.compute_dtype == "bf16" else None,
        offload=run.offload_parameters,
    )  # fmt: skip


def few_bits_of(config: TrainConfig, device: torch.device) -> FewBits | None:
    """Choose the form in which frozen weights are read.

    Args:
        config: Read for its section ``model``.
        device: Device on which the networks compute.

    Returns:
        Form of few bits; None where weights are whole, and on "meta".
    """
    kind = _few_bits(config)
    return None if kind == "stored" or device.type == "meta" else FewBits(kind, device)


def _few_bits(config: TrainConfig) -> Literal["stored", "int8", "nf4"]:
    """Name the form of frozen weights; where all are trained, none are."""
    return config.model.frozen_weights if config.model.finetune == "lora" else "stored"


def _free_for_a_graph(backbone: Backbone, device: torch.device) -> int:
    """Measure what activations may fill, before the first gradient is there [bytes]."""
    trained = sum(p.numel() * p.element_size() for p in backbone.trained().values())
    return activation_budget(free_bytes(device), trained)
