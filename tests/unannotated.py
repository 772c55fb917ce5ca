"""Run a function as a user's program does: without the shape checks that pytest installs."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import config

__all__ = ["without_shape_checks"]


@contextmanager
def without_shape_checks() -> Iterator[None]:
    """Let a badly shaped or typed argument reach the function's own checks."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)
