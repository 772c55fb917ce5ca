"""Settings of a run: frozen, typed, a unit in every field; the public names of this package."""

from mvczigal_ref.config.fingerprint import fingerprint, fingerprinted
from mvczigal_ref.config.loading import from_dict, load_config, to_dict
from mvczigal_ref.config.method import (
    AdvantageConfig,
    ConditionConfig,
    ConstraintConfig,
    ForwardConfig,
    ObjectiveConfig,
    RewardConfig,
    RolloutConfig,
    ZigzagConfig,
    scorer_weights,
)
from mvczigal_ref.config.run import GuardConfig, OptimConfig, RunConfig
from mvczigal_ref.config.system import FlowConfig, ModelConfig, SamplerConfig
from mvczigal_ref.config.train import TrainConfig
from mvczigal_ref.config.types import Dtype

__all__ = [
    "AdvantageConfig",
    "ConditionConfig",
    "ConstraintConfig",
    "Dtype",
    "FlowConfig",
    "ForwardConfig",
    "GuardConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SamplerConfig",
    "TrainConfig",
    "ZigzagConfig",
    "fingerprint",
    "fingerprinted",
    "from_dict",
    "load_config",
    "scorer_weights",
    "to_dict",
]
