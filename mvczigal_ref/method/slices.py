"""Slices of an iteration's objects, shared out among processes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.reward.table import RewardTable

__all__ = ["Part", "Share"]


@dataclass(frozen=True, slots=True)
class Share:
    """One process's slices: an equal part of every optimiser step's objects."""

    objects: list[range]
    """Objects of each slice that this process computes, optimiser step by optimiser step."""

    order: list[int]
    """Place of each gathered object in the iteration."""

    @classmethod
    def of(cls, config: TrainConfig, world: World) -> "Share":
        """Cut and share out, the same slices whatever the number of processes.

        Args:
            config: Objects per iteration and per slice, optimiser steps per epoch.
            world: This process among all.

        Returns:
            This process's share.

        Raises:
            ConfigError: If slices cannot be shared out equally, or would have to grow in replay.

        Examples:
            >>> from mvczigal_ref.config import from_dict
            >>> config = from_dict({"run": {"objects_per_iteration": 8, "objects_per_slice": 2}})
            >>> Share.of(config, World(rank=1, size=2)).objects
            [range(2, 4), range(6, 8)]
        """
        size, groups = config.run.objects_per_slice, config.optim.optimizer_steps_per_epoch
        replayed = config.run.replay_objects_per_slice
        if replayed is not None and replayed > size:
            msg = (
                "`run.replay_objects_per_slice` must be at most `run.objects_per_slice` = "
                f"{size}; got {replayed}. Replay cuts a rollout's slices up and never joins them."
            )
            raise ConfigError(msg)
        num_slices = config.run.objects_per_iteration // size
        unit = groups * world.size
        if num_slices % unit:
            nearest = -(-num_slices // unit) * unit * size
            msg = (
                f"`run.objects_per_iteration` makes {num_slices} slices of "
                f"`run.objects_per_slice` = {size}, which must be a multiple of {unit}: "
                f"`optim.optimizer_steps_per_epoch` = {groups} times {world.size} processes. "
                f"The nearest valid value of `run.objects_per_iteration` is {nearest}."
            )
            raise ConfigError(msg)
        every = [
            [
                group * num_slices // groups + index
                for group in range(groups)
                for index in World(rank=rank, size=world.size).slice_share(num_slices // groups)
            ]
            for rank in range(world.size)
        ]
        order = [i * size + k for indices in every for i in indices for k in range(size)]
        return cls([range(i * size, (i + 1) * size) for i in every[world.rank]], order)

    def parts(self, prompts: Sequence[str]) -> list["Part"]:
        """Deal an iteration's prompts out to this process's slices.

        Args:
            prompts: One per object, over all processes.

        Returns:
            One part per slice.

        Raises:
            ValueError: If there is not one prompt per object.
        """
        if len(prompts) != len(self.order):
            msg = (
                "`prompts` must hold one prompt per object, `run.objects_per_iteration` = "
                f"{len(self.order)}; got {len(prompts)}."
            )
            raise ValueError(msg)
        return [
            Part(objects=objects, prompts=[prompts[i] for i in objects]) for objects in self.objects
        ]

    def gather(
        self, parts: Sequence[Shaped[Tensor, " part *rest"]], world: World
    ) -> Shaped[Tensor, " object *rest"]:
        """Collect every process's values, in the iteration's object order, on the CPU.

        Args:
            parts: One tensor per slice of this process, objects first, in the order of ``objects``.
            world: This process among all.

        Returns:
            Values of all objects, the same in every process.
        """
        place = torch.empty(len(self.order), dtype=torch.long)
        place[torch.tensor(self.order)] = torch.arange(len(self.order))
        return world.gather_objects(torch.cat(list(parts))).cpu()[place]

    def gather_rewards(self, parts: Sequence[RewardTable], world: World) -> RewardTable:
        """Collect every process's rewards, in the iteration's object order, on the CPU.

        Args:
            parts: One table per slice of this process, in the order of ``objects``.
            world: This process among all.

        Returns:
            Rewards of all objects, the same in every process.

        Raises:
            NonFiniteError: If a reward is NaN or infinite; names its scorer and place.
        """

        def whole(tables: Sequence[Tensor]) -> Tensor:
            by_prompt = [table.transpose(0, 1) for table in tables]
            return self.gather(by_prompt, world).transpose(0, 1)

        first = parts[0]
        rewards = RewardTable(
            per_view={name: whole([t.per_view[name] for t in parts]) for name in first.per_view},
            joint={name: whole([t.joint[name] for t in parts]) for name in first.joint},
            weights=first.weights,
        )
        rewards.require_finite()  # a mean of them would not say whose it was
        return rewards


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One slice of an iteration: objects that are sampled, judged and replayed together."""

    objects: range
    """Indices of the objects within the iteration."""

    prompts: list[str]
    """Prompt of each object."""
