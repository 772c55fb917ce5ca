"""Trial of the forward process: samples noised again, and velocities fitted to them."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from mvczigal_ref.config import Dtype
from mvczigal_ref.method.forward import forward_loss, needs_reference
from mvczigal_ref.method.sample import draw_samples
from mvczigal_ref.preflight.noised_samples import learn_from, predicted
from mvczigal_ref.preflight.trial import Place, Trial
from mvczigal_ref.records import Samples
from mvczigal_ref.update.forward import ForwardBatch
from mvczigal_ref.update.parameters import parameter_copies, parameters_as

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
                replay=partial(predicted, self, self._batch(samples, advantage=0.0)),
                stored=None,
                finite=samples.denoised,
            )
        ]

    def learn(self, samples: Samples, step: int, *, advantage: float) -> float:
        """Leave the gradient of the run's loss in the parameters, for one advantage of all."""
        del step
        config, system, trained = self.config, self.system, self.system.trained()
        return learn_from(
            self, self._batch(samples, advantage=advantage), partial(forward_loss, config),
            old=partial(parameters_as, trained, parameter_copies(trained)),
            reference=system.backbone.without_lora if needs_reference(config) else None,
        )  # fmt: skip

    def rescored(self, samples: Samples, step: int) -> Samples:
        """Give the samples as they are: nothing of them depends on the network."""
        del step
        return samples

    def progress(self, samples: Samples) -> float:
        """Measure how well the samples are fitted: minus the mean square error of the velocity."""
        batch = self._batch(samples, advantage=0.0)
        target = batch.noise[0] - batch.clean
        velocity = predicted(self, batch, gradient=False)
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
