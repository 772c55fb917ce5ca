"""Cameras of a configuration."""

from dataclasses import replace

from mvczigal_ref.cameras import PAPER_RIG, OrthographicRig
from mvczigal_ref.config import ModelConfig
from mvczigal_ref.tiny_world.scene import WORLD_RIG

__all__ = ["RIGS", "rig_of"]


RIGS: dict[str, OrthographicRig] = {"world": WORLD_RIG, "paper": PAPER_RIG}
"""Cameras by name."""


def rig_of(model: ModelConfig) -> OrthographicRig:
    """Place the cameras of a run.

    Args:
        model: Names a rig, and optionally other azimuths and another elevation.

    Returns:
        The rig itself, or one with the same frame and distance.

    Examples:
        >>> rig_of(ModelConfig(azimuths=(-90.0, 0.0), elevation=30.0)).elevation_deg
        (30.0, 30.0)
    """
    rig = RIGS[model.rig]
    azimuths = model.azimuths or rig.azimuth_deg
    elevation = rig.elevation_deg[0] if model.elevation is None else model.elevation
    views = len(azimuths)
    return replace(
        rig,
        azimuth_deg=azimuths,
        elevation_deg=(elevation,) * views,
        distance=rig.distance[:1] * views,
    )
