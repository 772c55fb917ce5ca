"""Panels of a run's page: its metrics as curves, and how to read them."""

from collections.abc import Collection
from dataclasses import replace

from mvczigal_ref.report.panel import Curve, Panel

__all__ = ["panels"]

_RAW = " [reward units]"  # of a scorer whose unit is its own


def panels(unit: str, keys: Collection[str]) -> list[Panel]:
    """List the panels of a run's page, in the order of the algorithm.

    Args:
        unit: Unit of the rewards, such as ``dB``; may be empty.
        keys: Names of the metrics to draw; those without a panel are left out.

    Returns:
        The panels, with curves of these metrics alone.

    Examples:
        >>> [panel.title for panel in panels("dB", ["slack", "threshold"])]
        ['Slack']
    """
    every = [
        *_rewards(unit, keys),
        *_constraint(unit),
        *_learning(),
        *_forward_process(),
        *_held_out(unit, keys),
    ]
    measured = [
        replace(panel, curves=tuple(curve for curve in panel.curves if curve.key in keys))
        for panel in every
    ]
    # A threshold alone, without the reward that it bounds, is no panel.
    return [panel for panel in measured if any(not curve.dashed for curve in panel.curves)]


def _brackets(unit: str) -> str:
    return f" [{unit}]" if unit else _RAW


def _rewards(unit: str, keys: Collection[str]) -> list[Panel]:
    measured = _brackets(unit)
    constrained = "threshold" in keys
    arms = (
        Curve(key="per_view_reward/zigzag", label="zigzag"),
        Curve(key="per_view_reward/standard", label="standard"),
    )
    joint = (
        Curve(key="joint_view_reward/zigzag", label="zigzag"),
        Curve(key="joint_view_reward/standard", label="standard"),
    )
    threshold = Curve(key="threshold", label="threshold", dashed=True)
    goal = "The constraint aims to keep it above the threshold."
    scorers = sorted({_scorer_of(key) for key in keys if key.startswith("reward/")})
    return [
        Panel(
            title="Reward of single views",
            axis=f"reward{measured}",
            note="Mean over this iteration's groups.",
            curves=(
                Curve(key="per_view_reward/mean", label="under prompts"),
                Curve(key="per_view_reward/under_captions", label="under captions"),
            ),
            noisy=True,
        ),
        Panel(
            title="Joint-view reward of groups",
            axis=f"reward{measured}",
            note=goal if constrained else "Mean over this iteration's groups.",
            curves=(Curve(key="joint_view_reward/mean", label="mean"), threshold),
            noisy=True,
        ),
        Panel(
            title="Spread within groups",
            axis=f"standard deviation{measured}",
            note="Standard deviation of a group's rewards: where it is 0, nothing is learnt.",
            curves=(
                Curve(key="per_view_reward/group_std", label="per view"),
                Curve(key="joint_view_reward/group_std", label="joint view"),
            ),
            noisy=True,
            zero=True,
        ),
        Panel(
            title="Groups scored alike",
            axis="share [1]",
            note="Share of groups whose samples all have one reward: they teach nothing.",
            curves=(Curve(key="groups_alike"),),
            noisy=True,
            zero=True,
        ),
        Panel(
            title="Per-view reward",
            axis=f"reward{measured}",
            note="Mean over this iteration's training prompts, both arms of each pair.",
            curves=arms,
            noisy=True,
        ),
        Panel(
            title="Joint-view reward",
            axis=f"reward{measured}",
            note=goal if constrained else "Mean over the same prompts, both arms of each pair.",
            curves=(*joint, threshold),
            noisy=True,
        ),
        Panel(
            title="Gap, zigzag minus standard",
            axis=f"gap{measured}",
            note="Each pair learns from its own gap; the mean over pairs may well be 0.",
            curves=(
                Curve(key="per_view_reward/gap", label="per view"),
                Curve(key="joint_view_reward/gap", label="joint view"),
            ),
            noisy=True,
            zero=True,
        ),
        *(
            Panel(
                title=f"Reward of {name}",
                axis=f"reward{_RAW}",
                note="Mean reward of this scorer, before its weight.",
                curves=(
                    Curve(key=f"reward/{name}"),
                    Curve(key=f"reward/{name}/zigzag", label="zigzag"),
                    Curve(key=f"reward/{name}/standard", label="standard"),
                ),
                noisy=True,
            )
            for name in scorers
        ),
    ]


def _scorer_of(key: str) -> str:
    """Take a scorer's name, which may be a path, out of the metric of one of its arms or of all."""
    name = key.removeprefix("reward/")
    return name.removesuffix("/zigzag").removesuffix("/standard")


