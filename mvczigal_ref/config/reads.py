"""Settings that act, and when: one that the chosen method would not read is refused.

The table below holds every setting once. A new one must be entered, which a test makes sure of.
"""

from collections.abc import Iterable, Mapping

from mvczigal_ref.config.cases import (
    Case,
    compares_pairs,
    is_flow,
    is_forward,
    is_nft,
    is_tree,
    learns_groups,
    prefers_noise,
)
from mvczigal_ref.config.method import scorer_weights
from mvczigal_ref.config.paths import setting_value
from mvczigal_ref.config.train import TrainConfig
from mvczigal_ref.errors import quoted

__all__ = ["ALWAYS", "SOMETIMES", "unread", "unread_settings"]

# Weights whose network reads the guidance scale itself, and so no negative prompt.
_EMBED_GUIDANCE = ("tiny", "lcm_sdxl")


def unread_settings(config: TrainConfig) -> list[str]:
    """List the settings that do nothing in a configuration, whatever their values.

    Args:
        config: Any.

    Returns:
        Dotted paths.

    Examples:
        >>> "zigzag.steps" in unread_settings(TrainConfig())
        False
    """
    return [path for path, case in SOMETIMES.items() if not case.acts(config)]


def unread(config: TrainConfig, base: TrainConfig) -> Iterable[str]:
    """Find settings that were changed and cannot act.

    Args:
        config: After the change.
        base: Before it. A recipe's own value is never a fault, nor is the default.

    Yields:
        A sentence for each, with the remedy.

    Examples:
        >>> from mvczigal_ref.config import SamplerConfig
        >>> list(unread(TrainConfig(sampler=SamplerConfig(eta=0.5)), TrainConfig()))
        ['`sampler.eta` is read only with `sampler.kind` = "ddim", "euler_ancestral" or "tcd", and \
would change nothing here; got 0.5. Leave it out, or choose that.']
    """
    default = TrainConfig()
    for path in unread_settings(config):
        value = setting_value(config, path)
        if value not in (setting_value(default, path), setting_value(base, path)):
            yield (
                f"`{path}` is read only {SOMETIMES[path].words}, and would change nothing here; "
                f"got {quoted(value)}. Leave it out, or choose that."
            )


def _windowed(config: TrainConfig) -> bool:
    return config.rollout.kind != "pair" and not is_forward(config)


def _window(*kinds: str) -> Case:
    names = " or ".join(f'"{kind}"' for kind in kinds)
    return Case(
        lambda config: _windowed(config) and config.rollout.window in kinds,
        f"with `rollout.window` = {names} of a group, tree or branches",
    )


# Beside these there are plug-ins, which may read whatever their section holds.
_ENHANCERS = ("none", "world", "world_edits", "stored", "chat", "local")


def _captions(*enhancers: str) -> Case:
    names = " or ".join(f'"{enhancer}"' for enhancer in enhancers)
    return Case(
        lambda config: (
            config.condition.enhancer in enhancers or config.condition.enhancer not in _ENHANCERS
        ),
        f"with `condition.enhancer` = {names}",
    )


def _scorers(config: TrainConfig) -> list[str]:
    reward, guard = config.reward, config.guard
    names = [*scorer_weights(reward.per_view), *scorer_weights(reward.joint)]
    return names + ([*guard.per_view, *guard.joint] if guard.every else [])


def _computes_scores(config: TrainConfig) -> bool:
    """Tell whether a scorer has a network in this process."""
    served = config.reward.url
    return any(
        name != "per_view"
        and not name.startswith("world.")
        and not {name, name.partition(".")[0]} & served.keys()
        for name in _scorers(config)
    )


def _asks_services(config: TrainConfig) -> bool:
    """Tell whether a scorer other than a chat judge runs elsewhere."""
    return any(not name.startswith("chat_judge") for name in config.reward.url)


def _doubles(config: TrainConfig) -> bool:
    """Tell whether guidance could double the batch."""
    scale = config.sampler.guidance_scale
    if _zigzags(config):
        scale = max(scale, config.zigzag.inversion_guidance_scale)
    return scale > 1.0 and config.model.weights not in _EMBED_GUIDANCE


def _zigzags(config: TrainConfig) -> bool:
    return config.rollout.kind == "pair" and config.objective.pairing == "zigzag"


def _scales_loss(config: TrainConfig) -> bool:
    scale = config.optim.loss_scale
    return config.model.dtype == "fp16" if scale is None else scale != 1.0


def _clips(config: TrainConfig) -> bool:
    if is_forward(config):
        return config.forward.loss != "nft" and config.objective.clip
    if config.objective.kind == "divergence":
        return False
    return config.objective.clip or config.objective.kind == "preference"


