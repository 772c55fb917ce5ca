"""Rules between settings of sampling: network, grid, noise, and how samples of a prompt relate."""

from collections.abc import Iterable
from typing import Any

from mvczigal_ref.config.plugins import plugin_names

__all__ = ["grid_contradictions", "sampling_contradictions"]

_Settings = Any  # a TrainConfig, whose module imports this one
# Samplers whose last step ends at the image, without noise.
_ENDING = ("euler_ancestral", "tcd")
# Length of the grid that a sampler's steps are taken from, where it is not 1000.
_MOST_STEPS = {"lcm": 50, "tcd": 50}


def grid_contradictions(config: _Settings) -> Iterable[str]:
    """Find grids of steps or of pixels that do not fit what they are taken from, or go into.

    Args:
        config: A :class:`~mvczigal_ref.config.train.TrainConfig`, each setting valid by itself.

    Yields:
        One sentence per problem, with the remedy.
    """
    sampler, model = config.sampler, config.model
    most = _MOST_STEPS.get(sampler.kind if sampler.spacing == "usual" else "", 1000)
    for name in ("num_steps", "evaluation_steps"):
        steps = getattr(sampler, name)
        if steps > most:
            yield (
                f'`sampler.{name}` must be at most {most} with `sampler.kind` = "{sampler.kind}", '
                f"the grid that its steps are taken from; got {steps}."
            )
    together = config.optim.steps_per_microbatch
    if config.objective.compares_pairs and together > sampler.num_steps:
        yield (
            "`optim.steps_per_microbatch` must be at most `sampler.num_steps` = "
            f"{sampler.num_steps}; got {together}."
        )
    unit = 16 if model.network == "flow" and model.weights != "tiny_flow" else 8
    nearest = max(1, (model.image_size + unit // 2 - 1) // unit) * unit
    if model.image_size != nearest:
        yield (
            f"`model.image_size` must be a multiple of {unit}, since autoencoder and cameras or "
            f"tokens divide an image so; got {model.image_size}. The nearest valid value is "
            f"{nearest}."
        )


def sampling_contradictions(config: _Settings) -> Iterable[str]:
    """Find settings of network, noise and rollout that exclude each other.

    Args:
        config: A :class:`~mvczigal_ref.config.train.TrainConfig`, each setting valid by itself.

    Yields:
        One sentence per problem, with the remedy.
    """
    yield from _network_contradictions(config)
    yield from _noise_contradictions(config)
    yield from _tree_contradictions(config)


def _network_contradictions(config: _Settings) -> Iterable[str]:
    network, sampler, one_view = config.model.network, config.sampler, config.model.one_view
    if (network == "flow") != sampler.is_flow:
        remedy = 'Set both to "flow", or neither.'
        if sampler.is_plugin:
            group = "flow_samplers" if network == "flow" else "samplers"
            names = ", ".join(plugin_names(group)) or "none"
            remedy = f"Plug-ins that fit stand in mvczigal_ref.{group}: {names}."
        yield (
            f'`sampler.kind` = "{sampler.kind}" does not fit `model.network` = "{network}": a '
            "flow transformer predicts a flow's velocity, a UNet a diffusion "
            f"model's target. {remedy}"
        )
    if one_view and config.reward.joint != "per_view":
        yield (
            f'`reward.joint` must be "per_view" with `model.network` = "{network}", one view: '
            f"nothing is there to be judged together; got {config.reward.joint!r}."
        )
    if one_view and config.advantage.mode != "per_view":
        yield (
            f'`advantage.mode` must be "per_view" with `model.network` = "{network}", one view; '
            f"got {config.advantage.mode!r}."
        )
    if one_view and (config.model.azimuths or config.model.elevation is not None):
        yield (
            "`model.azimuths` and `model.elevation` place cameras, which a network of one view "
            "does not have. Leave both out."
        )
    if sampler.is_flow and config.flow.kernel == "cps" and config.flow.noise_scale > 1.0:
        yield (
            '`flow.noise_scale` must be at most 1 with `flow.kernel` = "cps"; got '
            f"{config.flow.noise_scale}."
        )


def _noise_contradictions(config: _Settings) -> Iterable[str]:
    rollout, kind = config.rollout, config.sampler.kind
    learns = config.objective.kind != "forward_process"
    if learns and kind in ("ddim", *_ENDING) and config.sampler.eta == 0.0:
        yield (
            f'`sampler.eta` must be positive: "{kind}" without noise has no log-density to learn '
            "from; got 0."
        )
    if kind in ("ddim", *_ENDING) and config.sampler.eta > 1.0:
        yield f'`sampler.eta` must be at most 1 with "{kind}"; got {config.sampler.eta}.'
    if kind == "euler_ancestral" and config.sampler.prediction_type == "sample":
        yield (
            '`sampler.prediction_type` must be "epsilon" or "v_prediction" with "euler_ancestral", '
            'whose last step ends at the clean image; got "sample".'
        )
    if kind in _ENDING and config.objective.train_last_action:
        yield (
            f'`objective.train_last_action` must be false with `sampler.kind` = "{kind}", whose '
            "last step draws no noise."
        )
    if rollout.kind == "pair":
        if config.sampler.is_flow and config.flow.kernel == "cps":
            yield (
                '`rollout.kind` = "pair" scores every step, and the last one of `flow.kernel` = '
                '"cps" draws no noise. Set the kernel to "sde", or sample groups.'
            )
        return
    if rollout.kind == "branches" and not config.sampler.is_flow:
        yield (
            f'`rollout.kind` = "branches" needs a flow model\'s ODE as trunk; got `sampler.kind` '
            f'= "{kind}". Sample a group or a tree.'
        )
    if kind == "lcm" and rollout.window != "all":
        yield (
            '`rollout.window` must be "all" with `sampler.kind` = "lcm", which renews its noise '
            f"at every step and has no deterministic form; got {rollout.window!r}."
        )
    if rollout.kind != "tree" and rollout.members < 2:
        yield (
            "`rollout.members` must be at least 2: a sample is compared with the others of its "
            f"prompt, and alone its advantage is 0; got {rollout.members}."
        )


def _tree_contradictions(config: _Settings) -> Iterable[str]:
    rollout, advantage = config.rollout, config.advantage
    if rollout.kind == "tree":
        if not rollout.split_steps:
            yield "`rollout.split_steps` must name a step at which the tree divides; got none."
        if rollout.split_width < 2:
            yield (
                "`rollout.split_width` must be at least 2: a tree that never divides is one "
                f"sample, which has nothing to be compared with; got {rollout.split_width}."
            )
    elif advantage.fusion_inverse_temperature > 0.0:
        yield (
            "`advantage.fusion_inverse_temperature` is for the inner nodes of a tree; got "
            f'`rollout.kind` = "{rollout.kind}". Set it to 0.'
        )
    if rollout.kind == "branches" and advantage.spread == "batch":
        yield (
            '`advantage.spread` must be "group" with `rollout.kind` = "branches", whose steps and '
            'grids are compared each by itself; got "batch".'
        )
