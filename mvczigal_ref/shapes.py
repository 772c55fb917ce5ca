"""Axis letters and the shape of every tensor that crosses a module boundary.

Axes: ``object`` one prompt's set of views; ``view`` one image of it; ``row`` is
``object * num_views + view``; ``step`` an index into the time grid, 0 the
noisiest; ``c h w`` channels, height and width of a latent; ``*batch`` any
number of leading axes, all treated alike.
"""

from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "AlphaBar",
    "BatchLatent",
    "BatchShape",
    "Images",
    "JointViewReward",
    "Latent",
    "ObjectLatent",
    "PerViewReward",
    "PluckerMap",
    "PromptEmbedding",
    "Scalar",
    "StepAlphaBar",
    "Timesteps",
]

Scalar = Float[Tensor, ""]
"""One number."""

PerViewReward = Float[Tensor, "object view"]
"""One number per view [reward units]."""

JointViewReward = Float[Tensor, " object"]
"""One number per object [reward units]."""

AlphaBar = Float[Tensor, " train_timestep"]
"""Cumulative product of alphas over the training grid [1]."""

Timesteps = Int[Tensor, " step"]
"""Training-time noise indices, strictly decreasing."""

StepAlphaBar = Float[Tensor, " step"]
"""Alpha-bar at each step of a sampling grid [1]."""

Latent = Float[Tensor, "row c h w"]
"""Latents, the views of one object adjacent."""

ObjectLatent = Float[Tensor, "object view c h w"]
"""Latents with separate axes of objects and views."""

BatchLatent = Float[Tensor, "*batch c h w"]
"""Latents with any leading axes; packed tokens ``(row, token, channel)`` are ``x[:, None]``."""

BatchShape = Float[Tensor, "*#batch"]
"""One number per latent; an axis of size 1 broadcasts."""

Images = Float[Tensor, "object view rgb height width"]
"""Images in [0, 1]."""

PluckerMap = Float[Tensor, "view six height width"]
"""Camera maps: three channels of view direction, three of normalised position."""

PromptEmbedding = Float[Tensor, "object token width"]
"""Token features of prompts, stored once per object."""
