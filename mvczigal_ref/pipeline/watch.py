"""Policy that reports every finished step of a rollout, and can stop it."""

from collections.abc import Callable
from itertools import accumulate

from jaxtyping import Float, Int
from torch import Tensor

from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.policy import Conditioning, Policy
from mvczigal_ref.shapes import Latent

__all__ = ["RolloutStopped", "WatchedPolicy", "calls_per_step"]

StepEnd = Callable[[int, Latent, Latent], bool]
"""Callback after a step, with its index, the latents after it and the denoised latents [1];
returns whether to go on."""


class RolloutStopped(Exception):  # noqa: N818 - not an error: someone asked for it
    """A rollout ended before its last step.

    Args:
        denoised: Latest denoised latents [1].
    """

    def __init__(self, denoised: Latent) -> None:
        super().__init__("the rollout was stopped")
        self.denoised = denoised


def calls_per_step(num_steps: int, *, zigzag_steps: int, zigzag_rounds: int = 1) -> list[int]:
    """Count the network calls of each step of a rollout.

    Args:
        num_steps: Length of the sampling grid [steps].
        zigzag_steps: Leading steps that are zigzagged.
        zigzag_rounds: Inversions per zigzagged step.

    Returns:
        One number per step: a zigzagged step inverts and denoises again every round.

    Examples:
        >>> calls_per_step(4, zigzag_steps=1)
        [3, 1, 1, 1]
    """
    return [1 + 2 * zigzag_rounds * (step < zigzag_steps) for step in range(num_steps)]


class WatchedPolicy:
    """A policy that counts its calls and reports every finished step.

    A step is over when the first call of the next one comes. The caller of the rollout reports the
    last step.

    Args:
        policy: The network.
        sampler: Sampler of the rollout, for the denoised latents.
        calls: Network calls of each step, from :func:`calls_per_step`.
        on_call: Called after every call of the network.
        on_step_end: Called after every step but the last; if it returns False the rollout stops.
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        calls: list[int],
        *,
        on_call: Callable[[], object],
        on_step_end: StepEnd,
    ) -> None:
        self._policy, self._sampler = policy, sampler
        self._ends = list(accumulate(calls))
        self._on_call, self._on_step_end = on_call, on_step_end
        self._calls, self._step = 0, 0
        self._denoised: Tensor | None = None

    def __call__(
        self,
        latent_t: Latent,
        timestep: Float[Tensor, "*#row"] | Int[Tensor, "*#row"],
        conditioning: Conditioning,
        *,
        guidance_scale: float,
        camera_scale: float = 1.0,
    ) -> Latent:
        """Predict as the policy does, unchanged.

        Args:
            latent_t: States, the views of one object adjacent [1].
            timestep: Training-time noise index, one for all rows or one each.
            conditioning: Prompts and cameras.
            guidance_scale: Strength of the prompt [1].
            camera_scale: Strength of the camera features [1].

        Returns:
            The policy's prediction.

        Raises:
            RolloutStopped: If ``on_step_end`` returned False.
        """
        if self._calls == self._ends[self._step] and self._denoised is not None:
            go_on = self._on_step_end(self._step, latent_t, self._denoised)
            if not go_on:
                raise RolloutStopped(self._denoised)
            self._step += 1
        output = self._policy(
            latent_t,
            timestep,
            conditioning,
            guidance_scale=guidance_scale,
            camera_scale=camera_scale,
        )
        self._calls += 1
        if self._calls == self._ends[self._step]:
            transition = self._sampler.transition(output, latent_t, self._step)
            self._denoised = transition.denoised
        self._on_call()
        return output
