"""Methods: the only code between the configuration and the stages, one file per family."""

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.method import forward, groups, pairs
from mvczigal_ref.method.protocol import Method

__all__ = ["method_of"]


def method_of(config: TrainConfig) -> Method:
    """Choose the family of an objective.

    Args:
        config: ``objective.kind`` is read.

    Returns:
        Pairs (MVC-ZigAL, RDL, DPO), groups (GRPO, MV-GRPO) or the forward process (DiffusionNFT).

    Examples:
        >>> method_of(TrainConfig()).__name__
        'mvczigal_ref.method.pairs'
    """
    if config.objective.compares_pairs:
        return pairs
    return forward if config.objective.kind == "forward_process" else groups
