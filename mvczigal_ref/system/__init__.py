"""System: networks, sampler and scorers of a run, built from its configuration."""

from mvczigal_ref.system.networks import DTYPES
from mvczigal_ref.system.system import System, build_system, with_sampling

__all__ = ["DTYPES", "System", "build_system", "with_sampling"]
