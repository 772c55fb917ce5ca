"""Rollout ahead: an iteration's samples, drawn while those of the one before are judged."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mvczigal_ref.records import Samples

__all__ = ["Ahead"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """Rollout of the next iteration by the behaviour policy, the one before the last update.

    Noise and prompts are functions of the seed and the iteration, so that the behaviour policy is
    all that a checkpoint keeps of it: after a resume the same samples are drawn again.
    """

    behaviour: dict[str, Tensor]
    """Trainable parameters of the behaviour policy."""

    samples: Sequence[Samples] = ()
    """Samples of this process's slices; none where they are still to be drawn."""

    rows: int = 0
    """Rows of the network calls that drew them [latents]."""
