"""AdamW whose moments have 8 bits per number, from torchao, an optional package."""

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.errors import ConfigError

__all__ = ["adamw_8bit", "check_optimizer", "packed", "unpacked"]

_BLOCK = 256  # numbers that share a scale
_PARTS = ("codes", "scale")


def check_optimizer(config: TrainConfig) -> None:
    """Refuse an optimiser that could not be made or saved, before anything is loaded.

    Args:
        config: The run.

    Raises:
        ConfigError: If torchao is needed and not installed; or if moments of 8 bits would be in
            parts, which no other number of processes could read.

    Examples:
        >>> check_optimizer(TrainConfig())
    """
    if config.optim.kind != "adamw8bit":
        return
    if importlib.util.find_spec("torchao") is None:
        msg = (
            '`optim.kind` = "adamw8bit" needs the package torchao, which is not installed. Run '
            '`pip install -e ".[lowbit]"`, or choose "adamw".'
        )
        raise ConfigError(msg)
    if config.run.sharding == "full" and config.model.finetune == "full":
        msg = (
            '`optim.kind` must be "adamw" where `run.sharding` and `model.finetune` are "full"; '
            'got "adamw8bit". Blocks of 8 bits of one part cannot be cut anew for another number '
            "of processes: train a LoRA, or leave the weights whole."
        )
        raise ConfigError(msg)


def adamw_8bit(parameters: Sequence[Tensor], **numbers: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    """Make an AdamW whose moments are kept in blocks of 256 numbers of 8 bits and one scale.

    Moments of tensors of fewer than 4096 numbers, or of a number that 256 does not divide, stay in
    fp32. Steps are computed in fp32; on a CPU they are not compiled.

    Source:
        Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861.

    Args:
        parameters: Trainable parameters.
        **numbers: Rate, betas, eps and weight decay.

    Returns:
        An optimiser without moments.
    """
    with _quiet():
        from torchao.optim import AdamW8bit

    class Eager(AdamW8bit):
        def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
            with torch.compiler.set_stance("force_eager"):
                return super().step(closure)

    on_cpu = all(p.device.type == "cpu" for p in parameters)
    optimizer: torch.optim.Optimizer = (Eager if on_cpu else AdamW8bit)(
        list(parameters), block_size=_BLOCK, **numbers
    )
    return optimizer


def packed(name: str, moment: Tensor) -> dict[str, Tensor]:
    """Give a moment as the plain tensors that a file holds.

    Args:
        name: Name of the moment.
        moment: Plain tensor, or one of 8 bits.

    Returns:
        The moment by its name; or its codes and scales, bit for bit.

    Examples:
        >>> packed("0.step", torch.ones(()))
        {'0.step': tensor(1.)}
    """
    if not hasattr(moment, "codes"):
        return {name: moment}
    return {f"{name}.{part}": getattr(moment, part) for part in _PARTS}


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put together what :func:`packed` took apart.

    Args:
        tensors: Plain tensors by name.

    Returns:
        Moments by name.

    Raises:
        ValueError: If codes and scales do not fit.
    """
    moments = {n: t for n, t in tensors.items() if n.rpartition(".")[2] not in _PARTS}
    for name in [n for n in tensors if n.endswith(".codes")]:
        with _quiet():
            from torchao.optim.subclass_8bit import OptimState8bit
        moment, codes = name.removesuffix(".codes"), tensors[name]
        scale = tensors[f"{moment}.scale"]
        if codes.dtype != torch.uint8 or scale.shape != (codes.numel() // _BLOCK,):
            msg = f"codes and scales of {moment!r} in blocks of {_BLOCK} numbers"
            raise ValueError(msg)
        whole = OptimState8bit.zeros(
            codes.shape, signed=moment.endswith("exp_avg"), block_size=_BLOCK
        )
        whole.codes.copy_(codes)
        whole.scale.copy_(scale)
        moments[moment] = whole
    return moments


def _quiet() -> AbstractContextManager[Any]:
    """Ignore what the package warns of while it is imported."""
    return warnings.catch_warnings(action="ignore")
