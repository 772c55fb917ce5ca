"""Log-ratios of whole trajectories, where an objective reads them."""

import torch
from torch import Tensor

from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.policy import Policy
from mvczigal_ref.update.group_batch import GroupBatch, MemberTable
from mvczigal_ref.update.replay import GroupUpdateSettings, replay_decision

__all__ = ["SequenceRatios"]


class SequenceRatios:
    """Mean log-ratio of every trajectory of a batch, measured anew for each optimiser step.

    The parameters do not change within an optimiser step, so its first microbatch measures and
    the others look up.

    Args:
        policy: The network.
        sampler: The kernel that drew the members.
        batch: Trajectories, each with all its trained steps.
        settings: Guidance, reduction and cuts, as in the rollout.
    """

    def __init__(
        self, policy: Policy, sampler: Sampler, batch: GroupBatch, settings: GroupUpdateSettings
    ) -> None:
        self._policy, self._sampler = policy, sampler
        self._batch, self._settings = batch, settings
        self._values: Tensor | None = None

    def of(self, members: slice, *, first: bool, on_policy: bool) -> MemberTable:
        """Give some members' mean log-ratio over their trained steps.

        Args:
            members: Members, as a slice.
            first: Whether this is the first microbatch of an optimiser step.
            on_policy: Whether the parameters are those that sampled: then it is 0.

        Returns:
            Without gradient [nats or nats/element].
        """
        if on_policy:
            return torch.zeros_like(self._batch.decisions[0].log_prob.transpose(0, 1)[members])
        if first or self._values is None:
            self._values = self._measured()
        return self._values[members]

    @torch.no_grad()
    def _measured(self) -> MemberTable:
        settings = self._settings
        ratios = [
            replay_decision(
                self._policy, self._sampler, decision, self._batch.conditioning,
                settings=settings, nodes_per_call=settings.nodes_per_call,
            )
            - decision.log_prob
            for decision in self._batch.decisions
        ]  # fmt: skip
        return torch.stack(ratios).mean(dim=0).transpose(0, 1)
