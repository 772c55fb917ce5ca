"""A device to test with where there is no GPU: the CPU's arithmetic, behind the walls of a GPU.

A tensor of the device ``pretend`` holds a CPU tensor that computes for it, so every number is the
CPU's to the bit. What an operation may take together is CUDA's rule:

* tensors of one device, or beside them CPU tensors without dimensions where it works elementwise;
* indices of the CPU or of its own into a tensor of the device, indices of the CPU alone into one
  of the CPU;
* copies between any two;
* no generator of the CPU, no matrix product of integers, no view as an array of NumPy.

PyTorch has one place for a device of this kind, for the whole process and for ever, and counts the
devices before its first backward pass: :func:`install` is for processes that do nothing else.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_iter, tree_map

__all__ = ["NAME", "PretendTensor", "install", "on_the_cpu"]

NAME = "pretend"
"""What `torch.device` calls it."""

_CPU = torch.device("cpu")
_MOVES = {"_to_copy", "copy_", "_copy_from", "_local_scalar_dense", "set_data"}
"""Operations that lead from one device to another."""

_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operations whose second argument lists indices, or None, one a dimension."""

_TAKES_NUMBERS = {"masked_fill", "masked_fill_", "fill_", "index_fill", "index_fill_"}
"""Operations, not elementwise in every argument, that read a tensor without dimensions."""

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot"}
_MATH_ATTENTION = 0
"""Attention from matrix products, of the implementations that PyTorch chooses from."""

_libraries: list[torch.library.Library] = []  # kernels are forgotten with their library


class PretendTensor(torch.Tensor):
    """A tensor of the device, and the CPU tensor that computes for it."""

    inner: Tensor
    """The numbers: same shape, strides and dtype."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendTensor":
        """Put a CPU tensor behind the wall; both share memory."""
        outer = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=torch.device(NAME, 0),
        )  # fmt: skip
        outer.inner = inner
        return outer

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), named=None):
        """Compute on the CPU what a GPU would, and refuse what it would refuse."""
        return _computed(operation, arguments, named or {})

    @property
    def data(self) -> Tensor:
        """The tensor without its history, as everywhere."""
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: "PretendTensor") -> None:
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def tolist(self) -> Any:
        """Give the numbers as lists, as every device does."""
        return on_the_cpu(self.detach()).tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refuse, as CUDA: the numbers are not in the CPU's memory."""
        if force:
            return on_the_cpu(self.detach()).numpy()
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )

    def __array__(self, dtype=None) -> Any:
        """Refuse, as CUDA."""
        return self.numpy()

    def __repr__(self, **options: Any) -> str:
        return f"{self.inner!r} on {NAME}"


def on_the_cpu(tensor: Tensor) -> Tensor:
    """Copy a tensor of any device to the CPU."""
    return tensor.to(_CPU)