_TABLE: Mapping[Case, tuple[str, ...]] = {
    Case(lambda c: c.model.weights in ("lcm_sdxl", "sdxl") or c.model.network == "unet",
         'with `model.weights` = "lcm_sdxl" or "sdxl", or `model.network` = "unet"'): (
        "model.sources",
    ),
    Case(lambda c: c.model.network == "multiview", 'with `model.network` = "multiview"'): (
        "model.rig", "model.azimuths", "model.elevation", "sampler.camera_scale",
    ),
    Case(lambda c: c.model.finetune == "lora", 'with `model.finetune` = "lora"'): (
        "model.lora_rank", "model.lora_alpha", "model.frozen_weights",
    ),
    Case(lambda c: not is_flow(c), 'with a `sampler.kind` other than "flow"'): (
        "sampler.prediction_type", "sampler.snr_shift",
    ),
    Case(lambda c: c.sampler.kind not in ("lcm", "flow"),
         'with `sampler.kind` = "ddim", "euler_ancestral" or "tcd"'): ("sampler.eta",),
    Case(lambda c: c.sampler.kind not in ("euler_ancestral", "tcd", "flow"),
         'with `sampler.kind` = "lcm" or "ddim"'): ("sampler.spacing",),
    Case(_doubles, "where guidance is above 1 and the network has no guidance embedding"): (
        "sampler.negative_prompt",
    ),
    Case(is_flow, 'with `sampler.kind` = "flow"'): (
        "flow.shift", "flow.image_is_denoised", "flow.text_length", "flow.ode",
    ),
    Case(lambda c: is_flow(c) and not is_forward(c),
         'with `sampler.kind` = "flow", where steps draw noise'): (
        "flow.kernel", "flow.noise_scale",
    ),
    Case(lambda c: is_flow(c) and not is_forward(c) and c.flow.kernel == "cps",
         'with `sampler.kind` = "flow" and `flow.kernel` = "cps", where steps draw noise'): (
        "flow.density",
    ),
    Case(lambda c: c.rollout.kind in ("group", "branches"),
         'with `rollout.kind` = "group" or "branches"'): ("rollout.members",),
    Case(lambda c: c.rollout.kind == "group", 'with `rollout.kind` = "group"'): (
        "rollout.shared_noise",
    ),
    Case(_windowed, "where a group, tree or branches draw noise"): ("rollout.window",),
    _window("fixed", "random", "sliding", "decaying"): ("rollout.window_size",),
    _window("fixed", "random"): ("rollout.window_start",),
    _window("random"): ("rollout.window_last_start",),
    _window("fixed"): ("rollout.window_spacing",),
    _window("sliding", "decaying"): (
        "rollout.window_stride", "rollout.window_interval", "rollout.window_end",
    ),
    _window("decaying"): ("rollout.window_decay", "rollout.window_decay_after"),
    Case(is_tree, 'with `rollout.kind` = "tree"'): (
        "rollout.split_steps", "rollout.split_width", "rollout.split_noise",
        "rollout.pruned_steps", "rollout.pruned_leaves", "advantage.fusion_inverse_temperature",
    ),
    Case(lambda c: is_tree(c) and c.rollout.split_noise != 1.0,
         'with a `rollout.split_noise` other than 1 of a tree'): ("rollout.split_density",),
    Case(lambda c: is_tree(c) and bool(c.rollout.pruned_steps),
         "with `rollout.pruned_steps` of a tree"): ("rollout.pruned_interval",),
    Case(lambda c: is_tree(c) and bool(c.rollout.pruned_steps)
         and c.rollout.pruned_interval > 0,
         "with a positive `rollout.pruned_interval` of a tree"): ("rollout.pruned_first",),
    Case(lambda c: is_tree(c) and c.rollout.pruned_leaves != "none",
         'with `rollout.pruned_leaves` = "siblings" or "extremes" of a tree'): (
        "rollout.pruned_share",
    ),
    Case(lambda c: is_tree(c) and c.advantage.fusion_inverse_temperature > 0.0,
         "with a positive `advantage.fusion_inverse_temperature` of a tree"): (
        "advantage.fusion",
    ),
    Case(learns_groups, 'with `objective.kind` = "policy_gradient", "guard", "sequence" or '
         '"divergence"'): (
        "advantage.drop_alike", "objective.step_weight", "objective.train_share",
        "optim.step_per_decision",
    ),
    Case(lambda c: learns_groups(c) and c.rollout.kind == "group",
         'with `rollout.kind` = "group" and an objective of ratios'): (
        "advantage.pruned_share",
    ),
    Case(lambda c: c.rollout.kind == "branches", 'with `rollout.kind` = "branches"'): (
        "rollout.trunks", "rollout.strides", "rollout.fine_steps", "rollout.last_stride",
    ),
    Case(lambda c: is_flow(c) and c.rollout.kind in ("group", "tree") and not is_forward(c),
         'with `sampler.kind` = "flow", where a group or tree draws noise'): (
        "rollout.tail_share",
    ),
    Case(lambda c: c.rollout.kind != "pair",
         'with `rollout.kind` = "group", "tree" or "branches"'): ("rollout.nodes_per_call",),
    Case(lambda c: c.rollout.kind == "pair", 'with `rollout.kind` = "pair"'): (
        "objective.pairing",
    ),
    Case(_zigzags, 'with `rollout.kind` = "pair" and `objective.pairing` = "zigzag"'): (
        "zigzag.steps",
    ),
    Case(lambda c: _zigzags(c) and c.zigzag.steps > 0,
         'with `rollout.kind` = "pair", `objective.pairing` = "zigzag" and a positive '
         "`zigzag.steps`"): (
        "zigzag.rounds", "zigzag.inversion_guidance_scale", "zigzag.inversion_camera_scale",
    ),
    _captions("world", "world_edits", "stored", "chat", "local"): (
        "condition.weight", "reward.texts_per_call",
    ),
    _captions("world_edits", "stored"): ("condition.num_captions",),
    _captions("stored"): ("condition.file",),
    _captions("chat", "local"): (
        "condition.model", "condition.requests_at_once", "condition.samples_per_question",
    ),
    _captions("chat"): ("condition.url", "condition.api_key_env"),
    _captions("world", "world_edits", "chat", "local"): ("condition.instructions",),
    Case(lambda c: not (isinstance(c.reward.per_view, str)
                        and isinstance(c.reward.joint, str)),
         "where a reward adds several scorers"): ("reward.combine",),
    Case(_computes_scores, "where a scorer has a network in this process"): (
        "reward.device", "reward.dtype",
    ),
    Case(lambda c: _computes_scores(c) or _asks_services(c),
         "where a scorer has a network, in this process or behind `reward.url`"): (
        "reward.images_per_chunk",
    ),
    Case(_asks_services, "with `reward.url` of a scorer that is no chat judge"): (
        "reward.cache",
    ),
    Case(lambda c: bool(c.reward.url), "with `reward.url`"): (
        "reward.timeout", "reward.wait",
    ),
    Case(lambda c: any(name.startswith("chat_judge") for name in _scorers(c)),
         "with a chat judge among the scorers"): (
        "reward.api_key_env", "reward.requests_at_once", "reward.images_per_question",
    ),
    Case(lambda c: c.guard.every > 0, "with a positive `guard.every`"): (
        "guard.per_view", "guard.joint", "guard.diversity", "guard.noises", "guard.margin",
        "guard.unit", "guard.fallen", "guard.action",
    ),
    Case(lambda c: c.advantage.mode == "weighted_sum",
         'with `advantage.mode` = "weighted_sum"'): ("advantage.joint_weight",),
    Case(lambda c: not compares_pairs(c),
         'with an `objective.kind` other than "reward_difference" or "preference"'): (
        "advantage.spread", "advantage.ddof", "advantage.delta", "advantage.clip",
        "objective.kl_weight",
    ),
    Case(_clips, 'with `objective.clip` = true or `objective.kind` = "preference", and not '
         'with "divergence" or DiffusionNFT'): ("objective.clip_range",),
    Case(lambda c: c.objective.kind in (
             "reward_difference", "policy_gradient", "guard", "sequence")
         or c.objective.is_plugin or (is_forward(c) and not is_nft(c)),
         'with `objective.kind` = "reward_difference", "policy_gradient", "guard" or '
         '"sequence", or a `forward.loss` other than "nft"'): ("objective.clip",),
    Case(lambda c: c.objective.kind == "divergence", 'with `objective.kind` = "divergence"'): (
        "objective.divergence_range",
    ),
    Case(lambda c: compares_pairs(c) and c.model.network == "multiview",
         'with `objective.kind` = "reward_difference" or "preference" of several views'): (
        "objective.density",
    ),
    Case(lambda c: c.objective.kind == "preference", 'with `objective.kind` = "preference"'): (
        "objective.reference", "objective.preference_form",
    ),
    Case(lambda c: c.objective.kind == "reward_difference" or c.objective.is_plugin,
         'with `objective.kind` = "reward_difference"'): ("objective.temperature",),
    Case(lambda c: not is_forward(c) and not prefers_noise(c),
         "where densities are compared"): ("objective.reduction",),
    Case(lambda c: c.rollout.kind == "pair" and not is_flow(c) and not prefers_noise(c),
         'with `rollout.kind` = "pair" and `sampler.kind` = "lcm" or "ddim", where densities '
         "are compared"): (
        "objective.train_last_action",
    ),
    Case(lambda c: c.objective.kind == "preference" or c.objective.is_plugin
         or (is_forward(c) and c.forward.loss == "group_preference"),
         'with `objective.kind` = "preference" or `forward.loss` = "group_preference"'): (
        "objective.preference_scale",
    ),
    Case(lambda c: c.objective.kl_weight > 0 and is_flow(c) and not is_forward(c)
         and c.flow.kernel != "cps",
         'with a positive `objective.kl_weight`, on steps of `flow.kernel` = "sde" or '
         '"constant"'): ("objective.kl_form",),
    Case(lambda c: is_forward(c) or prefers_noise(c),
         'with `objective.kind` = "forward_process" or `objective.preference_form` = '
         '"noise"'): ("forward.levels",),
    Case(is_forward, 'with `objective.kind` = "forward_process"'): (
        "forward.loss", "forward.shared_noise", "forward.old_decay_rate",
        "forward.old_decay_largest", "forward.old_decay_after", "forward.old_decay_unit",
    ),
    Case(is_nft, 'with `objective.kind` = "forward_process" and `forward.loss` = "nft"'): (
        "forward.mix", "forward.advantage",
    ),
    Case(lambda c: is_forward(c) and c.forward.loss == "matching",
         'with `objective.kind` = "forward_process" and `forward.loss` = "matching"'): (
        "forward.matching_weight",
    ),
    Case(lambda c: c.advantage.mode == "constrained",
         'with `advantage.mode` = "constrained"'): (
        "constraint.step_size_violated", "constraint.step_size_satisfied",
        "constraint.multiplier_init", "constraint.multiplier_max", "constraint.threshold_init",
        "constraint.threshold_decay", "constraint.order",
    ),
    Case(lambda c: c.advantage.mode == "constrained" and c.constraint.threshold_init is None,
         'with `advantage.mode` = "constrained" and no `constraint.threshold_init`'): (
        "constraint.threshold_objects",
    ),
    Case(_scales_loss, 'with an `optim.loss_scale` other than 1, or `model.dtype` = "fp16"'): (
        "optim.loss_scale_growth_interval",
    ),
    Case(lambda c: c.run.sharding == "full" and c.model.finetune == "full",
         'with `run.sharding` = "full" and `model.finetune` = "full"'): (
        "run.compute_dtype",
    ),
    Case(lambda c: c.run.sharding == "full", 'with `run.sharding` = "full"'): (
        "run.offload_parameters",
    ),
    Case(lambda c: not c.rollout.ahead, "without `rollout.ahead`, which overlaps them"): (
        "reward.overlap",
    ),
    Case(lambda c: c.optim.average_decay > 0, "with a positive `optim.average_decay`"): (
        "optim.average_every",
    ),
    Case(lambda c: compares_pairs(c) and not prefers_noise(c),
         'with `objective.kind` = "reward_difference" or "preference" of densities'): (
        "optim.steps_per_microbatch", "run.replay_objects_per_slice",
    ),
    Case(compares_pairs, 'with `objective.kind` = "reward_difference" or "preference"'): (
        "run.arms_per_call",
    ),
}  # fmt: skip

