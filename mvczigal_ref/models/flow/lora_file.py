"""Low-rank updates of a flow transformer, in files that diffusers' pipelines load."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import nn

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import atomic_write
from mvczigal_ref.models.flow.policy import FlowPolicy
from mvczigal_ref.models.loading import load_strict, stored
from mvczigal_ref.models.lora_reading import METADATA, read_lora

__all__ = [
    "add_flow_lora",
    "flow_lora_parameters",
    "load_flow_lora",
    "merge_flow_lora",
    "save_flow_lora",
    "without_flow_lora",
]

# The name PEFT gives the only adapter; published files leave it out.
_ADAPTER = "default"


def add_flow_lora(
    policy: FlowPolicy,
    *,
    rank: int,
    alpha: float,
    seed: int,
    targets: Sequence[str] | None = None,
) -> None:
    r"""Add a trainable low-rank update to a transformer's layers; freeze the rest.

    .. math:: W' = W + \tfrac{\alpha}{r} B A,\qquad A \sim N(0, r^{-2}),\quad B = 0

    Source:
        Hu et al., LoRA, arXiv:2106.09685, section 4.1; the initial values are
        PEFT's "gaussian", drawn on the CPU from a generator of their own.
        Flow-GRPO's code takes rank 64 and alpha 128 for FLUX.1, 32 and 64 for
        Stable Diffusion 3.5.

    Args:
        policy: Changed in place: B is zero, so its output is not. All other
            parameters stop requiring a gradient.
        rank: r; at least 1.
        alpha: Numerator of the scale [1]; positive.
        seed: Of the initial values. The global generator is not touched.
        targets: Ends of layer names; those of ``policy.lora_targets`` if None.

    Raises:
        ValueError: If ``rank`` or ``alpha`` is out of range, or a LoRA is
            there already.

    Examples:
        >>> from mvczigal_ref.models.flow.tiny import tiny_flow_components
        >>> policy = tiny_flow_components(seed=0).policy
        >>> add_flow_lora(policy, rank=4, alpha=8.0, seed=0)
        >>> sum(p.numel() for p in policy.parameters() if p.requires_grad)
        49152
    """
    if rank < 1:
        msg = f"`rank` must be at least 1; got {rank}."
        raise ValueError(msg)
    if not alpha > 0.0:
        msg = f"`alpha` must be positive; got {alpha!r}. It is often set to the rank or twice it."
        raise ValueError(msg)
    if flow_lora_parameters(policy):
        msg = "`policy` must hold no LoRA yet; got one that does. Merge or load into it instead."
        raise ValueError(msg)
    config = LoraConfig(
        r=rank,
        # PEFT types it as an integer and divides by it all the same.
        lora_alpha=alpha,
        target_modules=list(policy.lora_targets if targets is None else targets),
        # Drawn below: PEFT would take them from the global generator.
        init_lora_weights=False,
    )
    with torch.random.fork_rng(devices=[]):
        policy.transformer.add_adapter(config, adapter_name=_ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in flow_lora_parameters(policy).items():
            # In half precision the updates of one optimiser step would round away.
            parameter.data = parameter.data.float()
            if parameter.is_meta:
                continue  # only shapes: there is nothing to fill
            if ".lora_A." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / rank)
            else:
                parameter.zero_()


def flow_lora_parameters(policy: FlowPolicy) -> dict[str, nn.Parameter]:
    """Find the LoRA parameters under the names of published LoRA files.

    Args:
        policy: With or without a LoRA.

    Returns:
        Parameters by name, ``transformer.`` first; empty without a LoRA.
    """
    return {
        name.replace(f".{_ADAPTER}.", "."): parameter
        for name, parameter in policy.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def save_flow_lora(policy: FlowPolicy, path: Path) -> None:
    """Write the LoRA and its scale into one file that diffusers' pipelines load.

    Args:
        policy: That holds a LoRA.
        path: A ``.safetensors`` file; its folder is made.

    Raises:
        ValueError: If there is no LoRA.
    """
    values = stored(_required(policy), None)
    config = policy.transformer.peft_config[_ADAPTER]
    settings = {
        "transformer.r": config.r,
        "transformer.lora_alpha": config.lora_alpha,
        "transformer.target_modules": sorted(config.target_modules),
    }
    metadata = {"format": "pt", METADATA: json.dumps(settings, sort_keys=True)}
    atomic_write(path, save(values, metadata=metadata))


def load_flow_lora(policy: FlowPolicy, path: Path) -> None:
    """Read what :func:`save_flow_lora` wrote, adding the LoRA where there is none.

    Args:
        policy: Changed in place; a LoRA that it holds must be of the same
            rank, scale and targets.
        path: The file.

    Raises:
        CheckpointError: If the file is unreadable or names no scale, or a
            tensor is missing, left over or of another shape; the message names
            each, and a LoRA that was there is not changed.
    """
    file = read_lora(path, network="transformer")
    if file.alpha is None or file.targets is None:
        msg = (
            f"`{path}` must be a LoRA with its rank, alpha and targets; got one that says "
            f"alpha {file.alpha} and targets {file.targets}. Write it with save_flow_lora."
        )
        raise CheckpointError(msg)
    values = {f"transformer.{name}": value for name, value in file.values.items()}
    rank, alpha, targets = file.rank, file.alpha, file.targets
    if not flow_lora_parameters(policy):
        try:
            add_flow_lora(policy, rank=rank, alpha=alpha, seed=0, targets=targets)
        except ValueError as error:  # PEFT's, where no layer has such a name
            msg = f"`{path}` must name layers of the network as its targets; got {error}"
            raise CheckpointError(msg) from error
    held = policy.transformer.peft_config[_ADAPTER]
    if held.lora_alpha / held.r != alpha / rank:
        msg = (
            f"`{path}` must have the policy's scale alpha / rank = {held.lora_alpha} / {held.r}; "
            f"got {alpha} / {rank}."
        )
        raise CheckpointError(msg)
    load_strict(flow_lora_parameters(policy), values, source=str(path))


def merge_flow_lora(policy: FlowPolicy) -> None:
    """Add the LoRA's update to the weights and take the LoRA away.

    Args:
        policy: That holds a LoRA, changed in place. Its parameters stay frozen.

    Raises:
        ValueError: If there is no LoRA.
    """
    _required(policy)
    policy.transformer.fuse_lora()
    policy.transformer.unload_lora()


@contextmanager
def without_flow_lora(policy: FlowPolicy) -> Iterator[None]:
    """Switch the LoRA off: the policy is the network that training started from.

    Args:
        policy: That holds a LoRA. Evaluate it inside without gradient, as a
            recomputed pass would run after the LoRA is back.

    Yields:
        Nothing.

    Raises:
        ValueError: If there is no LoRA.
    """
    _required(policy)
    policy.transformer.disable_adapters()
    try:
        yield
    finally:
        # PEFT makes the adapter trainable again with this.
        policy.transformer.enable_adapters()


def _required(policy: FlowPolicy) -> dict[str, nn.Parameter]:
    """Find the LoRA parameters, or refuse."""
    parameters = flow_lora_parameters(policy)
    if not parameters:
        msg = "`policy` must hold a LoRA; got one without. Call add_flow_lora first."
        raise ValueError(msg)
    return parameters
