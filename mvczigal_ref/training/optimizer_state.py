"""State of an optimiser as named tensors and JSON values."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.errors import quoted
from mvczigal_ref.models.saved_parts import local_parts
from mvczigal_ref.training.low_bit import packed, unpacked

__all__ = ["join_optimizer_state", "restore_optimizer", "split_optimizer_state"]


def split_optimizer_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split `optimizer.state_dict()` into tensors and JSON values.

    Args:
        state: State of any torch optimiser that keeps tensors and numbers, such as AdamW.

    Returns:
        Tensors named `<parameter>.<entry>`, those of 8 bits as `<parameter>.<entry>.codes` and
        `.scale`; and the rest.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.AdamW([weight], lr=0.1)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> tensors, rest = split_optimizer_state(optimizer.state_dict())
        >>> sorted(tensors), rest["param_groups"][0]["lr"]
        (['0.exp_avg', '0.exp_avg_sq', '0.step'], 0.1)
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, entries in state["state"].items():
        for entry, value in entries.items():
            name = f"{parameter}.{entry}"
            if isinstance(value, Tensor):
                tensors |= packed(name, value)
            else:
                numbers[name] = value
    groups = [
        {name: _as_json(value) for name, value in group.items()} for group in state["param_groups"]
    ]
    return tensors, {"numbers": numbers, "param_groups": groups}


def join_optimizer_state(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Put back together what :func:`split_optimizer_state` took apart.

    Args:
        tensors: Tensors named `<parameter>.<entry>`.
        rest: The JSON values.

    Returns:
        A state for `optimizer.load_state_dict`.
    """
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*unpacked(tensors).items(), *rest["numbers"].items()]:
        parameter, _, entry = name.partition(".")
        state.setdefault(int(parameter), {})[entry] = value
    groups = [
        # torch keeps AdamW's betas as a pair; JSON knows lists alone.
        {name: tuple(value) if name == "betas" else value for name, value in group.items()}
        for group in rest["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    groups: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    """Put saved moments into an optimiser, once they are seen to fit.

    Args:
        optimizer: Optimiser of the run, as at its beginning; where its parameters are sharded,
            each process takes its part.
        groups: Tensors of a checkpoint; those of "optimizer" are named `<parameter>.<entry>`.
        state: JSON values of the checkpoint.

    Raises:
        ValueError: If groups, numbers of parameters, or shapes of moments differ.
    """
    tensors, rest = groups["optimizer"], state["optimizer"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = local_parts(tensors, {n: parameters[int(n.partition(".")[0])] for n in tensors})
    saved = join_optimizer_state(parts, rest)
    for group, there in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        if "foreach" in there:  # the form of the same arithmetic, which versions choose
            there["foreach"] = group.get("foreach")
    _require_fitting(optimizer, saved)
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):  # as the optimiser wants it
            group["lr"] = torch.full_like(rate, group["lr"])


def _require_fitting(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Refuse an optimiser's state of other parameters."""
    here = optimizer.state_dict()["param_groups"]
    for group, there in zip(here, saved["param_groups"], strict=True):
        kinds = {n: float if isinstance(v, Tensor) else type(v) for n, v in group.items()}
        if group["params"] != there["params"] or kinds != {n: type(v) for n, v in there.items()}:
            msg = f"groups of {len(group['params'])} parameters; got {quoted(there)}"
            raise ValueError(msg)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entries in saved["state"].items():
        shape = parameters[number].shape
        shapes = {"step": torch.Size(()), "exp_avg": shape, "exp_avg_sq": shape}
        got = {n: v.shape if isinstance(v, Tensor) else torch.Size(()) for n, v in entries.items()}
        if got != shapes:
            msg = f"moments of parameter {number} of shape {tuple(shape)}; got {quoted(got)}"
            raise ValueError(msg)


def _as_json(value: Any) -> Any:  # noqa: ANN401 - of any setting
    if isinstance(value, Tensor):
        return float(value)
    return list(value) if isinstance(value, tuple) else value
