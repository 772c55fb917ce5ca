"""Baselines and ablations of MVC-ZigAL: each changes the full method as its name says.

The methods are those of arXiv:2505.20107, section 4. Each exists at the published size, built on
``lcm_sdxl_simple``, and as ``tiny_...`` on the tiny world, built on ``tiny``.
"""

from dataclasses import replace

from mvczigal_ref.config import AdvantageConfig, TrainConfig
from mvczigal_ref.recipes.sdxl import lcm_sdxl_simple
from mvczigal_ref.recipes.tiny import tiny

__all__ = [
    "mv_dpo",
    "mv_pg",
    "mv_rdl",
    "mv_zigal",
    "mvc_zigal",
    "mvc_zigal_fixed_step_size",
    "mvc_zigal_fixed_threshold",
    "mvc_zigal_full_zigzag",
    "mvc_zigpg",
    "tiny_fixed_step_size",
    "tiny_fixed_threshold",
    "tiny_full_zigzag",
    "tiny_mv_dpo",
    "tiny_mv_pg",
    "tiny_mv_rdl",
    "tiny_mv_zigal",
    "tiny_mvc_zigpg",
    "tiny_ws_zigal",
    "ws_zigal",
]


def mv_pg() -> TrainConfig:
    """MV-PG on LCM-SDXL: clipped policy gradient, two standard trajectories, joint reward."""
    return _mv_pg(lcm_sdxl_simple(), "mv_pg")


def mv_dpo() -> TrainConfig:
    """MV-DPO on LCM-SDXL: prefer the better of two standard trajectories by the joint reward."""
    return _mv_dpo(lcm_sdxl_simple(), "mv_dpo")


def mv_rdl() -> TrainConfig:
    """MV-RDL on LCM-SDXL: reward differences of two standard trajectories, joint reward."""
    return _mv_rdl(lcm_sdxl_simple(), "mv_rdl")


def mv_zigal() -> TrainConfig:
    """MV-ZigAL on LCM-SDXL: zigzag against standard sampling, the joint reward alone."""
    return _mv_zigal(lcm_sdxl_simple(), "mv_zigal")


def ws_zigal() -> TrainConfig:
    """WS-ZigAL on LCM-SDXL: a fixed weighted sum of both rewards, 0.5 each."""
    return _ws_zigal(lcm_sdxl_simple(), "ws_zigal")


def mvc_zigpg() -> TrainConfig:
    """MVC-ZigPG on LCM-SDXL: the constraint and zigzag sampling with a policy gradient."""
    return _mvc_zigpg(lcm_sdxl_simple(), "mvc_zigpg")


def mvc_zigal() -> TrainConfig:
    """MVC-ZigAL on LCM-SDXL: the full method, as `lcm_sdxl_simple`."""
    return replace(lcm_sdxl_simple(), recipe="mvc_zigal")


def mvc_zigal_fixed_threshold() -> TrainConfig:
    """MVC-ZigAL on LCM-SDXL with a threshold that keeps its initial value."""
    return _fixed_threshold(lcm_sdxl_simple(), "mvc_zigal_fixed_threshold")


def mvc_zigal_fixed_step_size() -> TrainConfig:
    """MVC-ZigAL on LCM-SDXL with one step size of the multiplier, 0.1 whether violated or not."""
    return _fixed_step_size(lcm_sdxl_simple(), "mvc_zigal_fixed_step_size")


def mvc_zigal_full_zigzag() -> TrainConfig:
    """MVC-ZigAL on LCM-SDXL with every sampling step zigzagged."""
    return _full_zigzag(lcm_sdxl_simple(), "mvc_zigal_full_zigzag")


def tiny_mv_pg() -> TrainConfig:
    """MV-PG on the tiny world: clipped policy gradient, two standard trajectories."""
    return _mv_pg(tiny(), "tiny_mv_pg")