def _computed(operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Do one operation on the tensors behind the wall."""
    name = operation._schema.name.partition("::")[2]
    if name == "_fused_sdp_choice":
        return _MATH_ATTENTION
    if name == "is_pinned":
        return False
    _refuse_other_devices(operation, name, arguments, named)
    _refuse_missing_kernels(name, arguments, named)
    goal = _goal(operation, arguments, named)
    if goal == NAME and named.get("device") is not None:
        named = {**named, "device": _CPU}
    if named.get("pin_memory"):
        named = {**named, "pin_memory": False}
    result = operation(*tree_map(_inner, arguments), **tree_map(_inner, named))
    given = {id(_inner(tensor)): tensor for tensor in _tensors(arguments)}  # `out` may have grown
    return tree_map(lambda value: _outer(value, given, goal), result)


def _goal(operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
    """Name the type of the device that the results are on."""
    if named.get("device") is not None:
        return torch.device(named["device"]).type
    changed = arguments[0] if operation._schema.is_mutable and arguments else None
    if isinstance(changed, Tensor):
        return changed.device.type
    used = _tensors(arguments, named)
    return NAME if any(isinstance(tensor, PretendTensor) for tensor in used) else "cpu"


def _outer(value: Any, given: dict[int, Tensor], goal: str) -> Any:
    """Give a result as its caller knows it: what was changed in place is the same object."""
    if not isinstance(value, Tensor):
        return value
    if id(value) in given:
        known = given[id(value)]
        if known.shape != value.shape or known.stride() != value.stride():
            raise NotImplementedError(f"the device {NAME!r} changes no tensor's shape in place")
        return known
    return PretendTensor(value) if goal == NAME and value.device == _CPU else value


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, PretendTensor) else value


def _tensors(*values: Any) -> Iterator[Tensor]:
    return (value for value in tree_iter(values) if isinstance(value, Tensor))


def _refuse_other_devices(
    operation: Any, name: str, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Refuse tensors of two devices where CUDA does."""
    used = list(_tensors(arguments, named))
    strange = [tensor for tensor in used if not isinstance(tensor, PretendTensor)]
    if name in _MOVES or not strange or len(strange) == len(used):
        return
    changed = arguments[0]
    if name in _INDEXED:
        if not isinstance(changed, PretendTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        indices = {id(index) for index in arguments[1] if index is not None}
        strange = [tensor for tensor in strange if id(tensor) not in indices]
    takes_numbers = (
        torch.Tag.pointwise in operation.tags or name in _TAKES_NUMBERS or name in _INDEXED
    )
    in_place = operation._schema.is_mutable and not isinstance(changed, PretendTensor)
    if in_place or any(tensor.ndim > 0 or not takes_numbers for tensor in strange):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu! (when checking the arguments of {name})"
        )


def _refuse_missing_kernels(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Refuse what the CPU computes and CUDA does not."""
    first = next((tensor for tensor in _tensors(arguments, named)), None)
    if not isinstance(first, PretendTensor):
        return
    generator = named.get("generator")
    if generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    if name in _PRODUCTS and not (first.is_floating_point() or first.is_complex()):
        raise RuntimeError(f'"{name}_{NAME}" not implemented for {first.dtype}')


def install() -> torch.device:
    """Make the device known to PyTorch.

    Returns:
        The device, without an index, as a user names it.

    Raises:
        RuntimeError: If this process has computed a gradient before.

    """
    if not _libraries:
        backend_registration._setup_privateuseone_for_python_backend(
            NAME, backend_module=_device_module()
        )
        library = torch.library.Library("aten", "IMPL")
        library.impl("empty.memory_format", _empty, "PrivateUse1")
        library.impl("empty_strided", _empty_strided, "PrivateUse1")
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        library.impl("silu_backward", _silu_backward, "PrivateUse1")
        _libraries.append(library)
    try:
        torch.ones(1, device=NAME, requires_grad=True).sum().backward()
    except RuntimeError as error:
        raise RuntimeError(
            f"the device {NAME!r} needs a process that has computed no gradient before it; run "
            "`pytest tests/pretend` alone"
        ) from error
    return torch.device(NAME)


def _device_module() -> SimpleNamespace:
    """What `torch.pretend` offers, of what libraries ask a device's module for."""
    return SimpleNamespace(
        is_initialized=lambda: True,
        is_available=lambda: True,
        is_built=lambda: True,
        _is_in_bad_fork=lambda: False,
        device_count=lambda: 1,
        current_device=lambda: 0,
        manual_seed_all=lambda seed: None,
        get_rng_state=lambda device=None: torch.empty(0, dtype=torch.uint8),
        set_rng_state=lambda state, device=None: None,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
    )


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    """Make an uninitialised tensor of the device."""
    memory_format = memory_format or torch.contiguous_format
    return PretendTensor(torch.empty(size, dtype=dtype, device=_CPU, memory_format=memory_format))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    """Make an uninitialised tensor of the device with these strides."""
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype, device=_CPU))


def _copy_from(source, goal, non_blocking=False):
    """Copy where PyTorch makes a tensor out of Python's numbers."""
    _inner(goal).copy_(_inner(source))
    return goal


def _silu_backward(gradient, value):
    """Differentiate as CPU and CUDA do, at once: other devices compute it from its parts."""
    return PretendTensor(torch.ops.aten.silu_backward(_inner(gradient), _inner(value)))
