"""Mapped weights: tensors that a library reads from a file page by page, cast one after another."""

import ctypes
import mmap
import os
from collections import Counter
from typing import Any

import torch
from torch import Tensor

__all__ = ["cast_as_read", "cast_mapped", "forget", "keeps_fp32"]


def cast_mapped(network: Any, dtype: torch.dtype) -> None:  # noqa: ANN401 - untyped libraries
    """Cast what a network has of its file, so that no two copies of it are ever in memory.

    Args:
        network: Network that a library has just read in the type of its file; nothing else holds
            its tensors. Buffers that no file holds keep their type.
        dtype: Floating type of the result.
    """
    tensors = {id(t): t for t in network.state_dict(keep_vars=True).values()}
    users = Counter(tensor.data_ptr() for tensor in tensors.values())
    for tensor in tensors.values():
        if tensor.is_floating_point() and tensor.dtype != dtype:
            old = tensor.data
            tensor.data = old.to(dtype)
            if users[old.data_ptr()] == 1:
                forget(old)
    if hasattr(network.config, "dtype"):
        network.config.dtype = dtype


def cast_as_read(network: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401 - untyped libraries
    """Cast a network to the types that its library would give it when it reads it.

    Args:
        network: Network of transformers, changed in place.
        dtype: Floating type of all but the parts that the library keeps in fp32.

    Returns:
        The network.
    """
    network.to(dtype)
    wide = network._keep_in_fp32_modules if keeps_fp32(type(network), dtype) else ()
    for name, part in network.named_modules():
        if name.rpartition(".")[2] in wide:
            part.to(torch.float32)
    return network


def forget(tensor: Tensor) -> None:
    """Give the pages of a tensor back to the system, if it can; its values are lost.

    Args:
        tensor: Tensor in the memory of the host that nothing reads any more.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None) if os.name == "posix" else None
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (tensor.data_ptr() + tensor.nbytes - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    if advise is not None and size > 0 and tensor.is_contiguous():
        advise(ctypes.c_void_p(begin), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def keeps_fp32(kind: Any, dtype: torch.dtype) -> bool:  # noqa: ANN401 - untyped libraries
    """Tell whether a library keeps parts of a network in fp32 where the others have a type.

    Then the library has to cast as it reads, and memory holds the file and the network together.

    Args:
        kind: Class of the network.
        dtype: Floating type of the others.

    Returns:
        Whether it does: transformers in fp16 alone, but for what is marked as strict.
    """
    strict = getattr(kind, "_keep_in_fp32_modules_strict", None) or hasattr(kind, "load_config")
    half = {torch.float16, torch.bfloat16} if strict else {torch.float16}
    marked = getattr(kind, "_keep_in_fp32_modules", None) or (strict is not True and strict)
    return bool(marked) and dtype in half