def tiny_mv_dpo() -> TrainConfig:
    """MV-DPO on the tiny world: prefer the better of two standard trajectories."""
    return _mv_dpo(tiny(), "tiny_mv_dpo")


def tiny_mv_rdl() -> TrainConfig:
    """MV-RDL on the tiny world: two standard trajectories per pair, the joint reward alone.

    Compared with ``tiny_mv_zigal`` it shows what the zigzag arm adds.
    """
    return _mv_rdl(tiny(), "tiny_mv_rdl")


def tiny_mv_zigal() -> TrainConfig:
    """MV-ZigAL on the tiny world: the joint reward alone.

    Each view has its object's advantage, so that nothing tells a good view from a bad one.
    """
    return _mv_zigal(tiny(), "tiny_mv_zigal")


def tiny_ws_zigal() -> TrainConfig:
    """WS-ZigAL on the tiny world: a fixed weighted sum of both rewards.

    Half and half throughout, where the constraint would move the weight.
    """
    return _ws_zigal(tiny(), "tiny_ws_zigal")


def tiny_mvc_zigpg() -> TrainConfig:
    """MVC-ZigPG on the tiny world: constraint and zigzag sampling with a policy gradient."""
    return _mvc_zigpg(tiny(), "tiny_mvc_zigpg")


def tiny_fixed_threshold() -> TrainConfig:
    """MVC-ZigAL on the tiny world with a threshold that keeps its initial value."""
    return _fixed_threshold(tiny(), "tiny_fixed_threshold")


def tiny_fixed_step_size() -> TrainConfig:
    """MVC-ZigAL on the tiny world with one step size of the multiplier, 0.1."""
    return _fixed_step_size(tiny(), "tiny_fixed_step_size")


def tiny_full_zigzag() -> TrainConfig:
    """MVC-ZigAL on the tiny world with every sampling step zigzagged."""
    return _full_zigzag(tiny(), "tiny_full_zigzag")


_JOINT = AdvantageConfig(mode="joint")


def _mv_rdl(base: TrainConfig, name: str) -> TrainConfig:
    objective = replace(base.objective, pairing="standard")
    return replace(base, recipe=name, advantage=_JOINT, objective=objective)


def _mv_dpo(base: TrainConfig, name: str) -> TrainConfig:
    rdl = _mv_rdl(base, name)
    return replace(rdl, objective=replace(rdl.objective, kind="preference"))


def _mv_pg(base: TrainConfig, name: str) -> TrainConfig:
    # Rewards are divided by the spread of the whole batch, as in policy gradients without groups.
    rdl = _mv_rdl(base, name)
    return replace(
        rdl,
        objective=replace(rdl.objective, kind="policy_gradient"),
        advantage=replace(_JOINT, spread="batch"),
    )


def _mv_zigal(base: TrainConfig, name: str) -> TrainConfig:
    return replace(base, recipe=name, advantage=_JOINT)


def _ws_zigal(base: TrainConfig, name: str) -> TrainConfig:
    advantage = AdvantageConfig(mode="weighted_sum", joint_weight=0.5)
    return replace(base, recipe=name, advantage=advantage)


def _mvc_zigpg(base: TrainConfig, name: str) -> TrainConfig:
    return replace(
        base,
        recipe=name,
        objective=replace(base.objective, kind="policy_gradient"),
        advantage=replace(base.advantage, spread="batch"),
    )


def _fixed_threshold(base: TrainConfig, name: str) -> TrainConfig:
    return replace(base, recipe=name, constraint=replace(base.constraint, threshold_decay=1.0))


def _fixed_step_size(base: TrainConfig, name: str) -> TrainConfig:
    constraint = replace(base.constraint, step_size_satisfied=base.constraint.step_size_violated)
    return replace(base, recipe=name, constraint=constraint)


def _full_zigzag(base: TrainConfig, name: str) -> TrainConfig:
    zigzag = replace(base.zigzag, steps=base.sampler.num_steps)
    return replace(base, recipe=name, zigzag=zigzag)
