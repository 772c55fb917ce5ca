"""A device to test with where there is no GPU: the CPU's arithmetic, behind the walls of a GPU.

A tensor of the device ``pretend`` holds a CPU tensor that computes for it, so every number is the
CPU's to the bit. What an operation may take together is CUDA's rule:

* tensors of one device, or beside them CPU tensors without dimensions where it works elementwise;
* indices of the CPU or of its own into a tensor of the device, indices of the CPU alone into one
  of the CPU;
* copies between any two;
* no generator of the CPU, no matrix product of integers, no view as an array of NumPy;
* with `PRETEND_WITHOUT_DOUBLES` in the environment, no float64, as on Apple's MPS.

PyTorch has one place for a device of this kind, for the whole process and for ever, and counts the
devices before its first backward pass: :func:`install` is for processes that do nothing else.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

__all__ = ["NAME", "PretendTensor", "install", "on_the_cpu"]

NAME = "pretend"
"""What `torch.device` calls it."""

WITHOUT_DOUBLES = bool(os.environ.get("PRETEND_WITHOUT_DOUBLES"))
"""Whether it refuses float64, as Apple's MPS does."""

_CPU = torch.device("cpu")
_MOVES = {"_to_copy", "copy_", "_copy_from", "_local_scalar_dense", "set_data"}
"""Operations that lead from one device to another."""

_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operations whose second argument lists indices, or None, one per dimension."""

_TAKES_NUMBERS = {"masked_fill", "masked_fill_", "fill_", "index_fill", "index_fill_"}
"""Operations, not elementwise in every argument, that read a tensor without dimensions."""

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot"}
_MATH_ATTENTION = 0
"""Attention from matrix products, of the implementations that PyTorch chooses from."""

_RANGES = ("arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m", "randperm")
"""Tensors from numbers that PyTorch makes by growing an empty one in place."""

_libraries: list[torch.library.Library] = []  # kernels are forgotten with their library


class PretendTensor(torch.Tensor):
    """A tensor of the device, and the CPU tensor that computes for it."""

    inner: Tensor
    """The numbers: same shape, strides and dtype."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendTensor":
        """Put a CPU tensor behind the wall; both share memory."""
        if WITHOUT_DOUBLES and inner.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"Cannot convert a {NAME} Tensor to {inner.dtype}: it has no doubles.")
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

    def untyped_storage(self) -> torch.UntypedStorage:
        """Give the memory behind the wall, by which libraries tell which tensors share theirs."""
        return self.inner.untyped_storage()

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


@dataclass(frozen=True, slots=True)
class _Rules:
    """Facts about one operation."""

    name: str
    moves: bool
    """Whether it leads from one device to another."""
    indexes: bool
    """Whether its second argument lists indices, or None, one per dimension."""
    takes_numbers: bool
    """Whether a CPU tensor without dimensions counts as a number."""
    in_place: bool
    """Whether it changes its first argument."""


@cache
def _rules(operation: torch._ops.OpOverload) -> _Rules:
    """Read an operation's schema, once."""
    schema = operation._schema
    name = schema.name.partition("::")[2]
    first = schema.arguments[0].alias_info if schema.arguments else None
    indexes = name in _INDEXED
    pointwise = torch.Tag.pointwise in operation.tags
    return _Rules(
        name=name,
        moves=name in _MOVES,
        indexes=indexes,
        takes_numbers=indexes or pointwise or name in _TAKES_NUMBERS,
        in_place=first is not None and first.is_write,
    )


