"""Hypothesis strategies for log-ratios, rewards and their shapes."""

import math

import torch
from hypothesis import strategies as st

__all__ = ["pair_rewards", "same_shape", "vectors"]


def vectors(size: int, *, low: float, high: float) -> st.SearchStrategy[torch.Tensor]:
    """Draw one fp64 vector."""
    number = st.floats(low, high, allow_subnormal=False)
    return st.lists(number, min_size=size, max_size=size).map(
        lambda values: torch.tensor(values, dtype=torch.float64)
    )


@st.composite
def same_shape(draw, count, *, low=-2.0, high=2.0, max_ndim=3):
    """Draw ``count`` fp64 tensors of one shape, of any rank from 0."""
    shape = draw(st.lists(st.integers(1, 3), max_size=max_ndim))
    numbers = vectors(math.prod(shape), low=low, high=high)
    return [draw(numbers).reshape(shape) for _ in range(count)]


@st.composite
def pair_rewards(draw, *, low=-20.0, high=20.0):
    """Draw the four reward tables of a pair as keyword arguments."""
    objects, views = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    per_view = vectors(objects * views, low=low, high=high).map(lambda x: x.reshape(objects, views))
    joint = vectors(objects, low=low, high=high)
    return {
        "per_view_zigzag": draw(per_view),
        "per_view_standard": draw(per_view),
        "joint_view_zigzag": draw(joint),
        "joint_view_standard": draw(joint),
    }
