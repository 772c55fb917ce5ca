"""Trial of the forward process: samples noised again, and velocities fitted to them."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from mvczigal_ref.config import Dtype
from mvczigal_ref.distributed import World
from mvczigal_ref.method.forward import forward_loss, needs_reference
from mvczigal_ref.method.group_batches import group_update_settings
from mvczigal_ref.method.sample import draw_samples
from mvczigal_ref.preflight.scaled_gradient import scaled_gradient
from mvczigal_ref.preflight.snapshots import copies
from mvczigal_ref.preflight.trial import Place, Trial
from mvczigal_ref.records import Samples
from mvczigal_ref.training.state import initial_loss_scale
from mvczigal_ref.update.forward import ForwardBatch, NoisedSamples, update_forward
from mvczigal_ref.update.parameters import parameters_as

__all__ = ["ForwardTrial"]


class ForwardTrial(Trial):
    """One slice of samples that are fitted at one noise level."""

    # Both halves of the loss cancel but for their rounding.
    zero_tolerance: ClassVar[float] = 1e-3
    goal: ClassVar[str] = "fits its sample better"
    no_density: ClassVar[str | None] = "the forward process fits velocities and asks for no density"

    def sample(self, storage: Dtype) -> Samples:
        """Sample as an iteration does."""
        return draw_samples(
            self.system, self.conditioning, self.noise(), config=self.stored_in(storage),
            iteration=0,
        )  # fmt: skip

    def drawn(self, samples: Samples) -> list[Tensor]:
        """Give every sample."""
        return [samples.denoised]

    def places(self, samples: Samples) -> list[Place]:
        """Predict the velocity of every sample at one noise level."""
        return [
            Place(
                name="the noised samples",
                replay=partial(self._velocity, self._batch(samples, advantage=0.0)),
                stored=None,
                finite=samples.denoised,
            )
        ]

    def learn(self, samples: Samples, step: int, *, advantage: float) -> float:
        """Leave the gradient of the run's loss in the parameters, for one advantage of all.

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
        config, system, trained = self.config, self.system, self.system.trained()
        objects = config.run.objects_per_iteration / config.optim.optimizer_steps_per_epoch
        levels = min(config.forward.levels, system.sampler.num_steps)
        share = self.objects / (objects * levels)

        def objective(noised: NoisedSamples) -> tuple[Tensor, dict[str, Tensor]]:
            loss, _ = forward_loss(config, noised)
            return share * loss, {}

        settings = group_update_settings(config)
        one_step = type(settings)(
            guidance_scale=settings.guidance_scale, camera_scale=settings.camera_scale,
            max_grad_norm=float("inf"),
        )  # fmt: skip
        return scaled_gradient(
            system,
            initial_loss_scale(config),
            lambda optimizer, scale: update_forward(
                system.policy, optimizer, [self._batch(samples, advantage=advantage)], objective,
                parameters=list(trained.values()), world=World(), settings=one_step,
                old=partial(parameters_as, trained, copies(trained)),
                reference=system.backbone.without_lora if needs_reference(config) else None,
                loss_scale=scale,
            ),
        )  # fmt: skip

    def rescored(self, samples: Samples, step: int) -> Samples:
        """Give the samples as they are: nothing of them depends on the network."""
        del step
        return samples

    def progress(self, samples: Samples) -> float:
        """Measure how well the samples are fitted: minus the mean square error of the velocity."""
        batch = self._batch(samples, advantage=0.0)
        target = batch.noise[0] - batch.clean
        velocity = self._velocity(batch, gradient=False)
        return -float((velocity - target).double().square().mean())

    def _batch(self, samples: Samples, *, advantage: float) -> ForwardBatch:
        """Noise the samples halfway."""
        clean = samples.denoised.transpose(0, 1)
        members = [(member,) for member in range(clean.shape[0])]
        return ForwardBatch(
            clean=clean,
            noise=self.noise().members(members, "forward", 0)[None],
            levels=(0.5,),
            conditioning=self.conditioning,
            advantage=torch.full_like(clean[..., 0, 0, 0], advantage),
            first_object=0,
        )

    def _velocity(self, batch: ForwardBatch, gradient: bool) -> Tensor:
        level, members = batch.levels[0], batch.clean.shape[0]
        latent_t = (1.0 - level) * batch.clean + level * batch.noise[0]
        with torch.set_grad_enabled(gradient):
            output: Tensor = self.system.policy(
                latent_t.flatten(0, 2),
                torch.tensor(1000.0 * level, device=latent_t.device),
                batch.conditioning.repeat(members) if members > 1 else batch.conditioning,
                guidance_scale=self.config.sampler.guidance_scale,
                camera_scale=self.config.sampler.camera_scale,
            )
        return output.detach().reshape(latent_t.shape)
