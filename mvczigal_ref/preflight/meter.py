"""Meter of FLOPs and of the bytes that are alive, operator by operator."""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["Meter", "storage_bytes"]


class Meter(TorchDispatchMode):
    """Count FLOPs, and follow the bytes of every storage from its making to its end.

    Storages of ``present`` tensors, and views of any, cost nothing. Works on real tensors and on
    the meta device alike; what a library takes for itself, such as a convolution's workspace, is
    not seen.

    Args:
        present: Tensors that were there before.

    Examples:
        >>> a = torch.empty(4, 8, device="meta")
        >>> with Meter([a]) as meter:
        ...     b = a @ a.T
        >>> meter.flops, meter.live, meter.peak
        (256, 64, 64)
    """

    def __init__(self, present: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.flops = self.flops_recomputed = 0
        # These storages stay alive for as long as they live, so that no index is given twice.
        self._before = {(s := t.untyped_storage())._cdata: s for t in present}
        self._held: dict[int, tuple[int, Any]] = {}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run an operator and look at what it made."""
        named = kwargs or {}
        result = func(*args, **named)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            flops = int(count(*args, **named, out_val=result))
            self.flops += flops
            # Checkpoints alone watch what is saved, while they compute it once more.
            if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
                self.flops_recomputed += flops
        for output in result if isinstance(result, tuple | list) else (result,):
            if isinstance(output, Tensor):
                self._see(output.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        index = storage._cdata
        if index in self._before or index in self._held:
            return

        def gone(_: object) -> None:
            self.live -= self._held.pop(index)[0]

        self._held[index] = (storage.nbytes(), weakref.ref(storage, gone))
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Add up the memory behind tensors, shared memory once.

    Args:
        tensors: Tensors on any device.

    Returns:
        Memory [bytes].

    Examples:
        >>> a = torch.zeros(4, 2)
        >>> storage_bytes([a, a.T, a[1:]])
        32
    """
    storages = {(s := t.untyped_storage())._cdata: s for t in tensors}
    return sum(storage.nbytes() for storage in storages.values())
