"""Trial of Diffusion-DPO: samples of a pair noised again, and the difference of their errors."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from mvczigal_ref.distributed import World
from mvczigal_ref.method.group_batches import group_update_settings
from mvczigal_ref.method.noise_preference import noised_pairs, pair_loss
from mvczigal_ref.objective.noise_preference import noise_error
from mvczigal_ref.preflight.scaled_gradient import scaled_gradient
from mvczigal_ref.preflight.snapshots import copies
from mvczigal_ref.preflight.trial import Place
from mvczigal_ref.preflight.trial_pairs import PairTrial
from mvczigal_ref.records import PairedRollout
from mvczigal_ref.training.state import initial_loss_scale
from mvczigal_ref.update.forward import ForwardBatch, NoisedSamples, update_forward
from mvczigal_ref.update.parameters import parameters_as
from mvczigal_ref.update.replay import ReplaySettings

__all__ = ["NoisedPairTrial"]


class NoisedPairTrial(PairTrial):
    """One slice of pairs that are compared at one noise level."""

    goal: ClassVar[str] = "lowers the error on the better sample"
    no_density: ClassVar[str | None] = "Diffusion-DPO compares errors and asks for no density"

    def drawn(self, samples: PairedRollout) -> list[Tensor]:
        """Give both samples of every pair."""
        return [samples.zigzag.denoised, samples.standard.denoised]

    def places(self, samples: PairedRollout) -> list[Place]:
        """Predict the noise of both samples at one level."""
        batch = self._batch(samples, advantage=0.0)
        finite = batch.clean
        return [
            Place(
                name="the noised samples",
                replay=partial(self._output, batch),
                stored=None,
                finite=finite,
            )
        ]

    def learn(self, samples: PairedRollout, step: int, *, advantage: float) -> float:
        """Leave the gradient of the run's loss in the parameters, for one gap of all.

        Every element weighs what it weighs in an optimiser step of the run, and the loss is
        scaled as there.

        Args:
            samples: Samples of one slice.
            step: Index of the trained step or decision.
            advantage: The advantage, or the gap of every pair [1].

        Returns:
            The loss scale that the gradient was made with, before it was taken out [1].
        """
        del step
        config, trained = self.config, self.system.trained()
        objects = config.run.objects_per_iteration / config.optim.optimizer_steps_per_epoch
        levels = min(config.forward.levels, self.system.sampler.num_steps)
        share = self.objects / (objects * levels)

        def objective(noised: NoisedSamples) -> tuple[Tensor, dict[str, Tensor]]:
            loss, _ = pair_loss(config, noised)
            return share * loss, {}

        settings = group_update_settings(config)
        one_step = ReplaySettings(
            guidance_scale=settings.guidance_scale, camera_scale=settings.camera_scale,
            max_grad_norm=float("inf"),
        )  # fmt: skip
        return scaled_gradient(
            self.system,
            initial_loss_scale(config),
            lambda optimizer, scale: update_forward(
                self.system.policy, optimizer, [self._batch(samples, advantage=advantage)],
                objective, parameters=list(trained.values()), world=World(), settings=one_step,
                reference=partial(parameters_as, trained, copies(trained)), loss_scale=scale,
            ),
        )  # fmt: skip

    def rescored(self, samples: PairedRollout, step: int) -> PairedRollout:
        """Give the samples as they are: nothing of them depends on the network."""
        del step
        return samples

    def progress(self, samples: PairedRollout) -> float:
        """Measure how much larger the error on the second samples is than on the first."""
        batch = self._batch(samples, advantage=0.0)
        error = noise_error(
            self._output(batch, gradient=False), latent_t=batch.noised(0), noise=batch.noise[0],
            alpha_bar_t=torch.full_like(batch.advantage, batch.levels[0]),
            prediction_type=self.config.sampler.prediction_type,
        )  # fmt: skip
        return float((error[1] - error[0]).double().mean())

    def _batch(self, samples: PairedRollout, *, advantage: float) -> ForwardBatch:
        """Noise both samples at a level in the middle of the grid."""
        both = torch.stack([samples.zigzag.denoised, samples.standard.denoised], dim=1)
        gap = torch.full_like(both[:, 0, :, 0, 0, 0], advantage)
        middle = (self.system.sampler.num_steps // 2,)
        return noised_pairs(
            self.system, both, self.conditioning, self.noise(), gap=gap, steps=middle
        )

    def _output(self, batch: ForwardBatch, gradient: bool) -> Tensor:
        latent_t = batch.noised(0)
        with torch.set_grad_enabled(gradient):
            output: Tensor = self.system.policy(
                latent_t.flatten(0, 2), torch.tensor(batch.timestep(0), device=latent_t.device),
                batch.conditioning.repeat(2),
                guidance_scale=self.config.sampler.guidance_scale,
                camera_scale=self.config.sampler.camera_scale,
            )  # fmt: skip
        return output.detach().reshape(latent_t.shape)
