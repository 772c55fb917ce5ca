"""Exact errors: where sampled images differ from renders that an exact judge compares them with."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.scorer_names import VIEW_MEAN, reward_unit
from mvczigal_ref.pictures.heat import error_levels
from mvczigal_ref.shapes import Images
from mvczigal_ref.system.rig import rig_of
from mvczigal_ref.tiny_world.grammar import is_sentence
from mvczigal_ref.tiny_world.render import IMAGE_SIZE
from mvczigal_ref.tiny_world.score import nearest_renders

__all__ = ["exact_errors"]


def exact_errors(
    images: Images, prompts: Sequence[str], config: TrainConfig
) -> UInt8[Tensor, "object view height width"] | None:
    """Measure how far views are from the nearest exact render, object by object.

    Args:
        images: Views in [0, 1], one object per prompt.
        prompts: Prompts of the objects.
        config: Scorers and cameras of the run.

    Returns:
        Levels, see :func:`~mvczigal_ref.pictures.heat.error_levels`; None where no exact judge
        looks at such images, or a prompt is none of the tiny world's.

    Examples:
        >>> exact_errors(torch.zeros(1, 6, 3, 8, 8), ["a red ball"], TrainConfig()) is None
        True
    """
    judged = reward_unit(config.reward) == "dB" and images.shape[-1] == IMAGE_SIZE
    if not judged or not len(images) or not all(map(is_sentence, prompts)):
        return None
    rig = None if config.reward.joint == VIEW_MEAN else rig_of(config.model)
    # One by one: products of several objects at once may round otherwise.
    objects = zip(images.split(1), prompts, strict=True)
    return torch.cat(
        [
            error_levels(views, nearest_renders(views, [prompt], rig=rig))
            for views, prompt in objects
        ]
    )
