"""Trial of pairs: both arms of a slice, and the difference that their gap must move."""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mvczigal_ref.config import Dtype
from mvczigal_ref.method.pair_settings import pair_objective, pair_update_settings
from mvczigal_ref.method.sample import draw_pair
from mvczigal_ref.preflight.scaled_gradient import scaled_gradient
from mvczigal_ref.preflight.trial import Place, Trial
from mvczigal_ref.records import PairedRollout, Trajectory
from mvczigal_ref.training.state import initial_loss_scale
from mvczigal_ref.update.loop import optimizer_step
from mvczigal_ref.update.loss_scale import LossScale, loss_scale_step
from mvczigal_ref.update.pair_batch import PairBatch
from mvczigal_ref.update.pairs import accumulate_pairs
from mvczigal_ref.update.replay import replay_log_prob

__all__ = ["ARMS", "PairTrial"]

ARMS = ("zigzag", "standard")
"""Names of the arms."""


class PairTrial(Trial):
    """One slice of pairs."""

    def sample(self, storage: Dtype) -> PairedRollout:
        """Sample pairs as an iteration does."""
        stored = self.stored_in(storage)
        # Every step of an arm is replayed alone below.
        stored = replace(stored, run=replace(stored.run, arms_per_call=1))
        return draw_pair(self.system, self.conditioning, self.noise(), config=stored)

    def drawn(self, samples: PairedRollout) -> list[Tensor]:
        """Give the actions of both arms."""
        return [getattr(samples, name).action for name in ARMS]

    def places(self, samples: PairedRollout) -> list[Place]:
        """Replay every step of both arms."""
        return [
            Place(
                name=f"step {step} of the {name} arm",
                replay=partial(self._replay, arm, step),
                stored=stored,
                finite=arm.log_prob,
            )
            for name, arm in ((name, getattr(samples, name)) for name in ARMS)
            for step, stored in enumerate(arm.log_prob)
        ]

    def _replay(self, arm: Trajectory, step: int, gradient: bool) -> Tensor:
        return self.replay(arm, step, gradient=gradient)[0]

    def replay(self, arm: Trajectory, step: int, *, gradient: bool = True) -> Tensor:
        """Score one step's actions as an update does."""
        with torch.set_grad_enabled(gradient):
            return replay_log_prob(
                self.system.policy, self.system.sampler, arm, [step], self.conditioning,
                guidance_scale=self.config.sampler.guidance_scale,
                camera_scale=self.config.sampler.camera_scale,
                reduction=self.config.objective.reduction,
            ).detach()  # fmt: skip

    def learn(self, samples: PairedRollout, step: int, *, advantage: float) -> float:
        """Leave the gradient of the run's loss in the parameters, for one gap of all."""
        parameters = self.system.trained()

        def update(
            optimizer: torch.optim.Optimizer, state: LossScale | None
        ) -> tuple[float, LossScale | None]:
            scale = 1.0 if state is None else state.scale
            self._accumulate(samples, step, advantage, scale=scale)
            norm = optimizer_step(optimizer, parameters, max_grad_norm=math.inf, loss_scale=scale)
            return norm, state and loss_scale_step(state, finite=math.isfinite(norm))

        return scaled_gradient(self.system, initial_loss_scale(self.config), update)

    def rescored(self, samples: PairedRollout, step: int) -> PairedRollout:
        """Give a step's actions the density that the network has now."""
        arms = {}
        for name in ARMS:
            arm: Trajectory = getattr(samples, name)
            log_prob = arm.log_prob.clone()
            log_prob[step] = self.replay(arm, step, gradient=False)[0]
            arms[name] = replace(arm, log_prob=log_prob)
        return replace(samples, **arms)

    def progress(self, samples: PairedRollout) -> float:
        """Measure how much likelier the zigzag arm's first actions are than the standard arm's."""
        first, second = (self.replay(getattr(samples, name), 0, gradient=False) for name in ARMS)
        return float((first - second).double().mean())

    def _accumulate(
        self, pair: PairedRollout, step: int, advantage: float, *, scale: float
    ) -> None:
        run, settings = self.config, pair_update_settings(self.system, self.config)
        objects = run.run.objects_per_iteration / settings.optimizer_steps
        share = self.objects / (len(settings.steps) * objects)
        for parameter in self.system.trained().values():
            parameter.grad = None
        accumulate_pairs(
            self.system.policy,
            self.system.sampler,
            PairBatch(
                rollout=pair,
                conditioning=self.conditioning,
                advantage_gap=torch.full_like(pair.standard.log_prob[0], advantage),
                first_object=0,
            ),
            [step],
            pair_objective(run),
            weight=scale * share,
            on_policy=True,
            settings=replace(settings, steps=[step], joint_from=None),
        )
