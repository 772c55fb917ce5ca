"""What a run will take, before anything is downloaded: calls, FLOPs and memory from shapes alone.

Networks are laid out on the meta device, where tensors have shapes and no memory, and the
functions that train are run on them while every operator is counted.
"""

from mvczigal_ref.planning.estimate import plan
from mvczigal_ref.planning.records import Calls, Flops, Memory, Parameters, Plan

__all__ = ["Calls", "Flops", "Memory", "Parameters", "Plan", "plan"]
