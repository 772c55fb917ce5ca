"""Bytes of a plan that do not depend on what is computed: weights, gradients, moments, copies."""

from collections.abc import Mapping

import torch

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.low_bit_weights import low_bit_saving
from mvczigal_ref.preflight.footprints import Footprint
from mvczigal_ref.preflight.meter import storage_bytes
from mvczigal_ref.preflight.shards import block_bytes, gathered_bytes, part_bytes
from mvczigal_ref.system import System

__all__ = ["camera_encoder", "moment_bytes", "network_bytes", "weight_bytes"]


def weight_bytes(
    system: System, config: TrainConfig, footprints: Mapping[str, Footprint], *, processes: int
) -> dict[str, int]:
    """Add up what one process holds all along, on its device and on the host.

    Args:
        system: System of the run, its networks whole.
        config: Read for what is trained, cut, and kept on the CPU.
        footprints: Scorers of the run.
        processes: Processes of the run.

    Returns:
        Fields of :class:`~mvczigal_ref.preflight.plan_record.Memory` by name [bytes].
    """
    trained, away = list(system.trained().values()), config.model.offload_frozen
    full, network = config.model.finetune == "full", system.backbone.network
    lora = [] if full else trained
    uncut = {id(p) for p in lora}
    cut = [p for p in network.parameters() if id(p) not in uncut]
    whole = sum(p.numel() * p.element_size() for p in cut)
    parts, ours, gathered = whole, storage_bytes(trained), 0
    gradients = sum(p.numel() * p.element_size() for p in trained)
    moments = sum(moment_bytes(p, config.optim.kind) for p in trained)
    rest = network_bytes(system.policy) - whole - (0 if full else ours)  # cameras and buffers
    if config.model.frozen_weights != "stored" and not full:
        parts -= low_bit_saving(network, config.model.frozen_weights)
    cuts = config.run.sharding == "full" and processes > 1
    if cuts:
        parts = part_bytes(cut, processes)
        narrow = torch.bfloat16 if config.run.compute_dtype == "bf16" else None
        gathered = gathered_bytes(network, whole=lora, trained=full, compute_dtype=narrow)
    if full and cuts:
        ours, gradients, moments = parts, parts, 2 * parts
    cameras = sum(map(network_bytes, camera_encoder(system)))
    waiting = {
        "text_encoders": sum(map(network_bytes, system.backbone.text_encoders)),
        "vae": network_bytes(system.components.vae),
        "scorers": sum(f.weights for f in footprints.values()),
    }
    # What samples on the forward process, and what a swap of parameters keeps meanwhile.
    follows = config.objective.kind == "forward_process"
    copies = 2 * follows + (config.optim.average_decay > 0.0)
    if config.rollout.ahead:  # policies that sampled this iteration and the next
        copies += 1 if follows else 2
    moving = {  # goes to the host with the parts
        "network": 0 if full else parts,
        "trained": ours if full else 0,
        "gradients": gradients if full else 0,
        "optimizer": moments if full else 0,
        "copies": copies * ours if full else 0,
    }
    staying = {
        "network": rest - (cameras if away else 0),
        "trained": 0 if full else ours,
        "gradients": 0 if full else gradients,
        "optimizer": 0 if full else moments,
        "copies": 0 if full else copies * ours,
    }
    offloads = cuts and config.run.offload_parameters
    fused = "lora" in config.model.sources  # into every weight, before any is cut
    return {
        **{n: b + (0 if offloads else moving[n]) for n, b in staying.items()},
        **waiting,
        "gathered": gathered,
        "features": storage_bytes(system.camera_features),
        "host": offloads * sum(moving.values()) + away * (sum(waiting.values()) + cameras),
        "loading": waiting["text_encoders"] + waiting["vae"] + cameras
        + (block_bytes(network, whole=lora) + offloads * parts if cuts and not fused else whole),
    }  # fmt: skip


def moment_bytes(parameter: torch.Tensor, kind: str) -> int:
    """Size AdamW's two moments of a parameter.

    Args:
        parameter: Trainable parameter.
        kind: ``optim.kind``; of "adamw8bit" large moments have a byte per number, and a scale of
            fp32 per 256 of them.

    Returns:
        Memory [bytes].

    Examples:
        >>> moment_bytes(torch.zeros(64, 128), "adamw"), moment_bytes(
        ...     torch.zeros(64, 128), "adamw8bit"
        ... )
        (65536, 16640)
    """
    count = parameter.numel()
    if kind == "adamw8bit" and count >= 4096 and count % 256 == 0:
        return 2 * (count + 4 * count // 256)
    return 2 * count * parameter.element_size()


def camera_encoder(system: System) -> list[torch.nn.Module]:
    """Give the encoder of the cameras' maps, where there is one.

    Args:
        system: System of any kind of network.

    Returns:
        One network or none.
    """
    parts = system.components
    return [parts.policy.camera_encoder] if isinstance(parts, Components) else []


def network_bytes(network: torch.nn.Module) -> int:
    """Add up a network's parameters and buffers.

    Args:
        network: Network on any device.

    Returns:
        Memory [bytes].

    Examples:
        >>> network_bytes(torch.nn.Linear(2, 3))
        36
    """
    return storage_bytes([*network.parameters(), *network.buffers()])
