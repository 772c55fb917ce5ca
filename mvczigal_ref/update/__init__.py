"""Stage 5: replay stored actions with gradients, and change the parameters.

The two arms of a pair never hold two graphs: the loss needs the other arm's
log-probability as a number alone, so each arm is replayed, multiplied by its
factor and sent backward before the next is built. A group's samples are replayed
decision by decision, under each of its conditions.
"""

from mvczigal_ref.update.forward import (
    ForwardBatch,
    ForwardObjective,
    NoisedSamples,
    update_forward,
)
from mvczigal_ref.update.group_batch import GroupBatch, GroupObjective, ReplayedDecision
from mvczigal_ref.update.groups import update_groups
from mvczigal_ref.update.loop import (
    GradientStats,
    Microbatch,
    check_on_policy,
    optimizer_step,
    update_parameters,
)
from mvczigal_ref.update.loss_scale import LossScale, loss_scale_step
from mvczigal_ref.update.pair_batch import PairBatch, PairedLogProb
from mvczigal_ref.update.pairs import (
    PairGradients,
    PairObjective,
    accumulate_pairs,
    update_policy,
)
from mvczigal_ref.update.parameters import follow_parameters, mixed_parameters
from mvczigal_ref.update.replay import (
    GroupUpdateSettings,
    ReplaySettings,
    UpdateSettings,
    decision_under,
    replay_decision,
    replay_log_prob,
)

__all__ = [
    "ForwardBatch",
    "ForwardObjective",
    "GradientStats",
    "GroupBatch",
    "GroupObjective",
    "GroupUpdateSettings",
    "LossScale",
    "Microbatch",
    "NoisedSamples",
    "PairBatch",
    "PairGradients",
    "PairObjective",
    "PairedLogProb",
    "ReplaySettings",
    "ReplayedDecision",
    "UpdateSettings",
    "accumulate_pairs",
    "check_on_policy",
    "decision_under",
    "follow_parameters",
    "loss_scale_step",
    "mixed_parameters",
    "optimizer_step",
    "replay_decision",
    "replay_log_prob",
    "update_forward",
    "update_groups",
    "update_parameters",
    "update_policy",
]