def _computed(operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Do one operation on the tensors behind the wall."""
    rules = _rules(operation)
    if rules.name == "_fused_sdp_choice":
        return _MATH_ATTENTION
    if rules.name == "is_pinned":
        return False
    used: list[Tensor] = []
    inside = _inner(arguments, used)
    inside_named = dict(zip(named, _inner(named.values(), used), strict=True))
    _refuse_other_devices(rules, arguments, used)
    _refuse_missing_kernels(rules, named, used)
    goal = _goal(rules, arguments, named, used)
    if goal == NAME and named.get("device") is not None:
        inside_named["device"] = _CPU
    if named.get("pin_memory"):
        inside_named["pin_memory"] = False
    result = operation(*inside, **inside_named)
    if isinstance(result, list | tuple):
        return type(result)(_outer(value, used, goal) for value in result)
    return _outer(result, used, goal)


def _goal(
    rules: _Rules, arguments: tuple[Any, ...], named: dict[str, Any], used: list[Tensor]
) -> str:
    """Name the type of the device that the results are on."""
    if named.get("device") is not None:
        return torch.device(named["device"]).type
    if rules.in_place:  # of a tensor, or of each of a list
        first = arguments[0]
        return (first[0] if isinstance(first, list) else first).device.type
    return NAME if any(isinstance(tensor, PretendTensor) for tensor in used) else "cpu"


def _inner(values: Iterable[Any], used: list[Tensor]) -> list[Any]:
    """Give arguments as the CPU computes with them, and gather their tensors."""
    inside = []
    for value in values:
        if isinstance(value, Tensor):
            used.append(value)
            inside.append(value.inner if isinstance(value, PretendTensor) else value)
        elif isinstance(value, list | tuple):
            inside.append(_inner(value, used))
        else:
            inside.append(value)
    return inside


def _outer(value: Any, used: list[Tensor], goal: str) -> Any:
    """Give a result as its caller knows it: what was changed in place is the same object."""
    if not isinstance(value, Tensor):
        return value
    for tensor in used:
        if value is (tensor.inner if isinstance(tensor, PretendTensor) else tensor):
            if tensor.shape != value.shape or tensor.stride() != value.stride():
                raise NotImplementedError(f"the device {NAME!r} changes no shape in place")
            return tensor
    return PretendTensor(value) if goal == NAME and value.device == _CPU else value


def _refuse_other_devices(rules: _Rules, arguments: tuple[Any, ...], used: list[Tensor]) -> None:
    """Refuse tensors of two devices where CUDA does."""
    strange = [tensor for tensor in used if not isinstance(tensor, PretendTensor)]
    if rules.moves or not strange or len(strange) == len(used):
        return
    first = arguments[0]
    if rules.indexes:
        if not isinstance(first, PretendTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        indices = {id(index) for index in arguments[1] if index is not None}
        strange = [tensor for tensor in strange if id(tensor) not in indices]
    elsewhere = rules.in_place and not isinstance(first, PretendTensor)
    if elsewhere or any(tensor.ndim > 0 or not rules.takes_numbers for tensor in strange):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu! (when checking the arguments of {rules.name})"
        )


def _refuse_missing_kernels(rules: _Rules, named: dict[str, Any], used: list[Tensor]) -> None:
    """Refuse what the CPU computes and CUDA does not."""
    if not used or not isinstance(used[0], PretendTensor):
        return
    generator = named.get("generator")
    if generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    if rules.name in _PRODUCTS and not (used[0].is_floating_point() or used[0].is_complex()):
        raise RuntimeError(f'"{rules.name}_{NAME}" not implemented for {used[0].dtype}')


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
        library.impl("_local_scalar_dense", _number, "PrivateUse1")
        library.impl("silu_backward", _silu_backward, "PrivateUse1")
        for name in _RANGES:
            library.impl(name, partial(_range, name), "PrivateUse1")
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


def _range(name, *numbers, device=None, **options):
    """Make a range of numbers on the CPU, and put it behind the wall."""
    operation, _, overload = name.partition(".")
    make = getattr(getattr(torch.ops.aten, operation), overload or "default")
    return PretendTensor(make(*numbers, device=_CPU, **options))


def _copy_from(source, goal, non_blocking=False):
    """Copy where PyTorch makes a tensor out of Python's numbers."""
    (to, what) = _inner([goal, source], [])
    to.copy_(what)
    return goal


def _number(tensor):
    """Read one number, where PyTorch makes a tensor out of tensors of one."""
    return tensor.inner.item()


def _silu_backward(gradient, value):
    """Differentiate as CPU and CUDA do, at once: other devices compute it from its parts."""
    return PretendTensor(torch.ops.aten.silu_backward(gradient.inner, value.inner))
