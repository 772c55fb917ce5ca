"""How fast a device multiplies matrices: the rate that other measurements are shares of."""

import statistics
from dataclasses import dataclass
from time import perf_counter

import torch

__all__ = ["MatrixRate", "matrix_rate"]


@dataclass(frozen=True, kw_only=True)
class MatrixRate:
    """Measured on one device in one dtype."""

    flops: float
    """Median over the repeats [FLOP/s]."""
    spread: float
    """Largest minus smallest repeat over the median [1]."""
    size: int
    """Edge of the square matrices [1]."""
    repeats: int
    """Measurements [1]."""


def matrix_rate(
    device: torch.device, dtype: torch.dtype, *, size: int, repeats: int = 7, calls: int = 10
) -> MatrixRate:
    """Multiply square matrices; one product is 2 size^3 operations."""
    generator = torch.Generator(device).manual_seed(0)
    # Values as in a network: products of zeros draw less power, and clocks rise.
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    rates = []
    for index in range(repeats + 1):
        _wait(device)
        start = perf_counter()
        for _ in range(calls):
            torch.matmul(a, b, out=out)
        _wait(device)
        if index:  # the first is the warm-up
            rates.append(2 * size**3 * calls / (perf_counter() - start))
    median = statistics.median(rates)
    return MatrixRate(
        flops=median, spread=(max(rates) - min(rates)) / median, size=size, repeats=repeats
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
