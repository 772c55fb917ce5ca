"""Networks whose weights are cut over the processes of a run, by torch's own engine (FSDP2).

Each process holds one part of every tensor, cut along its first axis, and gathers a block's
weights for as long as the block computes.
"""

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from mvczigal_ref.distributed import World

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "cast_tensors",
    "compute_dtype_of",
    "gathered",
    "is_sharded",
    "local_part",
    "shard_network",
    "shard_world",
    "sharded_blocks",
    "whole",
]


def shard_network(
    network: Any,  # noqa: ANN401 - diffusers is untyped
    world: World,
    *,
    dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype | None = None,
    offload: bool = False,
) -> None:
    """Cut a network's weights over all processes, block by block.

    Weights are gathered for a block's forward pass and again for its backward pass, and dropped
    after each. Where every weight is trained, gradients are reduced and scattered in fp32 by the
    engine, as a mean over the processes. A LoRA stays whole in every process. Gathered weights
    have the bits of those that were cut, or their bits rounded to ``compute_dtype``.

    Args:
        network: UNet or flow transformer with its LoRA, if any, on the CPU; changed in place. Only
            one block at a time is whole on the device of ``world``, and in ``dtype``.
        world: The processes; the device of each.
        dtype: Floating type of the parts, but of a LoRA's; None is what each tensor has.
        compute_dtype: Floating type of gathered weights; None is that of the parts.
        offload: Whether parts, gradients and moments are on the CPU.
    """
    from peft.tuners.lora import LoraLayer
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    frozen = not all(p.requires_grad for p in network.parameters())
    trained = {p for p in network.parameters() if frozen and p.requires_grad}
    for parameter in trained:
        parameter.data = parameter.data.to(world.device)
    how: dict[str, Any] = {
        "mesh": init_device_mesh(world.device.type, (world.size,)),
        "reshard_after_forward": True,
        # Inputs are cast by the policy, so that the timestep and rotary tables stay in fp32.
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
        "ignored_params": trained,
    }
    if offload:
        how["offload_policy"] = CPUOffloadPolicy(pin_memory=world.device.type == "cuda")
    for module in network.modules():
        if isinstance(module, (nn.Linear, LoraLayer)):
            # A fused product would move the memory that the engine gathers into.
            module.register_forward_pre_hook(_stay_apart)
    for block in sharded_blocks(network):
        if dtype is not None:
            cast_tensors(block, dtype, uncast=trained)
        fully_shard(block, **how)
    network.compute_dtype = compute_dtype


def cast_tensors(network: nn.Module, dtype: torch.dtype, *, uncast: Set[Tensor]) -> None:
    """Cast floating parameters and buffers in place, but those that are sharded.

    Args:
        network: Network, or a block of one; changed in place.
        dtype: Floating type.
        uncast: Tensors that stay as they are.

    Examples:
        >>> layer = nn.Linear(1, 1)
        >>> cast_tensors(layer, torch.bfloat16, uncast={layer.bias})
        >>> layer.weight.dtype, layer.bias.dtype
        (torch.bfloat16, torch.float32)
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and not is_sharded(tensor) and tensor not in uncast:
            tensor.data = tensor.data.to(dtype)


def compute_dtype_of(network: nn.Module, weight: Tensor) -> torch.dtype:
    """Give the dtype in which a network computes.

    Args:
        network: Network, sharded or whole.
        weight: One of its weights.

    Returns:
        That of the weight, or of gathered weights where they have another.

    Examples:
        >>> layer = nn.Linear(1, 1)
        >>> compute_dtype_of(layer, layer.weight)
        torch.float32
    """
    return getattr(network, "compute_dtype", None) or weight.dtype


def sharded_blocks(network: Any) -> list[nn.Module]:  # noqa: ANN401 - diffusers is untyped
    """List the modules whose weights are gathered together.

    Args:
        network: UNet or flow transformer.

    Returns:
        The blocks that diffusers names as such, inner ones first, and last the network with what
        no block holds.
    """
    lists = ("_repeated_blocks", "_no_split_modules")
    names = {name for each in lists for name in getattr(network, each, None) or ()}
    inner = [m for m in network.modules() if type(m).__name__ in names and m is not network]
    return [*reversed(inner), network]


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Find out whether a tensor is one of which each process holds a part.

    Args:
        tensor: Any tensor.

    Returns:
        Whether it is.

    Examples:
        >>> is_sharded(torch.zeros(2))
        False
    """
    return hasattr(tensor, "device_mesh")  # the class itself takes long to import


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor's parts; every process must call it.

    Args:
        tensor: Sharded tensor, or one that is whole already.

    Returns:
        Every number of it, the same in every process.

    Examples:
        >>> whole(torch.ones(2))
        tensor([1., 1.])
    """
    return _at_engine(tensor).full_tensor() if is_sharded(tensor) else tensor


def _at_engine(tensor: "DTensor") -> "DTensor":
    """Bring a part that waits on the CPU to the device on which parts are exchanged."""
    from torch.distributed.tensor import DTensor

    local, mesh = tensor.to_local(), tensor.device_mesh
    if local.device.type == mesh.device_type:
        return tensor
    return DTensor.from_local(
        local.to(mesh.device_type), mesh, tensor.placements, run_check=False, shape=tensor.shape,
        stride=tensor.stride(),
    )  # fmt: skip


def local_part(value: Tensor, like: Tensor) -> Tensor:
    """Cut this process's part out of a whole tensor.

    Args:
        value: Whole tensor, the same in every process.
        like: Tensor that says how to cut, or a whole one.

    Returns:
        The value, sharded as ``like`` is.

    Examples:
        >>> local_part(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    if not is_sharded(like) or is_sharded(value) or value.ndim == 0:
        return value
    from torch.distributed.tensor import distribute_tensor

    there = value.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def shard_world(tensors: Mapping[str, Mapping[str, Tensor]]) -> World:
    """Find this process's place among those that hold parts of some tensors.

    Args:
        tensors: Tensors by group and name.

    Returns:
        The processes that hold them; a world of one where no tensor is sharded.

    Examples:
        >>> shard_world({"policy": {"a": torch.zeros(1)}}).size
        1
    """
    values = (tensor for named in tensors.values() for tensor in named.values())
    meshes = (getattr(tensor, "device_mesh", None) for tensor in values)
    mesh: Any = next((mesh for mesh in meshes if mesh is not None), None)
    if mesh is None:
        return World()
    device = torch.device(mesh.device_type)
    return World(rank=mesh.get_local_rank(), size=mesh.size(), device=device, sharded=True)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Let the state dict of a sharded network hold its trained tensors whole, in the first process.

    They are gathered one by one, and only the first process keeps them, on its CPU: one copy in
    all. Every process must enter it.

    Args:
        network: Sharded network, or one that is whole.

    Yields:
        Nothing.
    """
    values: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if is_sharded(parameter) and parameter.requires_grad:
            tensor = whole(parameter.detach())
            if parameter.device_mesh.get_local_rank() == 0:
                values[name] = tensor.cpu()
            del tensor

    def put(_module: Any, state: dict[str, Tensor], prefix: str, _local: Any) -> None:  # noqa: ANN401
        state.update({prefix + name: value for name, value in values.items()})

    hook = network.register_state_dict_post_hook(put)
    try:
        yield
    finally:
        hook.remove()


def _stay_apart(_layer: nn.Module, _given: tuple[Any, ...]) -> None:
    """Do nothing: a layer with a hook is called by itself."""
