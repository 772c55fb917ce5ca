"""ZMV-Sampling: denoise with strong guidance, invert with weak guidance, denoise again."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.policy import Conditioning, Policy, network_output, step_transition
from mvczigal_ref.records import ActionReduction, Trajectory
from mvczigal_ref.rollout.group_plan import require_at_least
from mvczigal_ref.rollout.noise import NoiseSource
from mvczigal_ref.rollout.standard import Recorder, step_indices, step_noise
from mvczigal_ref.shapes import ObjectLatent

__all__ = ["zigzag_rollout"]


@torch.no_grad()
def zigzag_rollout(
    policy: Policy,
    sampler: Sampler,
    latent: ObjectLatent,
    conditioning: Conditioning,
    noise: NoiseSource,
    *,
    guidance_scale: float,
    inversion_guidance_scale: float = 1.0,
    camera_scale: float = 1.0,
    inversion_camera_scale: float = 1.0,
    zigzag_steps: int = 1,
    zigzag_rounds: int = 1,
    storage_dtype: torch.dtype = torch.float32,
    reduction: ActionReduction = "mean",
    shared_output: Float[Tensor, "1 object view c h w"] | None = None,
    steps: range | None = None,
) -> Trajectory:
    r"""Sample one zigzag trajectory per object.

    .. math::
        y &\sim \mathrm{denoise}(x, t; w_{high}) \\
        x &\leftarrow \mathrm{invert}(y, t; w_{low}), \quad
        y \sim \mathrm{denoise}(x, t; w_{high}) \quad \text{(each round of a zigzagged step)}

    Denoising follows the prompt as far as :math:`w_{high}` says, and inverting takes back only
    what :math:`w_{low}` says. The latent is at its noise level again, but its noise now leans
    towards the prompt, and the next denoising starts from there.

    Only the last denoising of a step is an action; its state is the inverted latent.

    Source:
        arXiv:2505.20107, ZMV-Sampling; zigzag at the first step alone is its default,
        all steps its ablation. Ours: the latent that is inverted, the inverted one and the
        action are rounded to the storage dtype.

    Args:
        policy: The network.
        sampler: Grid, transition kernel and inversion.
        latent: x_T, the paired standard trajectory's [1].
        conditioning: Text and cameras of the same objects.
        noise: Step noise; draw 0 denoises first, draw r after round r.
        guidance_scale: :math:`w_{high}` [1].
        inversion_guidance_scale: :math:`w_{low}` [1].
        camera_scale: Strength of the camera features while denoising [1].
        inversion_camera_scale: Strength of the camera features while inverting [1].
        zigzag_steps: Leading steps that are zigzagged; 0 is plain sampling.
        zigzag_rounds: Inversions per zigzagged step; at least 1.
        storage_dtype: Dtype of stored latents.
        reduction: Reduction of the log-density over channels, height and width: "mean"
            [nats/element] or "sum" [nats].
        shared_output: The network's output at x_T, if it has been computed.
        steps: Adjacent steps to take; None is all.

    Returns:
        States, actions, log-densities (NaN where a step draws no noise) and final latents,
        without gradient;
        ``num_steps + 2 * zigzag_steps * zigzag_rounds`` network calls, one fewer with
        ``shared_output``.

    Raises:
        ValueError: If ``zigzag_steps`` is not in 0..num_steps or ``zigzag_rounds`` below 1.

    Examples:
        >>> from mvczigal_ref.cameras import PAPER_RIG
        >>> from mvczigal_ref.diffusion.lcm import LcmSampler
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> from mvczigal_ref.rollout.noise import SeededNoise
        >>> components = tiny_components(seed=0)
        >>> noise = SeededNoise(seed=0, iteration=0, objects=[0], shape=(6, 4, 8, 8))
        >>> trajectory = zigzag_rollout(
        ...     components.policy,
        ...     LcmSampler.create(num_steps=2, alpha_bar=torch.linspace(0.9, 0.1, 1000)),
        ...     noise.initial(),
        ...     components.build_conditioning(["a red cube"], PAPER_RIG, image_size=32),
        ...     noise.arm("zigzag"),
        ...     guidance_scale=7.0,
        ... )
        >>> torch.equal(trajectory.state[0], noise.initial())
        False
    """
    if not 0 <= zigzag_steps <= sampler.num_steps:
        msg = (
            f"`zigzag_steps` must be in 0..{sampler.num_steps}, the sampler's steps; got "
            f"{zigzag_steps}."
        )
        raise ValueError(msg)
    require_at_least(1, zigzag_rounds=zigzag_rounds)
    denoise, invert = (
        partial(
            network_output,
            policy,
            sampler,
            conditioning=conditioning,
            guidance_scale=guidance,
            camera_scale=camera,
        )
        for guidance, camera in (
            (guidance_scale, camera_scale),
            (inversion_guidance_scale, inversion_camera_scale),
        )
    )
    recorder = Recorder(storage_dtype=storage_dtype, reduction=reduction)
    state = recorder.round(latent)
    draw_noise = step_noise(sampler, noise)
    indices = step_indices(sampler, latent.device)
    for step in range(sampler.num_steps) if steps is None else steps:
        index = indices[step]
        shared = shared_output if step == 0 else None
        output = denoise(state[None], index) if shared is None else shared
        transition = step_transition(sampler, output, state[None], index)
        action = recorder.act(transition, draw_noise(step, 0))
        for draw in range(1, 1 + (zigzag_rounds if step < zigzag_steps else 0)):
            inverse = invert(action[None], index)
            lower = action[None].to(inverse.dtype)
            state = recorder.round(sampler.invert(inverse, lower, index[:, None, None])[0])
            output = denoise(state[None], index)
            transition = step_transition(sampler, output, state[None], index)
            action = recorder.act(transition, draw_noise(step, draw))
        recorder.record(state, action, transition)
        state = action
    return recorder.trajectory(
        transition, image_is_denoised=sampler.last_action_is_image_independent
    )
