"""Frozen records handed from one stage to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.shapes import (
    JointViewReward,
    ObjectLatent,
    PerViewReward,
    PromptEmbedding,
)

__all__ = [
    "ActionReduction",
    "CameraFeatures",
    "Conditioning",
    "PairedRollout",
    "RewardTable",
    "ScorerRewards",
    "Trajectory",
]

ActionReduction = Literal["mean", "sum"]
"""How a stored log-density sums up a latent's elements: one number a view is kept."""

CameraFeatures = tuple[Float[Tensor, "view _channels _height _width"], ...]
"""The camera encoder's output, one tensor a level, each level of its own size [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """What a policy knows beside the latents, each thing stored once.

    Text is stored once an object and cameras once a view; the network expands
    both to rows. The negative prompt may be stored once for all objects.
    """

    prompt_embeds: PromptEmbedding
    """Token features of each prompt [1]."""

    pooled_prompt_embeds: Float[Tensor, "object pooled"]
    """One feature vector a prompt [1]."""

    time_ids: Float[Tensor, "object 6"]
    """Original height and width, crop top and left, target height and width [px]."""

    camera_features: CameraFeatures
    """One tensor a level of the camera encoder [1]."""

    num_views: int
    """Views of one object; the length of every camera feature."""

    negative_prompt_embeds: Float[Tensor, "negative token width"] | None = None
    """Token features to guide away from: one for all objects, or one each [1]."""

    negative_pooled_prompt_embeds: Float[Tensor, "negative pooled"] | None = None
    """Their pooled features [1]."""

    def __post_init__(self) -> None:
        """Refuse parts that disagree about objects or views."""
        if self.num_views < 1:
            msg = f"`num_views` must be at least 1; got {self.num_views}."
            raise ValueError(msg)
        for level, feature in enumerate(self.camera_features):
            if feature.shape[0] != self.num_views:
                msg = (
                    f"`camera_features` must hold one map a view; level {level} holds "
                    f"{feature.shape[0]} for `num_views` {self.num_views}. Encode the rig whose "
                    "views are sampled."
                )
                raise ValueError(msg)
        if (self.negative_prompt_embeds is None) != (self.negative_pooled_prompt_embeds is None):
            msg = (
                "`negative_prompt_embeds` and `negative_pooled_prompt_embeds` must be given "
                "together; got one of them. Encode the negative prompt once for both."
            )
            raise ValueError(msg)
        sizes = {"pooled_prompt_embeds": self.pooled_prompt_embeds, "time_ids": self.time_ids}
        for name, value in sizes.items():
            if value.shape[0] != self.num_objects:
                msg = (
                    f"`{name}` must hold one row an object; got {value.shape[0]} rows for "
                    f"{self.num_objects} objects in `prompt_embeds`."
                )
                raise ValueError(msg)
        for name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds"):
            negative = getattr(self, name)
            if negative is not None and negative.shape[0] not in (1, self.num_objects):
                msg = (
                    f"`{name}` must hold one row for all objects or one each; got "
                    f"{negative.shape[0]} for {self.num_objects} objects."
                )
                raise ValueError(msg)

    @property
    def num_objects(self) -> int:
        """Prompts in this record."""
        return self.prompt_embeds.shape[0]

    def objects(self, index: slice) -> "Conditioning":
        """Narrow to some objects; cameras and a shared negative prompt stay whole.

        Args:
            index: Which objects, as a slice of the object axis.

        Returns:
            A record of views onto the same memory.

        Examples:
            >>> text, pooled, ids = torch.zeros(3, 4, 8), torch.zeros(3, 8), torch.zeros(3, 6)
            >>> whole = Conditioning(
            ...     prompt_embeds=text, pooled_prompt_embeds=pooled, time_ids=ids,
            ...     camera_features=(torch.zeros(2, 5, 4, 4),), num_views=2,
            ... )
            >>> whole.objects(slice(1, 3)).num_objects
            2
        """
        shared = self.num_objects > 1
        negative, pooled = self.negative_prompt_embeds, self.negative_pooled_prompt_embeds
        if negative is not None and negative.shape[0] > 1 and shared:
            negative = negative[index]
        if pooled is not None and pooled.shape[0] > 1 and shared:
            pooled = pooled[index]
        return replace(
            self,
            prompt_embeds=self.prompt_embeds[index],
            pooled_prompt_embeds=self.pooled_prompt_embeds[index],
            time_ids=self.time_ids[index],
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=pooled,
        )

    def repeat(self, times: int) -> "Conditioning":
        """Repeat the objects as a whole, for several steps in one network call.

        Args:
            times: Copies, one after the other; at least 1.

        Returns:
            ``times * num_objects`` objects; cameras and a shared negative prompt stay whole.

        Raises:
            ValueError: If ``times`` is below 1.

        Examples:
            >>> text, pooled, ids = torch.zeros(3, 4, 8), torch.zeros(3, 8), torch.zeros(3, 6)
            >>> whole = Conditioning(
            ...     prompt_embeds=text, pooled_prompt_embeds=pooled, time_ids=ids,
            ...     camera_features=(torch.zeros(2, 5, 4, 4),), num_views=2,
            ... )
            >>> whole.repeat(4).num_objects
            12
        """
        if times < 1:
            msg = f"`times` must be at least 1; got {times}."
            raise ValueError(msg)
        negative, pooled = self.negative_prompt_embeds, self.negative_pooled_prompt_embeds
        if negative is not None and pooled is not None and negative.shape[0] > 1:
            negative, pooled = negative.repeat(times, 1, 1), pooled.repeat(times, 1)
        return replace(
            self,
            prompt_embeds=self.prompt_embeds.repeat(times, 1, 1),
            pooled_prompt_embeds=self.pooled_prompt_embeds.repeat(times, 1),
            time_ids=self.time_ids.repeat(times, 1),
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=pooled,
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Conditioning":
        """Move, and where asked cast, every tensor.

        Args:
            device: Where to; unchanged when None.
            dtype: Floating type to cast to; unchanged when None.

        Returns:
            A record that shares the tensors which already fit.
        """
        negative, pooled = self.negative_prompt_embeds, self.negative_pooled_prompt_embeds
        return replace(
            self,
            prompt_embeds=self.prompt_embeds.to(device, dtype),
            pooled_prompt_embeds=self.pooled_prompt_embeds.to(device, dtype),
            time_ids=self.time_ids.to(device, dtype),
            camera_features=tuple(feature.to(device, dtype) for feature in self.camera_features),
            negative_prompt_embeds=None if negative is None else negative.to(device, dtype),
            negative_pooled_prompt_embeds=None if pooled is None else pooled.to(device, dtype),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One arm's sampled decisions for some objects, detached."""

    state: Float[Tensor, "step object view c h w"]
    """What the network saw, in the storage dtype [1]."""

    action: Float[Tensor, "step object view c h w"]
    """What was drawn there, rounded to the storage dtype before it was scored [1]."""

    log_prob: Float[Tensor, "step object view"]
    """Log-density of each action when it was drawn, fp32 or wider [nats or nats/element].

    NaN where the step drew no noise, so that its action has no density.
    """

    denoised: ObjectLatent
    """Final latents, to decode [1]."""

    def objects(self, index: slice) -> "Trajectory":
        """Narrow to some objects.

        Args:
            index: Which objects, as a slice of the object axis.

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
            index: Which objects, as a slice of the object axis.

        Returns:
            A record of views onto the same memory.
        """
        return PairedRollout(
            zigzag=self.zigzag.objects(index), standard=self.standard.objects(index)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerRewards:
    """Raw rewards of one scorer, unweighted [reward units]."""

    zigzag: Float[Tensor, " object *view"]
    """Of the zigzag arm, one a view or one an object."""

    standard: Float[Tensor, " object *view"]
    """Of the standard arm, entry for entry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTable:
    """Raw rewards of both arms [reward units]: the weighted sums, and what was added."""

    per_view_zigzag: PerViewReward
    """Of the zigzag arm, one a view."""

    per_view_standard: PerViewReward
    """Of the standard arm, object for object."""

    joint_view_zigzag: JointViewReward
    """Of the zigzag arm, one an object."""

    joint_view_standard: JointViewReward
    """Of the standard arm, object for object."""

    per_view_parts: Mapping[str, ScorerRewards] = field(default_factory=dict)
    """Of each per-view scorer by name."""

    joint_view_parts: Mapping[str, ScorerRewards] = field(default_factory=dict)
    """Of each joint-view scorer by name."""
