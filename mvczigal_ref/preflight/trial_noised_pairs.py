"""Trial of Diffusion-DPO: samples of a pair noised again, and the difference of their errors."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from mvczigal_ref.method.noise_preference import noised_pairs, pair_loss
from mvczigal_ref.objective.noise_preference import noise_error
from mvczigal_ref.preflight.noised_samples import learn_from, predicted
from mvczigal_ref.preflight.trial import Place
from mvczigal_ref.preflight.trial_pairs import PairTrial
from mvczigal_ref.records import PairedRollout
from mvczigal_ref.update.forward import ForwardBatch
from mvczigal_ref.update.parameters import parameter_copies, parameters_as

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
        return [
            Place(
                name="the noised samples",
                replay=partial(predicted, self, batch),
                stored=None,
                finite=batch.clean,
            )
        ]

    def learn(self, samples: PairedRollout, step: int, *, advantage: float) -> float:
        """Leave the gradient of the run's loss in the parameters, for one gap of all."""
        del step
        trained = self.system.trained()
        return learn_from(
            self, self._batch(samples, advantage=advantage), partial(pair_loss, self.config),
            reference=partial(parameters_as, trained, parameter_copies(trained)),
        )  # fmt: skip

    def rescored(self, samples: PairedRollout, step: int) -> PairedRollout:
        """Give the samples as they are: nothing of them depends on the network."""
        del step
        return samples

    def progress(self, samples: PairedRollout) -> float:
        """Measure how much larger the error on the second samples is than on the first."""
        batch = self._batch(samples, advantage=0.0)
        error = noise_error(
            predicted(self, batch, gradient=False), latent_t=batch.noised(0), noise=batch.noise[0],
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
