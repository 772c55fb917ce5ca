"""Rewards of a group's samples under every condition, and the advantages made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.advantage.pair import joint_share
from mvczigal_ref.condition.distinct import distinct_texts, every_condition
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.group_samples import GroupSamples
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.rollout.noise import derived_generator
from mvczigal_ref.shapes import Images
from mvczigal_ref.system import System

__all__ = ["GroupRewards", "group_advantage_tables", "score_groups"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRewards:
    """Raw rewards by scorer, conditions first [reward units]."""

    per_view: Mapping[str, Float[Tensor, "condition prompt sample view"]]
    """Of single views."""

    joint: Mapping[str, Float[Tensor, "condition prompt sample"]]
    """Of all views together; empty where the mean of the per-view reward stands for it."""

    weights: Mapping[str, float]
    """Of every scorer [1 / reward units]."""

    def per_view_total(self) -> Float[Tensor, "condition prompt sample view"]:
        """Add the per-view rewards, each times its weight."""
        return _total(self.per_view, self.weights)

    def joint_total(self) -> Float[Tensor, "condition prompt sample"]:
        """Add the joint rewards; the mean over views where there are none."""
        if not self.joint:
            return self.per_view_total().mean(-1)
        return _total(self.joint, self.weights)

    def require_finite(self) -> None:
        """Refuse a reward that is not finite.

        Raises:
            NonFiniteError: Names its scorer and place.
        """
        for name, table in (*self.per_view.items(), *self.joint.items()):
            _check_finite(name, table)


@torch.no_grad()
def score_groups(
    system: System,
    images: Float[Tensor, "prompt sample view rgb height width"],
    captions: Sequence[Sequence[str]],
) -> GroupRewards:
    """Judge every sample under every condition; equal texts of a prompt are asked once.

    Args:
        system: Its scorers are asked.
        images: In [0, 1].
        captions: Per condition one text a prompt, the prompts themselves first.

    Returns:
        Rewards on the CPU.

    Raises:
        ScorerUnavailableError: If a scorer's service is out.
    """
    samples = images.shape[1]
    columns = distinct_texts(captions)
    per_view, joint = Mixture.of(system.per_view, "per_view"), system.joint
    judged = Mixture(scorers={}, weights={}) if joint is None else Mixture.of(joint, "joint_view")
    rows: dict[str, list[Tensor]] = {}
    for column in columns:
        flat: Images = column.of(images).flatten(0, 1)
        said = [text for text in column.texts for _ in range(samples)]
        for name, table in (
            *per_view.tables(flat, said).items(),
            *judged.tables(flat, said).items(),
        ):
            rows.setdefault(name, []).append(table.unflatten(0, (-1, samples)).cpu())
    tables = {name: every_condition(columns, values) for name, values in rows.items()}
    return GroupRewards(
        per_view={name: tables[name] for name in per_view.scorers},
        joint={name: tables[name] for name in judged.scorers},
        weights={**per_view.weights, **judged.weights},
    )


def group_advantage_tables(
    rewards: GroupRewards,
    samples: GroupSamples,
    *,
    multiplier: float,
    leaf_log_prob: Float[Tensor, "prompt sample"] | None = None,
    config: TrainConfig,
    iteration: int,
) -> list[tuple[Float[Tensor, "prompt member view"], ...]]:
    """Compare all samples of an iteration, each under each condition.

    Args:
        rewards: Of all prompts of the iteration.
        samples: Any slice: its shape says how rewards belong to decisions.
        multiplier: Of the constraint [1].
        leaf_log_prob: Of all samples' paths, where likelier ones count more [nats].
        config: The section ``advantage`` is read.
        iteration: Its index, for the control that shuffles.

    Returns:
        Per condition a table a decision, of all prompts [1].

    Raises:
        NonFiniteError: If a reward is not finite.
    """
    share = joint_share(
        config.advantage.mode, multiplier=multiplier, joint_weight=config.advantage.joint_weight
    )
    compare = partial(samples.advantages, leaf_log_prob=leaf_log_prob)
    apart = config.reward.combine == "advantages"
    per_view = rewards.per_view if apart else {"": rewards.per_view_total()}
    joint = rewards.joint if apart and rewards.joint else {"": rewards.joint_total()}
    weights = {**rewards.weights, "": 1.0}
    found = []
    for condition in range(next(iter(rewards.per_view.values())).shape[0]):
        by_view, by_object = (
            compare(tables, weights={name: weights[name] for name in tables})
            for tables in (
                {name: table[condition].movedim(-1, 0) for name, table in per_view.items()},
                {name: table[condition] for name, table in joint.items()},
            )
        )
        found.append(
            tuple(
                (1.0 - share) * views.movedim(0, -1) + share * whole[..., None]
                for views, whole in zip(by_view, by_object, strict=True)
            )
        )
    if config.advantage.shuffle:
        prompts = found[0][0].shape[0]
        generator = derived_generator(config.run.seed, iteration, "shuffle")
        order = torch.randperm(prompts, generator=generator)
        found = [tuple(table[order] for table in tables) for tables in found]
    return found


def _total(tables: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights[name] * table for name, table in sorted(tables.items())]).sum(0)


def _check_finite(name: str, table: Tensor) -> None:
    """Name the first reward that is not finite."""
    bad = (~table.isfinite()).nonzero().tolist()
    if not bad:
        return
    condition, prompt, sample, *view = bad[0]
    under = f" under caption {condition}" if condition else ""
    raise NonFiniteError(
        f"reward/{name} of sample {sample}{under}",
        object=prompt,
        view=view[0] if view else None,
        value=table[tuple(bad[0])].item(),
    )
