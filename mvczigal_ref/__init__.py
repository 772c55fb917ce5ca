"""RL fine-tuning of few-step text-to-multiview diffusion, in the order the data flows.

Read from top to bottom, the public names are the algorithm. A name is imported when it is
first used, so that ``import mvczigal_ref`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # ruff: isort: off
    # how a step is drawn, scored and inverted
    from mvczigal_ref.diffusion.schedule import (
        scaled_linear_alpha_bar as scaled_linear_alpha_bar,
        shift_snr as shift_snr,
        lcm_timesteps as lcm_timesteps,
        ddim_timesteps as ddim_timesteps,
        clean_and_noise as clean_and_noise,
    )
    from mvczigal_ref.diffusion.guidance import (
        classifier_free_guidance as classifier_free_guidance,
        guidance_embedding as guidance_embedding,
    )
    from mvczigal_ref.diffusion.transition import (
        Transition as Transition,
    )
    from mvczigal_ref.diffusion.lcm import (
        lcm_transition as lcm_transition,
        lcm_invert as lcm_invert,
    )
    from mvczigal_ref.diffusion.ddim import (
        ddim_transition as ddim_transition,
        ddim_invert as ddim_invert,
    )
    from mvczigal_ref.diffusion.gaussian import (
        sample as sample,
        log_prob as log_prob,
        joint_log_prob as joint_log_prob,
        kl_divergence as kl_divergence,
    )
    from mvczigal_ref.diffusion.sampler import (
        Sampler as Sampler,
        LcmSampler as LcmSampler,
        DdimSampler as DdimSampler,
    )
    from mvczigal_ref.cameras import (
        OrthographicRig as OrthographicRig,
        PAPER_RIG as PAPER_RIG,
        camera_to_world as camera_to_world,
        world_to_camera as world_to_camera,
        projection_matrix as projection_matrix,
        plucker_map as plucker_map,
        camera_image as camera_image,
    )

    # rollout: two trajectories of the same objects from the same initial noise
    from mvczigal_ref.policy import (
        Policy as Policy,
        network_output as network_output,
        step_transition as step_transition,
    )
    from mvczigal_ref.records import (
        Conditioning as Conditioning,
        Trajectory as Trajectory,
        PairedRollout as PairedRollout,
        RewardTable as RewardTable,
    )
    from mvczigal_ref.rollout.noise import (
        SeededNoise as SeededNoise,
    )
    from mvczigal_ref.rollout.standard import (
        standard_rollout as standard_rollout,
    )
    from mvczigal_ref.rollout.zigzag import (
        zigzag_rollout as zigzag_rollout,
    )
    from mvczigal_ref.rollout.pair import (
        paired_rollout as paired_rollout,
    )

    # reward: one number a view, one number an object
    from mvczigal_ref.reward.protocols import (
        PerViewScorer as PerViewScorer,
        JointViewScorer as JointViewScorer,
    )
    from mvczigal_ref.reward.aggregate import (
        weighted_sum as weighted_sum,
        mean_over_views as mean_over_views,
        joint_to_views as joint_to_views,
    )

    # constraint: threshold and multiplier
    from mvczigal_ref.constraint import (
        ConstraintState as ConstraintState,
        constraint_step as constraint_step,
    )

    # advantage: what the first arm of a pair did better
    from mvczigal_ref.advantage.standardise import (
        standardise as standardise,
    )
    from mvczigal_ref.advantage.pair import (
        PairAdvantages as PairAdvantages,
        pair_advantages as pair_advantages,
        joint_share as joint_share,
        advantage_gap as advantage_gap,
    )

    # objective: regress the log-ratio gap onto the advantage gap
    from mvczigal_ref.objective.reward_difference import (
        reward_difference_loss as reward_difference_loss,
        reward_difference_gradients as reward_difference_gradients,
    )

    # update, and the whole; from here on more than torch is needed
    from mvczigal_ref.update import (
        replay_log_prob as replay_log_prob,
        update_policy as update_policy,
    )
    from mvczigal_ref.iteration import (
        run_iteration as run_iteration,
    )
    from mvczigal_ref.trainer import (
        train as train,
    )
    from mvczigal_ref.recipes import (
        recipe as recipe,
    )
    from mvczigal_ref.models.components import (
        load_components as load_components,
    )
    # ruff: isort: on

__version__ = "0.1.0"

_HOMES = {
    "diffusion.schedule": (
        "scaled_linear_alpha_bar shift_snr lcm_timesteps ddim_timesteps clean_and_noise"
    ),
    "diffusion.guidance": "classifier_free_guidance guidance_embedding",
    "diffusion.transition": "Transition",
    "diffusion.lcm": "lcm_transition lcm_invert",
    "diffusion.ddim": "ddim_transition ddim_invert",
    "diffusion.gaussian": "sample log_prob joint_log_prob kl_divergence",
    "diffusion.sampler": "Sampler LcmSampler DdimSampler",
    "cameras": (
        "OrthographicRig PAPER_RIG camera_to_world world_to_camera projection_matrix plucker_map "
        "camera_image"
    ),
    "policy": "Policy network_output step_transition",
    "records": "Conditioning Trajectory PairedRollout RewardTable",
    "rollout.noise": "SeededNoise",
    "rollout.standard": "standard_rollout",
    "rollout.zigzag": "zigzag_rollout",
    "rollout.pair": "paired_rollout",
    "reward.protocols": "PerViewScorer JointViewScorer",
    "reward.aggregate": "weighted_sum mean_over_views joint_to_views",
    "constraint": "ConstraintState constraint_step",
    "advantage.standardise": "standardise",
    "advantage.pair": "PairAdvantages pair_advantages joint_share advantage_gap",
    "objective.reward_difference": "reward_difference_loss reward_difference_gradients",
    "update": "replay_log_prob update_policy",
    "iteration": "run_iteration",
    "trainer": "train",
    "recipes": "recipe",
    "models.components": "load_components",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

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
