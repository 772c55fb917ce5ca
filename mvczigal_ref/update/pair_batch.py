"""Pairs that are replayed together."""

from dataclasses import dataclass
from typing import NamedTuple

from mvczigal_ref.policy import Conditioning
from mvczigal_ref.records import PairedRollout
from mvczigal_ref.shapes import PerViewReward
from mvczigal_ref.update.replay import StepLogProb

__all__ = ["PairBatch", "PairedLogProb"]


class PairedLogProb(NamedTuple):
    """Log-densities of both arms' actions under one policy."""

    zigzag: StepLogProb
    """Those of the first arm [nats or nats/element]."""

    standard: StepLogProb
    """Those of the second arm [nats or nats/element]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """Pairs that are replayed together: one slice of objects."""

    rollout: PairedRollout
    """Both arms of every pair."""

    conditioning: Conditioning
    """Text and cameras of the same objects."""

    advantage_gap: PerViewReward
    """Advantage of the zigzag arm minus that of the standard arm [1]."""

    first_object: int
    """Index of the first object within the iteration, for messages."""

    reference: PairedLogProb | None = None
    """Log-densities of both arms' actions under a frozen policy that the objective's ratios are
    over, one entry per step of the trajectories; None leaves the policy that sampled."""

    def objects(self, index: slice) -> "PairBatch":
        """Narrow to some objects.

        Args:
            index: Objects, as a slice of the object axis with step 1.

        Returns:
            A record of views onto the same memory.
        """
        first = range(self.advantage_gap.shape[0])[index].start
        return PairBatch(
            rollout=self.rollout.objects(index),
            conditioning=self.conditioning.objects(index),
            advantage_gap=self.advantage_gap[index],
            first_object=self.first_object + first,
            reference=None
            if self.reference is None
            else PairedLogProb(*(scores[:, index] for scores in self.reference)),
        )
