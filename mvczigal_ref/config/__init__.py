"""Settings of a run: frozen, typed, a unit in every field; the public names of this package.

What a file of this room holds:

- ``system``, ``method``, ``run``: the sections: networks and sampler; the stages; the run itself.
- ``types``: the values that a single setting may have, whatever its section.
- ``train``: `TrainConfig`, all sections together, and the rules between them; further rules are in
  ``sampling_rules`` (network, grid, noise, trees), ``method_rules`` (densities, ratios,
  references), ``sharding`` and ``recomputation``.
- ``loading``: a configuration from a file, a dictionary or the command line, and back.
- ``paths``: one setting by its dotted path.
- ``reads``: when each setting acts, by ``cases``; one that would not act is refused.
- ``fingerprint``: whether one run may continue another, and in which settings two runs differ.
- ``setting_docs``: unit, values, default and meaning of each setting, read from the source.
- ``run_file``: settings that a run wrote into its folder, read back.
- ``scorer_names``: names of scorers, checked without torch.
- ``code_names``: names of the user's own code, which is imported only where they were typed.
- ``plugins``: pieces that other installed packages register.
"""

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
