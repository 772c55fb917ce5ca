"""Values that network calls share, computed once while the tensors that they come from stay."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["memo", "memo_scope"]

Value = TypeVar("Value")


class _Entry(NamedTuple):
    """A value, with the tensors that it came from, so that no other tensor gets their memory."""

    stamp: list[Any]
    sources: Sequence[Tensor]
    value: Any


class _Memory(threading.local):
    """Entries of a thread's present scope by owner; None outside of all scopes."""

    entries: dict[tuple[int, str], _Entry] | None = None


_MEMORY = _Memory()


@contextmanager
def memo_scope() -> Iterator[None]:
    """Let calls of a network share values inside; they are dropped at the end.

    Other threads, such as that in which a GPU computes activations again, share nothing of it.

    Yields:
        Nothing.
    """
    before = _MEMORY.entries
    _MEMORY.entries = {} if before is None else before
    try:
        yield
    finally:
        _MEMORY.entries = before


def memo(
    owner: object, name: str, sources: Sequence[Tensor], compute: Callable[[], Value]
) -> Value:
    """Compute a value, or return that of an earlier call in the same scope of :func:`memo_scope`.

    A change in place raises torch's version of a tensor, and another tensor has another address.
    torch's fused optimisers leave the version as it was: whoever steps one calls
    :func:`torch.autograd.graph.increment_version`.

    Args:
        owner: Layer that asks; it outlives the scope.
        name: Name of the value, for an owner of several.
        sources: Tensors that the value comes from, all of them.
        compute: Gives the value.

    Returns:
        The value.

    Examples:
        >>> owner, source = object(), torch.ones(1)
        >>> with memo_scope():
        ...     first = memo(owner, "double", [source], lambda: source * 2)
        ...     again = memo(owner, "double", [source], lambda: source * 2)
        ...     changed = memo(owner, "double", [source.add_(1)], lambda: source * 2)
        >>> first is again, changed
        (True, tensor([4.]))
    """
    entries = _MEMORY.entries
    if entries is None or torch.is_inference_mode_enabled():
        return compute()
    key, stamp = (id(owner), name), _stamp(sources)
    entry = entries.get(key)
    if entry is None or entry.stamp != stamp:
        value = compute()
        # Computing may lay sources out anew.
        entry = entries[key] = _Entry(_stamp(sources), tuple(sources), value)
    result: Value = entry.value
    return result


def _stamp(tensors: Sequence[Tensor]) -> list[Any]:
    """Give what tells a tensor's present values from others.

    A tensor that wraps another has no address of its own, but an identity.
    """
    parts = ((id(t), t.data_ptr(), t._version, t.shape, t.stride()) for t in tensors)
    return list(parts)
