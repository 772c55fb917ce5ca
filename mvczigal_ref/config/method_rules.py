"""Rules between settings of the methods: densities, ratios and references."""

from collections.abc import Iterable
from typing import Any

from mvczigal_ref.config.method import GROUP_KINDS
from mvczigal_ref.config.paths import setting_value

__all__ = ["method_contradictions"]

_Settings = Any  # a TrainConfig, whose module imports this one


def method_contradictions(config: _Settings) -> Iterable[str]:
    """Find settings of densities, ratios and references that exclude each other.

    Args:
        config: A :class:`~mvczigal_ref.config.train.TrainConfig`, each setting valid by itself.

    Yields:
        One sentence per problem, with the remedy.
    """
    yield from _density_contradictions(config)
    yield from _ratio_contradictions(config)
    yield from _reference_contradictions(config)
    if config.objective.prefers_noise and config.sampler.is_flow:
        yield (
            '`objective.preference_form` = "noise" is defined on the signal shares of a UNet; got '
            '`sampler.kind` = "flow". Take `forward.loss` = "group_preference" of groups.'
        )


def _density_contradictions(config: _Settings) -> Iterable[str]:
    objective = config.objective
    if not (
        config.sampler.is_flow and config.flow.kernel == "cps" and config.flow.density == "unscaled"
    ):
        return
    if objective.kind in ("guard", "divergence"):
        yield (
            f'`flow.density` must be "gaussian" with `objective.kind` = "{objective.kind}", which '
            'compares Gaussians; got "unscaled".'
        )
    if config.advantage.fusion_inverse_temperature > 0.0:
        yield (
            '`flow.density` must be "gaussian" with a positive '
            '`advantage.fusion_inverse_temperature`, which adds up log-densities; got "unscaled".'
        )


def _ratio_contradictions(config: _Settings) -> Iterable[str]:
    objective, rollout = config.objective, config.rollout
    if objective.kind in GROUP_KINDS[1:] and rollout.kind == "pair":
        yield f'`objective.kind` = "{objective.kind}" needs groups; got `rollout.kind` = "pair".'
    elif objective.kind == "sequence" and rollout.kind != "group":
        yield (
            '`objective.kind` = "sequence" needs the whole trajectory of every sample; got '
            f'`rollout.kind` = "{rollout.kind}". Set it to "group".'
        )
    apart = (objective.step_weight, config.optim.step_per_decision)
    if objective.kind == "sequence" and apart != ("equal", False):
        yield (
            '`objective.step_weight` must be "equal" and `optim.step_per_decision` false with '
            '`objective.kind` = "sequence", whose ratio is over all steps; got '
            f'"{apart[0]}" and {str(apart[1]).lower()}.'
        )
    if objective.step_weight == "rectified" and not config.sampler.is_flow:
        yield (
            '`objective.step_weight` = "rectified" is defined on the noise levels of a flow; got '
            f'`sampler.kind` = "{config.sampler.kind}".'
        )


def _reference_contradictions(config: _Settings) -> Iterable[str]:
    if config.model.finetune == "lora":
        return
    forward = config.objective.kind == "forward_process"
    needs = {
        "objective.reference": config.objective.reference == "frozen"
        and config.objective.kind == "preference",
        "forward.loss": forward and config.forward.loss == "group_preference",
    }
    for path, needed in needs.items():
        if needed:
            yield (
                f'`{path}` = "{setting_value(config, path)}" needs a reference, which is the '
                f'network without its LoRA; got `model.finetune` = "{config.model.finetune}". '
                "Train a LoRA."
            )