def _constraint(unit: str) -> list[Panel]:
    return [
        Panel(
            title="Multiplier",
            axis="weight [1]",
            note="Weight of the joint reward; it rises while the slack is negative.",
            curves=(Curve(key="multiplier"),),
            zero=True,
        ),
        Panel(
            title="Slack",
            axis=f"slack{_brackets(unit)}",
            note="Joint reward minus threshold; below 0 the constraint is violated.",
            curves=(Curve(key="slack"),),
            noisy=True,
            zero=True,
        ),
    ]


def _learning() -> list[Panel]:
    return [
        Panel(
            title="Loss",
            axis="loss [1]",
            note="Value of the objective; for pairs the mean squared gap at each first step.",
            curves=(Curve(key="loss"),),
            noisy=True,
        ),
        Panel(
            title="Approximate KL",
            axis="KL [(nats/element)²]",
            note="Half the mean squared log-ratio to the policy that sampled.",
            curves=(Curve(key="approx_kl"),),
            noisy=True,
            zero=True,
        ),
        Panel(
            title="Clip fraction",
            axis="share [1]",
            note="Share of log-ratios outside the clip range.",
            curves=(Curve(key="clip_fraction"),),
            noisy=True,
            zero=True,
        ),
        Panel(
            title="Gradient norm",
            axis="norm [loss/parameter]",
            note="Before clipping, mean over the iteration's optimiser steps.",
            curves=(Curve(key="grad_norm"),),
            noisy=True,
        ),
        Panel(
            title="Optimiser steps that changed nothing",
            axis="steps [1]",
            note="Left out where the scaled gradient overflowed; idle where the loss is flat.",
            curves=(
                Curve(key="skipped_steps", label="left out"),
                Curve(key="idle_steps", label="idle"),
            ),
            zero=True,
        ),
        Panel(
            title="Loss scale",
            axis="factor [1]",
            note="Factor on the loss in half precision; it halves when a gradient overflows.",
            curves=(Curve(key="loss_scale"),),
        ),
        Panel(
            title="Replay deviation",
            axis="share of clip range [1]",
            note="Largest log-ratio of the first replay; exactly 0 on equal slices.",
            curves=(Curve(key="replay_deviation"),),
            zero=True,
        ),
        Panel(
            title="Divergence from the reference",
            axis="KL [nats/element]",
            note="KL divergence of each step's Gaussian from that of the network without its LoRA.",
            curves=(Curve(key="reference_kl"),),
            noisy=True,
            zero=True,
        ),
        Panel(
            title="Probability drift",
            axis="drift [nats/element]",
            note="Change of the log-density of a sample under its caption in place of its prompt.",
            curves=(
                Curve(key="drift/median", label="median"),
                Curve(key="drift/p95", label="95 %"),
            ),
            noisy=True,
            zero=True,
        ),
    ]


def _forward_process() -> list[Panel]:
    return [
        Panel(
            title="Forward-process loss",
            axis="error [1]",
            note="Scaled errors of the new velocity and of its mirror image, and the loss of both.",
            curves=(
                Curve(key="forward/policy_loss", label="policy"),
                Curve(key="forward/positive_loss", label="positive"),
                Curve(key="forward/negative_loss", label="negative"),
            ),
            noisy=True,
        ),
        Panel(
            title="Distance of velocities",
            axis="mean square [latent²]",
            note="Mean squared difference of the new velocity from others.",
            curves=(
                Curve(key="forward/old_distance", label="old policy"),
                Curve(key="forward/reference_distance", label="reference"),
            ),
            noisy=True,
            zero=True,
        ),
        Panel(
            title="Optimality",
            axis="weight [1]",
            note="Mean weight of the positive fit; 0.5 for average samples.",
            curves=(Curve(key="forward/optimality"),),
            noisy=True,
        ),
    ]


def _held_out(unit: str, keys: Collection[str]) -> list[Panel]:
    measured = _brackets(unit)
    trained = {"per_view": "per view", "joint": "joint view"}
    seen = sorted(key.removeprefix("guard/") for key in keys if key.startswith("guard/"))
    return [
        Panel(
            title="Held-out scores",
            axis=f"score{measured}",
            note="Mean over the held-out prompts and their noises.",
            curves=(
                Curve(key="held_out/per_view", label="per view"),
                Curve(key="held_out/joint", label="joint view"),
            ),
        ),
        *(
            Panel(
                title=f"Guard: {trained.get(name, name)}",
                axis=f"score{measured if name in trained else _RAW}",
                note="Mean over the held-out prompts, at every check.",
                curves=(Curve(key=f"guard/{name}"),),
            )
            for name in seen
            if name not in ("fired", "best_iteration")
        ),
        Panel(
            title="Guard: best check",
            axis="finished iterations [1]",
            note="Finished iterations at the guard's best scores so far.",
            curves=(Curve(key="guard/best_iteration"),),
        ),
    ]
