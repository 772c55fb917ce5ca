"""Trial of groups, trees and branches, under the prompts and under a caption."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.config import Dtype
from mvczigal_ref.distributed import World
from mvczigal_ref.method.group_batches import group_update_settings
from mvczigal_ref.method.group_loss import group_objective, step_weights
from mvczigal_ref.method.sample import draw_samples
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.preflight.scaled_gradient import scaled_gradient
from mvczigal_ref.preflight.trial import Place, Trial
from mvczigal_ref.preflight.workload import num_captions
from mvczigal_ref.records import GroupDecision, Samples
from mvczigal_ref.training.state import initial_loss_scale
from mvczigal_ref.update.group_batch import GroupBatch, ReplayedDecision
from mvczigal_ref.update.groups import update_groups
from mvczigal_ref.update.replay import decision_under, replay_decision

__all__ = ["GroupTrial"]

_CAPTION = "a blue ball with a yellow fin"


class GroupTrial(Trial):
    """One slice of groups."""

    def sample(self, storage: Dtype) -> Samples:
        """Sample groups as an iteration does."""
        return draw_samples(
            self.system, self.conditioning, self.noise(), config=self.stored_in(storage),
            iteration=0,
        )  # fmt: skip

    def drawn(self, samples: Samples) -> list[Tensor]:
        """Give every action and every sample."""
        return [*(decision.action for decision in samples.decisions), samples.denoised]

    def places(self, samples: Samples) -> list[Place]:
        """Replay every decision under its prompts, and under a caption where there are some."""
        texts = {"": self.conditioning}
        if self.config.condition.enhancer != "none":
            texts[", under a caption"] = self.system.conditioning(
                [_CAPTION] * self.objects, remember=False
            )
        return [
            Place(
                name=f"step {decision.step}{words}",
                replay=partial(self._replay, decision, conditioning),
                stored=self._under(decision, conditioning).log_prob if words else decision.log_prob,
                finite=decision.log_prob,
            )
            for words, conditioning in texts.items()
            for decision in samples.decisions
        ]

    def learn(self, samples: Samples, step: int, *, advantage: float) -> float:
        """Leave the gradient of the run's loss, for one advantage of each group's first member.

        The others have none. Every element weighs what it weighs in an optimiser step of the run,
        and the loss is scaled as there.

        Args:
            samples: Samples of one slice.
            step: Index of the trained step or decision.
            advantage: The advantage, or the gap of every pair [1].

        Returns:
            The loss scale that the gradient was made with, before it was taken out [1].
        """
        config, system = self.config, self.system
        decision, objective = samples.decisions[step], group_objective(config, system.sampler)
        table = torch.zeros_like(decision.log_prob)
        table[:, 0] = advantage
        share = self._share(samples, decision)

        def weighted(replayed: ReplayedDecision) -> tuple[Tensor, Any]:
            loss, stats = objective(replayed)
            return share * loss, stats

        batch = GroupBatch(
            decisions=(decision,),
            conditioning=self.conditioning,
            advantage=(table,),
            step_weight=step_weights(config, system.sampler, samples.decisions)[step:][:1],
            objects=tuple(range(self.objects)),
        )
        settings = replace(
            group_update_settings(config), epochs=1, optimizer_steps=1, max_grad_norm=float("inf")
        )
        return scaled_gradient(
            system,
            initial_loss_scale(config),
            lambda optimizer, scale: update_groups(
                system.policy, system.sampler, optimizer, [[batch]], weighted,
                parameters=list(system.trained().values()), world=World(), settings=settings,
                reference=system.backbone.without_lora if config.objective.kl_weight else None,
                loss_scale=scale,
            ),
        )  # fmt: skip

    def rescored(self, samples: Samples, step: int) -> Samples:
        """Give a step's actions the density that the network has now."""
        decisions = list(samples.decisions)
        decisions[step] = self._under(decisions[step], self.conditioning)
        return replace(samples, decisions=tuple(decisions))

    def progress(self, samples: Samples) -> float:
        """Measure the log-density of each group's first member at the first step."""
        table = self._replay(samples.decisions[0], self.conditioning, gradient=False)
        return float(table[:, 0].double().mean())

    def _replay(
        self,
        decision: GroupDecision,
        conditioning: Conditioning,
        gradient: bool,
    ) -> Tensor:
        settings = group_update_settings(self.config)
        with torch.set_grad_enabled(gradient):
            return replay_decision(
                self.system.policy, self.system.sampler, decision, conditioning,
                settings=settings, nodes_per_call=settings.nodes_per_call,
            ).detach()  # fmt: skip

    def _under(self, decision: GroupDecision, conditioning: Conditioning) -> GroupDecision:
        settings = group_update_settings(self.config)
        return decision_under(
            self.system.policy, self.system.sampler, decision, conditioning,
            settings=settings, nodes_per_call=settings.nodes_per_call,
        )  # fmt: skip

    def _share(self, samples: Samples, decision: GroupDecision) -> float:
        """Give the share of these elements in the loss of an optimiser step."""
        config = self.config
        objects = config.run.objects_per_iteration / config.optim.optimizer_steps_per_epoch
        objects *= 1 + num_captions(config, samples=samples.denoised.shape[1])
        if config.optim.step_per_decision:
            return self.objects / objects
        members = sum(one.action.shape[1] for one in samples.decisions)
        return self.objects / objects * decision.action.shape[1] / members
