"""The tiny world's exact judges as scorers."""

from collections.abc import Sequence

from mvczigal_ref.cameras import OrthographicRig
from mvczigal_ref.shapes import Images, JointViewReward, PerViewReward
from mvczigal_ref.tiny_world.scene import WORLD_RIG
from mvczigal_ref.tiny_world.score import joint_view_score, per_view_score

__all__ = ["WorldJointView", "WorldPerView"]


class WorldPerView:
    """`world.per_view`: match of each view with the nearest render of its prompt [dB]."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> PerViewReward:
        """Score each view; see :func:`mvczigal_ref.tiny_world.score.per_view_score`."""
        return per_view_score(images, prompts)


class WorldJointView:
    """`world.joint`: match of all views with the nearest single object of the prompt [dB].

    Args:
        rig: The cameras that the views were taken with.
    """

    def __init__(self, rig: OrthographicRig = WORLD_RIG) -> None:
        self.rig = rig

    def __call__(self, images: Images, prompts: Sequence[str]) -> JointViewReward:
        """Score each object; see :func:`mvczigal_ref.tiny_world.score.joint_view_score`."""
        return joint_view_score(images, prompts, rig=self.rig)
