"""System: networks, sampler and scorers of a run, built from its configuration.

A name is imported when it is first used: cameras, sources and settings are read without diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvczigal_ref.system.networks import DTYPES as DTYPES
    from mvczigal_ref.system.system import System as System
    from mvczigal_ref.system.system import build_system as build_system
    from mvczigal_ref.system.system import with_sampling as with_sampling

__all__ = ["DTYPES", "System", "build_system", "with_sampling"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module holds
    """Import a public name when it is first asked for."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    home = import_module(f"{__name__}.{'networks' if name == 'DTYPES' else 'system'}")
    return getattr(home, name)
