"""What counts as equal to a reference value."""

import torch
from torch import Tensor

FP64 = 1e-12
"""Relative error that reordered float64 arithmetic may leave."""

FP32 = 2e-6
"""Relative error that float32 arithmetic may leave: some 16 units in the last place."""


def assert_equal_to(actual: Tensor, expected: Tensor, relative: float, *, axes: int = 0) -> None:
    """Fail unless shapes and dtypes agree and the error is small against the reference.

    An entry is measured against its own size, or with ``axes`` against the largest of its last
    ``axes`` axes: where terms of one latent cancel, an entry near zero keeps their rounding.
    """
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert actual.dtype == expected.dtype, (actual.dtype, expected.dtype)
    scale = expected.detach().abs()
    if axes:
        scale = scale.amax(dim=tuple(range(-axes, 0)), keepdim=True)
    error = (actual - expected).detach().abs()
    # Written so that a NaN on either side fails.
    wrong = ~(error <= relative * scale)
    worst = (error / scale).nan_to_num(nan=torch.inf).max() if error.numel() else 0.0
    assert not wrong.any(), f"{int(wrong.sum())} entries beyond {relative}; worst {worst}"
