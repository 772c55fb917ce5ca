"""Frozen records handed from one stage to the next.

Members of a group lie in order along one axis: with ``b`` members per parent, those of parent
``n`` are ``n * b`` to ``n * b + b - 1``, as :mod:`mvczigal_ref.advantage.branches` has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvczigal_ref.shapes import ObjectLatent

__all__ = [
    "ActionReduction",
    "BranchTrajectory",
    "GroupDecision",
    "GroupTrajectory",
    "PairedRollout",
    "Samples",
    "Trajectory",
]

ActionReduction = Literal["mean", "sum"]
"""Reduction of a stored log-density over a latent's elements, to one number per view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One arm's sampled decisions for some objects, detached."""

    state: Float[Tensor, "step object view c h w"]
    """Latents that the network saw, in the storage dtype [1]."""

    action: Float[Tensor, "step object view c h w"]
    """Latents that were drawn there, rounded to the storage dtype before they were scored [1]."""

    log_prob: Float[Tensor, "step object view"]
    """Log-density of each action when it was drawn, fp32 or wider [nats or nats/element].

    NaN where the step drew no noise, so that its action has no density.
    """

    denoised: ObjectLatent
    """Final latents, to decode [1]."""

    def objects(self, index: slice) -> "Trajectory":
        """Narrow to some objects.

        Args:
            index: Objects, as a slice of the object axis.

        Returns:
            A record of views onto the same memory.

        Examples:
            >>> zero = torch.zeros(4, 3, 2, 1, 8, 8)
            >>> whole = Trajectory(
            ...     state=zero, action=zero, log_prob=zero[..., 0, 0, 0], denoised=zero[0]
            ... )
            >>> whole.objects(slice(1, 3)).log_prob.shape
            torch.Size([4, 2, 2])
        """
        return Trajectory(
            state=self.state[:, index],
            action=self.action[:, index],
            log_prob=self.log_prob[:, index],
            denoised=self.denoised[index],
        )

    def followed_by(self, later: "Trajectory") -> "Trajectory":
        """Append the later steps of the same objects.

        Args:
            later: Steps that begin where these end.

        Returns:
            A trajectory with all steps and the later one's final latents.
        """
        return Trajectory(
            state=torch.cat([self.state, later.state]),
            action=torch.cat([self.action, later.action]),
            log_prob=torch.cat([self.log_prob, later.log_prob]),
            denoised=later.denoised,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedRollout:
    """Two trajectories of the same objects from the same initial noise."""

    zigzag: Trajectory
    """ZMV-Sampling, or a second standard trajectory where two are paired."""

    standard: Trajectory
    """Plain sampling."""

    def objects(self, index: slice) -> "PairedRollout":
        """Narrow to some objects.

        Args:
            index: Objects, as a slice of the object axis.

        Returns:
            A record of views onto the same memory.
        """
        return PairedRollout(
            zigzag=self.zigzag.objects(index), standard=self.standard.objects(index)
        )

    def both(self) -> Trajectory:
        """Lay both arms side by side along the object axis, the zigzag arm first.

        Returns:
            A copy with twice as many objects.
        """
        arms, names = (self.zigzag, self.standard), ("state", "action", "log_prob")
        steps = {name: torch.cat([getattr(arm, name) for arm in arms], dim=1) for name in names}
        return Trajectory(**steps, denoised=torch.cat([arm.denoised for arm in arms]))


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupDecision:
    """Actions that the members of every group drew at one stochastic step, detached.

    A state is stored once for all members that drew from it, and one network call at it
    scores them all.
    """

    step: int
    """Index into the sampling grid, 0 the noisiest."""

    depth: int
    """Index of the ``depth_advantages`` table that holds these members; 0 without a tree."""

    state: Float[Tensor, "prompt parent view c h w"]
    """Latents that the network saw, in the storage dtype [1]."""

    action: Float[Tensor, "prompt member view c h w"]
    """Latents that were drawn there, rounded to the storage dtype before they were scored [1]."""

    log_prob: Float[Tensor, "prompt member view"]
    """Log-density of each action when it was drawn, fp32 or wider [nats or nats/element]."""

    mean: Float[Tensor, "prompt parent view c h w"] | None = None
    """Mean of the Gaussian that each parent's actions were drawn from [1]; None where the rollout
    did not keep it."""

    std_factor: float = 1.0
    """Factor on the kernel's standard deviation in the density that scores the actions [1]."""

    @property
    def branches(self) -> int:
        """Members per parent."""
        return self.action.shape[1] // self.state.shape[1]

    def network_state(self) -> Float[Tensor, "parent prompt view c h w"]:
        """Arrange the states as ``network_output`` and ``step_transition`` take them.

        Their step axis is the parents' here, each with the same step: the rollout called the
        network so, and a replay that does the same computes the same bits.

        Returns:
            A view onto the same memory [1].
        """
        return self.state.transpose(0, 1)

    def network_steps(self) -> Int[Tensor, " parent"]:
        """Give the step of every parent, beside :meth:`network_state`.

        Returns:
            Indices into the sampling grid, on the states' device.
        """
        return torch.full((self.state.shape[1],), self.step, device=self.state.device)

    def members_of(self, by_parent: Float[Tensor, "parent ..."]) -> Float[Tensor, "member ..."]:
        """Repeat each parent's entry for its members.

        Args:
            by_parent: One entry per parent, such as the mean of a transition at
                :meth:`network_state`. Gradient flows.

        Returns:
            One entry per member, members first.

        Examples:
            >>> zero = torch.zeros(1, 6, 1, 1, 1, 1)
            >>> decision = GroupDecision(
            ...     step=0, depth=0, state=zero[:, :2], action=zero, log_prob=zero[..., 0, 0, 0]
            ... )
            >>> decision.members_of(torch.tensor([1.0, 2.0])).tolist()
            [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
        """
        return by_parent.repeat_interleave(self.branches, dim=0)

    def split(self, size: int | None) -> tuple["GroupDecision", ...]:
        """Cut into runs of parents, each with its members.

        Args:
            size: Parents per run; None is all.

        Returns:
            Records of views onto the same memory, in order.
        """
        count = self.state.shape[1]
        if size is None or size >= count:
            return (self,)
        return tuple(self.parents(slice(i, i + size)) for i in range(0, count, size))

    def parents(self, index: slice) -> "GroupDecision":
        """Narrow to some parents and their members.

        Args:
            index: Parents, as a slice of the parent axis with step 1.

        Returns:
            A record of views onto the same memory.
        """
        first, last, _ = index.indices(self.state.shape[1])
        members = slice(first * self.branches, last * self.branches)
        return replace(
            self,
            state=self.state[:, index],
            action=self.action[:, members],
            log_prob=self.log_prob[:, members],
            mean=None if self.mean is None else self.mean[:, index],
        )

    def prompts(self, index: slice | Sequence[int]) -> "GroupDecision":
        """Narrow to some prompts.

        Args:
            index: Prompts, as a slice of the prompt axis or one by one.

        Returns:
            A record of views onto the same memory for a slice, of copies else.
        """
        chosen = index if isinstance(index, slice) else list(index)
        return replace(
            self,
            state=self.state[chosen],
            action=self.action[chosen],
            log_prob=self.log_prob[chosen],
            mean=None if self.mean is None else self.mean[chosen],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupTrajectory:
    """Groups of samples, one group per prompt, and their stochastic steps alone, detached."""

    decisions: tuple[GroupDecision, ...]
    """One decision per stochastic step, from noise to image; none where all follow the ODE."""

    denoised: Float[Tensor, "prompt member view c h w"]
    """Final latents of all leaves, to decode [1]; not rounded."""

    branching: tuple[int, ...]
    """Members per parent at each place where a group divides, as ``fuse_leaf_rewards`` takes it."""

    @property
    def stochastic_steps(self) -> tuple[int, ...]:
        """The steps that have a log-density."""
        return tuple(decision.step for decision in self.decisions)

    def leaf_log_prob(self) -> Float[Tensor, "step prompt member view"]:
        """Give every leaf the log-densities of its own path; what leaves share is repeated.

        Returns:
            One number per stochastic step [nats or nats/element]; no steps give an empty table.

        Examples:
            >>> zero, two = torch.zeros(1, 4, 1, 1, 1, 1), torch.ones(1, 2, 1, 1, 1, 1)
            >>> first, last = (
            ...     GroupDecision(
            ...         step=step, depth=step, state=two, action=action,
            ...         log_prob=torch.arange(action.shape[1] * 1.0)[None, :, None],
            ...     )
            ...     for step, action in enumerate((two, zero))
            ... )
            >>> tree = GroupTrajectory(decisions=(first, last), denoised=zero, branching=(2, 2))
            >>> tree.leaf_log_prob()[..., 0].tolist()
            [[[0.0, 0.0, 1.0, 1.0]], [[0.0, 1.0, 2.0, 3.0]]]
        """
        leaves = self.denoised.shape[1]
        if not self.decisions:
            return self.denoised.new_empty((0, *self.denoised.shape[:3]))
        rows = [decision.log_prob for decision in self.decisions]
        return torch.stack([row.repeat_interleave(leaves // row.shape[1], dim=1) for row in rows])

    def edge_log_prob(self) -> Float[Tensor, "prompt depth member"] | None:
        """Give every leaf the log-densities of the steps at which its path was divided off.

        Returns:
            One number per depth [nats or nats/element], over views; None where groups divide at
            their initial noise, which no step draws.
        """
        dividing = tuple(decision for decision in self.decisions if decision.branches > 1)
        if len(dividing) != len(self.branching):
            return None
        return replace(self, decisions=dividing).leaf_log_prob().sum(-1).transpose(0, 1)

    def prompts(self, index: slice) -> "GroupTrajectory":
        """Narrow to some prompts.

        Args:
            index: Prompts, as a slice of the prompt axis.

        Returns:
            A record of views onto the same memory.
        """
        return replace(
            self,
            decisions=tuple(decision.prompts(index) for decision in self.decisions),
            denoised=self.denoised[index],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchTrajectory:
    """Single stochastic steps off deterministic trunks, each finished by itself, detached."""

    decisions: tuple[GroupDecision, ...]
    """One decision per step that branched, from noise to image; its parents are the trunks."""

    denoised: Float[Tensor, "step granularity prompt member view c h w"]
    """Final latents of every branch, once a finishing grid, to decode [1]; not rounded."""

    num_trunks: int
    """Trunks per prompt."""

    def reward_table(
        self, reward: Float[Tensor, "step granularity prompt member"]
    ) -> Float[Tensor, "step prompt trunk granularity branch"]:
        """Arrange rewards so that branches are compared within their step, trunk and grid.

        Args:
            reward: One number for every entry of ``denoised`` [reward units].

        Returns:
            The table for ``granular_advantages``; with one grid, ``[..., 0, :]`` is the one
            for ``group_advantages``. Advantages of shape ``(step, prompt, trunk, branch)``,
            flattened from ``trunk`` on, belong to the members of ``decisions``.

        Examples:
            >>> zero = torch.zeros(1, 2, 1, 6, 1, 1, 1, 1)
            >>> record = BranchTrajectory(decisions=(), denoised=zero, num_trunks=3)
            >>> record.reward_table(torch.arange(12.0).reshape(1, 2, 1, 6))[0, 0].tolist()
            [[[0.0, 1.0], [6.0, 7.0]], [[2.0, 3.0], [8.0, 9.0]], [[4.0, 5.0], [10.0, 11.0]]]
        """
        by_trunk = reward.reshape(*reward.shape[:-1], self.num_trunks, -1)
        return by_trunk.movedim(1, 3)

    def prompts(self, index: slice) -> "BranchTrajectory":
        """Narrow to some prompts.

        Args:
            index: Prompts, as a slice of the prompt axis.

        Returns:
            A record of views onto the same memory.
        """
        return replace(
            self,
            decisions=tuple(decision.prompts(index) for decision in self.decisions),
            denoised=self.denoised[:, :, index],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Samples of one slice's prompts, whatever their shape, and the decisions that drew them.

    A pair is a group of two: sample 0 is the zigzag arm, sample 1 the standard one.
    """

    decisions: tuple[GroupDecision, ...]
    """Decisions that are trained; none where whole pairs or the samples alone are."""

    denoised: Float[Tensor, "prompt sample view c h w"]
    """Final latents of every sample that is judged [1]."""

    branching: tuple[int, ...] = (1,)
    """Branches of each node of a tree, one number per depth; a group is a tree of one depth."""

    leaf_log_prob: Float[Tensor, "prompt sample"] | None = None
    """Log-density of every leaf's whole path, trained or not, over steps and views [nats]; None
    where no path divides."""

    edge_log_prob: Float[Tensor, "prompt depth sample"] | None = None
    """Log-density of the step at which each leaf's ancestor of each depth was divided off, over
    views [nats or nats/element]; None where a depth has no such step."""

    pair: PairedRollout | None = None
    """Both arms of every pair, where the objective compares pairs."""
