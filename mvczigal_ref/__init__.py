"""RL fine-tuning of diffusion and flow models, in the order the data flows.

Read from top to bottom, the table of public names is the algorithm. A name is imported when it
is first used, so that ``import mvczigal_ref`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # written by `python -m tests.public_names` from the table below
    # ruff: isort: off
    # how a step is drawn, scored and inverted
    from mvczigal_ref.diffusion.schedule import (
        scaled_linear_alpha_bar as scaled_linear_alpha_bar,
        shift_snr as shift_snr,
        betas_from_alpha_bar as betas_from_alpha_bar,
        lcm_timesteps as lcm_timesteps,
        ddim_timesteps as ddim_timesteps,
        clean_and_noise as clean_and_noise,
        noised_latent as noised_latent,
    )
    from mvczigal_ref.diffusion.guidance import (
        classifier_free_guidance as classifier_free_guidance,
        guidance_embedding as guidance_embedding,
    )
    from mvczigal_ref.diffusion.sampler import (
        Transition as Transition,
        Sampler as Sampler,
    )
    from mvczigal_ref.diffusion.lcm import (
        lcm_transition as lcm_transition,
        lcm_invert as lcm_invert,
        LcmSampler as LcmSampler,
    )
    from mvczigal_ref.diffusion.ddim import (
        ddim_transition as ddim_transition,
        ddim_invert as ddim_invert,
        ETA_ZERO_VARIANCE as ETA_ZERO_VARIANCE,
        DdimSampler as DdimSampler,
    )
    from mvczigal_ref.diffusion.euler_ancestral import (
        euler_ancestral_transition as euler_ancestral_transition,
        EulerAncestralSampler as EulerAncestralSampler,
    )
    from mvczigal_ref.diffusion.tcd import (
        tcd_transition as tcd_transition,
        TcdSampler as TcdSampler,
    )
    from mvczigal_ref.diffusion.gaussian import (
        sample as sample,
        log_prob as log_prob,
        joint_log_prob as joint_log_prob,
        kl_divergence as kl_divergence,
    )
    from mvczigal_ref.diffusion.flow_schedule import (
        flow_sigmas as flow_sigmas,
        shift_sigma as shift_sigma,
        resolution_shift as resolution_shift,
    )
    from mvczigal_ref.diffusion.flow import (
        flow_latent as flow_latent,
        flow_velocity as flow_velocity,
        flow_clean_and_noise as flow_clean_and_noise,
        flow_step as flow_step,
        flow_ode_transition as flow_ode_transition,
        flow_invert as flow_invert,
    )
    from mvczigal_ref.diffusion.flow_noise import (
        flow_sde_transition as flow_sde_transition,
        constant_noise_transition as constant_noise_transition,
        cps_transition as cps_transition,
        cps_unscaled_log_prob as cps_unscaled_log_prob,
    )
    from mvczigal_ref.diffusion.flow_dpm import (
        dpm2m_transition as dpm2m_transition,
        dpm2m_weight as dpm2m_weight,
    )
    from mvczigal_ref.diffusion.flow_sampler import FlowSampler as FlowSampler
    from mvczigal_ref.cameras import (
        OrthographicRig as OrthographicRig,
        PAPER_RIG as PAPER_RIG,
        camera_to_world as camera_to_world,
        world_to_camera as world_to_camera,
        projection_matrix as projection_matrix,
        plucker_map as plucker_map,
        camera_image as camera_image,
    )

    # rollout: pairs of trajectories from the same initial noise, or groups of them
    from mvczigal_ref.policy import (
        Policy as Policy,
        network_output as network_output,
        step_transition as step_transition,
        action_log_prob as action_log_prob,
        Conditioning as Conditioning,
    )
    from mvczigal_ref.records import (
        Trajectory as Trajectory,
        PairedRollout as PairedRollout,
        GroupDecision as GroupDecision,
        GroupTrajectory as GroupTrajectory,
        BranchTrajectory as BranchTrajectory,
    )
    from mvczigal_ref.reward.table import RewardTable as RewardTable
    from mvczigal_ref.rollout.noise import SeededNoise as SeededNoise
    from mvczigal_ref.rollout.windows import (
        fixed_window as fixed_window,
        random_window as random_window,
        random_steps as random_steps,
        moving_steps as moving_steps,
        sliding_window as sliding_window,
        decaying_window as decaying_window,
    )
    from mvczigal_ref.rollout.standard import standard_rollout as standard_rollout
    from mvczigal_ref.rollout.zigzag import zigzag_rollout as zigzag_rollout
    from mvczigal_ref.rollout.pair import paired_rollout as paired_rollout
    from mvczigal_ref.rollout.group_plan import GroupPlan as GroupPlan
    from mvczigal_ref.rollout.group import group_rollout as group_rollout
    from mvczigal_ref.rollout.branches import branched_rollout as branched_rollout
    from mvczigal_ref.rollout.finish import (
        finishing_sampler as finishing_sampler,
        compressed_tail as compressed_tail,
    )

    # condition: captions beside the prompt, under which a group is judged and learnt too
    from mvczigal_ref.condition.protocol import (
        Caption as Caption,
        ConditionEnhancer as ConditionEnhancer,
    )

    # reward: one number per view, one number per object
    from mvczigal_ref.reward.protocols import (
        PerViewScorer as PerViewScorer,
        JointViewScorer as JointViewScorer,
    )
    from mvczigal_ref.reward.aggregate import (
        weighted_sum as weighted_sum,
        mean_over_views as mean_over_views,
        joint_to_views as joint_to_views,
    )
    from mvczigal_ref.evaluation.guard import (
        GuardState as GuardState,
        guard_step as guard_step,
        mean_pairwise_distance as mean_pairwise_distance,
    )

    # constraint: threshold and multiplier
    from mvczigal_ref.constraint import (
        ConstraintState as ConstraintState,
        constraint_step as constraint_step,
    )

    # advantage: the first arm of a pair, or a sample among its group, against the others
    from mvczigal_ref.advantage.standardise import standardise as standardise
    from mvczigal_ref.advantage.pair import (
        PairAdvantages as PairAdvantages,
        pair_advantages as pair_advantages,
        joint_share as joint_share,
        advantage_gap as advantage_gap,
    )
    from mvczigal_ref.advantage.group import (
        group_advantages as group_advantages,
        ragged_group_advantages as ragged_group_advantages,
        combined_group_advantages as combined_group_advantages,
    )
    from mvczigal_ref.advantage.branches import (
        fuse_leaf_rewards as fuse_leaf_rewards,
        fuse_edge_rewards as fuse_edge_rewards,
        depth_advantages as depth_advantages,
        granular_advantages as granular_advantages,
    )
    from mvczigal_ref.advantage.pruning import (
        spread_weights as spread_weights,
        prune_samples as prune_samples,
        prune_nodes as prune_nodes,
    )

    # objective: regress the log-ratio gap onto the advantage gap, or make the better likelier
    from mvczigal_ref.objective.reward_difference import (
        reward_difference_loss as reward_difference_loss,
        reward_difference_gradients as reward_difference_gradients,
    )
    from mvczigal_ref.objective.clipped import (
        clipped_surrogate_loss as clipped_surrogate_loss,
        reference_kl as reference_kl,
        reference_kl_without_step_length as reference_kl_without_step_length,
        tempflow_step_weights as tempflow_step_weights,
    )
    from mvczigal_ref.objective.grpo_guard import (
        guarded_log_ratio as guarded_log_ratio,
        guard_loss as guard_loss,
    )
    from mvczigal_ref.objective.augmented_conditions import (
        augmented_conditions_loss as augmented_conditions_loss,
        probability_drift as probability_drift,
    )
    from mvczigal_ref.objective.sequence import (
        sequence_log_ratio as sequence_log_ratio,
        sequence_loss as sequence_loss,
        through_sequence as through_sequence,
    )
    from mvczigal_ref.objective.divergence import (
        outside_region as outside_region,
        divergence_loss as divergence_loss,
    )
    from mvczigal_ref.objective.rectified import rectified_step_weights as rectified_step_weights
    from mvczigal_ref.objective.preference import (
        preference_loss as preference_loss,
        preference_gradients as preference_gradients,
    )
    from mvczigal_ref.objective.noise_preference import (
        noise_error as noise_error,
        noise_preference_loss as noise_preference_loss,
    )
    from mvczigal_ref.objective.joint import (
        joint_log_ratio as joint_log_ratio,
        joint_gradients as joint_gradients,
    )
    from mvczigal_ref.objective.diffusion_nft import (
        diffusion_nft_loss as diffusion_nft_loss,
        optimality as optimality,
        part_of_advantage as part_of_advantage,
        old_policy_decay as old_policy_decay,
    )
    from mvczigal_ref.objective.advantage_matching import (
        advantage_matching_loss as advantage_matching_loss,
        matching_error as matching_error,
        matching_score as matching_score,
    )
    from mvczigal_ref.objective.group_preference import (
        group_preference_loss as group_preference_loss,
        group_preference_weight as group_preference_weight,
    )

    # update, and the whole; from here on more than torch is needed
    from mvczigal_ref.config import (
        TrainConfig as TrainConfig,
        load_config as load_config,
    )
    from mvczigal_ref.recipes import recipe as recipe
    from mvczigal_ref.models.components import load_components as load_components
    from mvczigal_ref.update.replay import replay_log_prob as replay_log_prob
    from mvczigal_ref.update.pairs import update_policy as update_policy
    from mvczigal_ref.iteration import run_iteration as run_iteration
    from mvczigal_ref.distributed import World as World
    from mvczigal_ref.training.events import Events as Events
    from mvczigal_ref.training.trainer import train as train
    from mvczigal_ref.training_run import (
        fit as fit,
        Result as Result,
        TrainedPolicy as TrainedPolicy,
    )
    from mvczigal_ref.pipeline import TextToMultiviewPipeline as TextToMultiviewPipeline
    # ruff: isort: on

__version__ = "0.1.0"

_NAMES = {
    "how a step is drawn, scored and inverted": {
        "diffusion.schedule": (
            "scaled_linear_alpha_bar shift_snr betas_from_alpha_bar lcm_timesteps ddim_timesteps "
            "clean_and_noise noised_latent"
        ),
        "diffusion.guidance": "classifier_free_guidance guidance_embedding",
        "diffusion.sampler": "Transition Sampler",
        "diffusion.lcm": "lcm_transition lcm_invert LcmSampler",
        "diffusion.ddim": "ddim_transition ddim_invert ETA_ZERO_VARIANCE DdimSampler",
        "diffusion.euler_ancestral": "euler_ancestral_transition EulerAncestralSampler",
        "diffusion.tcd": "tcd_transition TcdSampler",
        "diffusion.gaussian": "sample log_prob joint_log_prob kl_divergence",
        "diffusion.flow_schedule": "flow_sigmas shift_sigma resolution_shift",
        "diffusion.flow": (
            "flow_latent flow_velocity flow_clean_and_noise flow_step flow_ode_transition "
            "flow_invert"
        ),
        "diffusion.flow_noise": (
            "flow_sde_transition constant_noise_transition cps_transition cps_unscaled_log_prob"
        ),
        "diffusion.flow_dpm": "dpm2m_transition dpm2m_weight",
        "diffusion.flow_sampler": "FlowSampler",
        "cameras": (
            "OrthographicRig PAPER_RIG camera_to_world world_to_camera projection_matrix "
            "plucker_map camera_image"
        ),
    },
    "rollout: pairs of trajectories from the same initial noise, or groups of them": {
        "policy": "Policy network_output step_transition action_log_prob Conditioning",
        "records": "Trajectory PairedRollout GroupDecision GroupTrajectory BranchTrajectory",
        "reward.table": "RewardTable",
        "rollout.noise": "SeededNoise",
        "rollout.windows": (
            "fixed_window random_window random_steps moving_steps sliding_window decaying_window"
        ),
        "rollout.standard": "standard_rollout",
        "rollout.zigzag": "zigzag_rollout",
        "rollout.pair": "paired_rollout",
        "rollout.group_plan": "GroupPlan",
        "rollout.group": "group_rollout",
        "rollout.branches": "branched_rollout",
        "rollout.finish": "finishing_sampler compressed_tail",
    },
    "condition: captions beside the prompt, under which a group is judged and learnt too": {
        "condition.protocol": "Caption ConditionEnhancer",
    },
    "reward: one number per view, one number per object": {
        "reward.protocols": "PerViewScorer JointViewScorer",
        "reward.aggregate": "weighted_sum mean_over_views joint_to_views",
        "evaluation.guard": "GuardState guard_step mean_pairwise_distance",
    },
    "constraint: threshold and multiplier": {
        "constraint": "ConstraintState constraint_step",
    },
    "advantage: the first arm of a pair, or a sample among its group, against the others": {
        "advantage.standardise": "standardise",
        "advantage.pair": "PairAdvantages pair_advantages joint_share advantage_gap",
        "advantage.group": "group_advantages ragged_group_advantages combined_group_advantages",
        "advantage.branches": (
            "fuse_leaf_rewards fuse_edge_rewards depth_advantages granular_advantages"
        ),
        "advantage.pruning": "spread_weights prune_samples prune_nodes",
    },
    "objective: regress the log-ratio gap onto the advantage gap, or make the better likelier": {
        "objective.reward_difference": "reward_difference_loss reward_difference_gradients",
        "objective.clipped": (
            "clipped_surrogate_loss reference_kl reference_kl_without_step_length "
            "tempflow_step_weights"
        ),
        "objective.grpo_guard": "guarded_log_ratio guard_loss",
        "objective.augmented_conditions": "augmented_conditions_loss probability_drift",
        "objective.sequence": "sequence_log_ratio sequence_loss through_sequence",
        "objective.divergence": "outside_region divergence_loss",
        "objective.rectified": "rectified_step_weights",
        "objective.preference": "preference_loss preference_gradients",
        "objective.noise_preference": "noise_error noise_preference_loss",
        "objective.joint": "joint_log_ratio joint_gradients",
        "objective.diffusion_nft": (
            "diffusion_nft_loss optimality part_of_advantage old_policy_decay"
        ),
        "objective.advantage_matching": ("advantage_matching_loss matching_error matching_score"),
        "objective.group_preference": "group_preference_loss group_preference_weight",
    },
    "update, and the whole; from here on more than torch is needed": {
        "config": "TrainConfig load_config",
        "recipes": "recipe",
        "models.components": "load_components",
        "update.replay": "replay_log_prob",
        "update.pairs": "update_policy",
        "iteration": "run_iteration",
        "distributed": "World",
        "training.events": "Events",
        "training.trainer": "train",
        "training_run": "fit Result TrainedPolicy",
        "pipeline": "TextToMultiviewPipeline",
    },
}
_HOME = {
    name: home
    for homes in _NAMES.values()
    for home, names in homes.items()
    for name in names.split()
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module holds
    """Import a public name when it is first asked for."""
    if name not in _HOME:
        msg = f"module 'mvczigal_ref' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"mvczigal_ref.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
