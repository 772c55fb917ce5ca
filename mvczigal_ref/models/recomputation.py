"""Blocks that compute their activations again in the backward pass, chosen by a memory budget."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

__all__ = ["Recomputation", "activation_budget", "free_bytes", "graph_bytes", "recomputed"]

_SHARE = 0.75
"""Share of free memory that activations may fill; the rest is for what computing takes."""


def graph_bytes(blocks: Sequence[int], chosen: Iterable[int], *, fixed: int) -> int:
    r"""Bound what a graph holds at once where some blocks compute their activations again.

    .. math:: M(R) = c + \sum_{b \notin R} a_b + \max_{b \in R} a_b

    In the backward pass the activations of one block of R at a time are there again.

    Args:
        blocks: Activations a_b of each block, without its inputs [bytes].
        chosen: Indices R of the blocks that compute again.
        fixed: Inputs of all blocks, and what the network saves outside of them, c [bytes].

    Returns:
        The bound [bytes].

    Examples:
        >>> graph_bytes([40, 30, 20], {0, 1}, fixed=5)
        65
    """
    again = set(chosen)
    alone = sum(size for place, size in enumerate(blocks) if place not in again)
    return fixed + alone + max((blocks[place] for place in again), default=0)


def recomputed(blocks: Sequence[int], *, fixed: int, budget: int) -> frozenset[int]:
    """Choose the blocks that compute their activations again: as few as fit, the largest first.

    Args:
        blocks: Activations of each block, without its inputs [bytes].
        fixed: Inputs of all blocks, and what the network saves outside of them [bytes].
        budget: Memory for all of it [bytes].

    Returns:
        Indices of the blocks: none where everything fits, all where nothing does.

    Examples:
        >>> sorted(recomputed([30, 40, 20], fixed=5, budget=65))
        [0, 1]
    """
    order = sorted(range(len(blocks)), key=lambda place: (-blocks[place], place))
    chosen = (frozenset(order[:count]) for count in range(len(order) + 1))
    fits = (c for c in chosen if graph_bytes(blocks, c, fixed=fixed) <= budget)
    return next(fits, frozenset(order))


def free_bytes(device: torch.device) -> int:
    """Measure the memory that is free.

    Args:
        device: CUDA device, whose memory counts; the machine's counts for any other.

    Returns:
        Memory that this process could take [bytes].

    Examples:
        >>> free_bytes(torch.device("cpu")) > 0
        True
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def activation_budget(free: int, trained: int) -> int:
    """Give the memory that a graph may fill before there are gradients and moments.

    Args:
        free: Free memory [bytes].
        trained: Trainable parameters, which will get a gradient and two moments each [bytes].

    Returns:
        Three quarters of what is left; at least 0 [bytes].

    Examples:
        >>> activation_budget(1000, 200), activation_budget(1000, 400)
        (300, 0)
    """
    return max(0, int(_SHARE * (free - 3 * trained)))


class Recomputation:
    """Choice of the blocks of a network that compute their activations again.

    Before the first call with gradient of each shape, the activations of every block are measured,
    block by block, in one more forward pass that keeps no graph.

    Source:
        Chen et al., arXiv:1604.06174, for activations that are computed again.

    Args:
        network: UNet or flow transformer of diffusers; changed in place.
        budget: Gives the memory for a graph when a shape is first met [bytes].
    """

    def __init__(self, network: Any, budget: Callable[[], int]) -> None:  # noqa: ANN401
        self._network, self._budget = network, budget
        self._choices: dict[Any, frozenset[int]] = {}
        self._ledger: _Ledger | None = None
        self._again: frozenset[int] = frozenset()
        self.blocks = 0
        """Blocks of the last call with gradient."""
        network.enable_gradient_checkpointing(gradient_checkpointing_func=self._call)
        self._hook = network.register_forward_pre_hook(self._choose, with_kwargs=True)

    @property
    def count(self) -> int:
        """Blocks of the last call with gradient that compute again."""
        return len(self._again)

    def remove(self) -> None:
        """Let every block keep its activations, whatever they take."""
        self._hook.remove()
        self._network.disable_gradient_checkpointing()

    def _choose(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() or self._ledger is not None:
            return
        shapes = tuple(_shapes((args, kwargs)))
        if shapes not in self._choices:
            self._ledger = _Ledger(network)
            try:
                with self._ledger.outside():
                    # diffusers takes residuals out of the list that it is given.
                    again_args, again_kwargs = tree_map(lambda leaf: leaf, (args, kwargs))
                    network(*again_args, **again_kwargs)
                names, sizes = list(self._ledger.blocks), list(self._ledger.blocks.values())
                chosen = recomputed(sizes, fixed=self._ledger.fixed, budget=self._budget())
            finally:
                self._ledger = None
            self._choices[shapes] = frozenset(names[place] for place in chosen)
            self.blocks = len(names)
        self._again = self._choices[shapes]

    def _call(self, block: nn.Module, *inputs: Any) -> Any:  # noqa: ANN401
        if self._ledger is not None:
            return self._ledger.measure(block, inputs)
        if id(block) in self._again:
            return checkpoint(block.__call__, *inputs, use_reentrant=False)
        return block(*inputs)


class _Ledger:
    """Bytes that autograd would save in a forward pass, by block; a tensor counts once."""

    def __init__(self, network: nn.Module) -> None:
        present = (*network.parameters(), *network.buffers())
        # A storage stays alive for as long as its index is in use.
        self._seen = {(s := tensor.untyped_storage())._cdata: s for tensor in present}
        self.blocks: dict[int, int] = {}
        self.fixed = 0

    @contextmanager
    def outside(self) -> Any:  # noqa: ANN401
        """Count what is saved outside of blocks."""
        with saved_tensors_hooks(self._count_fixed, _unpack):
            yield

    def measure(self, block: nn.Module, inputs: tuple[Any, ...]) -> Any:  # noqa: ANN401
        """Count what a block saves, and give its outputs without their graph."""
        for tensor in _tensors(inputs):
            self._count_fixed(tensor)
        within: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                within[storage._cdata] = storage
            return tensor

        with saved_tensors_hooks(pack, _unpack):
            outputs = block(*inputs)
        # The next block's inputs; and weights, which the first call may have laid out anew.
        for tensor in (*_tensors(outputs), *block.parameters()):
            within.pop(tensor.untyped_storage()._cdata, None)
        self.blocks[id(block)] = sum(storage.nbytes() for storage in within.values())
        return tree_map(_cut, outputs)

    def _count_fixed(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.fixed += storage.nbytes()
        return tensor


def _unpack(tensor: Tensor) -> Tensor:
    return tensor


def _cut(leaf: Any) -> Any:  # noqa: ANN401
    if not (isinstance(leaf, Tensor) and leaf.requires_grad):
        return leaf
    # A copy, since residuals are added to it in place, which a leaf of a graph would refuse.
    return leaf.detach().requires_grad_().clone()


def _tensors(values: Any) -> list[Tensor]:  # noqa: ANN401
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _shapes(values: Any) -> list[Any]:  # noqa: ANN401
    return [tuple(tensor.shape) for tensor in _tensors(values)]
