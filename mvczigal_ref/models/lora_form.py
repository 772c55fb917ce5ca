"""Choice between a low-rank update that is merged into its weight and one beside it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

__all__ = ["lora_form_count", "merges", "note_form"]

_LAUNCHES = 6
"""Launches that merging spares per call and layer, forward and backward passes together."""

_LAUNCH = {"cpu": 0}
"""Operations of a device in the time of one launch [FLOP]. On a CPU none: of the tiny networks,
whose launches weigh most, merging all took between 0.87 and 1.10 of the time, without order."""

_LAUNCH_OF_A_GPU = 2**28
"""Operations of an accelerator in that time: 5 microseconds at 54 TFLOP/s; not measured [FLOP]."""


class _Notes:
    """Counter of the forms that calls choose, and the device that they choose for."""

    device: str | None = None
    forms: Counter[str] | None = None


def merges(rows: int, weight: Tensor, factor: Tensor, *, device: str = "cpu") -> bool:
    r"""Choose the form of a low-rank update: merged into the weight, or beside it.

    Merging costs :math:`2 r\,m\,n` operations per call, and spares :math:`2 r (m + n)` per token
    and six launches. A weight in half precision would round the update away.

    Args:
        rows: Tokens of the call [tokens].
        weight: Frozen matrix of m times n numbers.
        factor: Matrix A of the update, r rows.
        device: Type of the device, whose launches weigh more or less.

    Returns:
        Whether the merged form is exact and costs less.

    Examples:
        >>> import torch
        >>> weight, factor = torch.empty(8, 8), torch.empty(2, 8)
        >>> merges(4, weight, factor), merges(3, weight, factor)
        (True, False)
        >>> merges(3, weight, factor, device="cuda")
        True
    """
    out, into = weight.shape
    rank = factor.shape[0]
    launches = _LAUNCHES * _LAUNCH.get(device, _LAUNCH_OF_A_GPU)
    spared = 2 * rank * (out + into) * rows + launches
    return weight.dtype == factor.dtype and spared >= 2 * rank * out * into


def note_form(rows: int, weight: Tensor, factor: Tensor, *, layers: int) -> bool:
    """Choose as :func:`merges` for the weight's device, and count the layers that follow it.

    Args:
        rows: Tokens of the call [tokens].
        weight: Frozen matrix of one layer.
        factor: Matrix A of its update.
        layers: Layers that are one product [layers].

    Returns:
        Whether the updates are merged.
    """
    device = weight.device.type
    planned = _Notes.device if device == "meta" else None
    merged = merges(rows, weight, factor, device=planned or device)
    if _Notes.forms is not None:
        _Notes.forms["merged" if merged else "thin"] += layers
    return merged


@contextmanager
def lora_form_count(device: str) -> Iterator[Counter[str]]:
    """Count the forms that network calls choose for their layers.

    Args:
        device: Type of the device for which calls without memory choose.

    Yields:
        Layers by form, "merged" or "thin", two products beside the weight [layers].
    """
    before = _Notes.device, _Notes.forms
    _Notes.device, _Notes.forms = device, Counter()
    try:
        yield _Notes.forms
    finally:
        _Notes.device, _Notes.forms = before