SOMETIMES: Mapping[str, Case] = {path: case for case, paths in _TABLE.items() for path in paths}
"""Case in which each setting acts that does not always act."""

ALWAYS: tuple[str, ...] = (
    "recipe",
    "model.network", "model.weights", "model.image_size", "model.finetune", "model.dtype",
    "model.gradient_checkpointing", "model.storage_dtype", "model.storage_device",
    "model.offload_frozen", "model.views_per_decode", "model.channels_last", "model.compile",
    "model.tf32",
    "sampler.kind", "sampler.num_steps", "sampler.evaluation_steps", "sampler.guidance_scale",
    "rollout.kind", "rollout.ahead",
    "condition.enhancer",
    # Names of no scorer of the run are refused when scorers are looked up.
    "reward.per_view", "reward.joint", "reward.weights", "reward.tokenizers", "reward.url",
    "guard.every",
    "advantage.mode", "advantage.shuffle",
    "objective.kind",
    "optim.kind", "optim.lr", "optim.betas", "optim.eps", "optim.weight_decay",
    "optim.max_grad_norm",
    "optim.loss_scale", "optim.epochs_per_iteration", "optim.optimizer_steps_per_epoch",
    "optim.warmup_iterations", "optim.decay_iterations", "optim.average_decay",
    "run.iterations", "run.objects_per_iteration", "run.objects_per_slice", "run.prompts",
    "run.held_out", "run.seed", "run.checkpoint_every", "run.keep_checkpoints",
    "run.evaluate_every", "run.evaluation_noises", "run.trackers", "run.device",
    "run.sharding", "run.reduction",
)  # fmt: skip
"""Settings that every run reads."""
