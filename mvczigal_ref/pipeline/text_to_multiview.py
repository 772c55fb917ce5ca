"""Text to all views of an object: a diffusers pipeline on this package's own rollouts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput, numpy_to_pil
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mvczigal_ref.cameras import OrthographicRig, camera_image
from mvczigal_ref.diffusion.precision import require_choice
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.finite import AUTOENCODER_IMAGE, NETWORK_LATENT, require_finite
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.schedulers import sampler_from_scheduler
from mvczigal_ref.pipeline.parts import MultiviewPipelineParts
from mvczigal_ref.pipeline.watch import RolloutStopped, WatchedPolicy, calls_per_step
from mvczigal_ref.records import Trajectory
from mvczigal_ref.rollout.noise import NoiseSource, SeededNoise
from mvczigal_ref.rollout.standard import standard_rollout
from mvczigal_ref.rollout.zigzag import zigzag_rollout
from mvczigal_ref.shapes import ObjectLatent

__all__ = ["NEGATIVE_PROMPT", "TextToMultiviewOutput", "TextToMultiviewPipeline"]

NEGATIVE_PROMPT = "watermark, ugly, deformed, noisy, blurry, low contrast"
"""Negative prompt of the published pipeline, for a UNet without a guidance embedding."""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

StepCallback = Callable[[Any, int, int, dict[str, Tensor]], Mapping[str, Any] | None]

Generator = torch.Generator | Sequence[torch.Generator]


@dataclass
class TextToMultiviewOutput(BaseOutput):
    """Result of the pipeline."""

    images: Any
    """Views by object: lists of pictures, or one array or tensor in [0, 1], or latents."""


class TextToMultiviewPipeline(MultiviewPipelineParts):
    """SDXL with row attention and cameras: every view of an object at once.

    Made by ``from_pretrained`` or ``from_components``. Like every diffusers pipeline it moves,
    offloads and compiles its parts, and loads LoRAs.

    Source:
        Huang et al., MV-Adapter, arXiv:2412.03632; zigzag sampling of arXiv:2505.20107. The
        steps are this package's rollouts; of the scheduler the settings alone are read.

    Examples:
        >>> from mvczigal_ref.models.tiny import tiny_components
        >>> pipeline = TextToMultiviewPipeline.from_components(
        ...     tiny_components(seed=0), image_size=32
        ... )
        >>> pipeline.set_progress_bar_config(disable=True)
        >>> images = pipeline("a red cube", num_inference_steps=1, output_type="pt").images
        >>> images.shape
        torch.Size([1, 6, 3, 32, 32])
    """

    _interrupt = False
    _num_timesteps = 0

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked to stop, by setting ``pipeline._interrupt``."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Length of the latest sampling grid [steps]."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        rig: OrthographicRig | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 8,
        guidance_scale: float = 7.0,
        negative_prompt: str = NEGATIVE_PROMPT,
        camera_scale: float = 1.0,
        mv_scale: float = 1.0,
        eta: float = 1.0,
        zigzag_steps: int = 0,
        zigzag_rounds: int = 1,
        inversion_guidance_scale: float = 1.0,
        inversion_camera_scale: float = 1.0,
        generator: Generator | None = None,
        latents: ObjectLatent | None = None,
        noise: SeededNoise | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> TextToMultiviewOutput | tuple[Any]:
        """Sample every view of one object per prompt.

        Args:
            prompt: One text per object.
            rig: Cameras, one per view; the pipeline's own if None.
            height: Height of an image, a multiple of the camera encoder's scale [px].
            width: Width of an image, a multiple of the camera encoder's scale [px].
            num_inference_steps: Denoising steps [steps].
            guidance_scale: Strength of the prompt [1].
            negative_prompt: Text that guidance leads away from; read only where the UNet has no
                guidance embedding.
            camera_scale: Strength of the camera features [1].
            mv_scale: Weight of the row attention [1].
            eta: Stochasticity of implicit-model sampling [1].
            zigzag_steps: Leading steps that are zigzagged; 1 is ZMV-Sampling.
            zigzag_rounds: Inversions per zigzagged step.
            inversion_guidance_scale: Guidance while inverting [1].
            inversion_camera_scale: Strength of the camera features while inverting [1].
            generator: Generator of all noise; or one per object, whose images then do not depend
                on the other objects.
            latents: Initial noise, in place of drawn noise [1].
            noise: All noise, by object, as training and evaluation draw it; in place of
                ``generator`` and ``latents``.
            output_type: "pil", "np" or "pt" for images, "latent" for final latents.
            return_dict: Whether to return a record rather than a tuple.
            callback_on_step_end: Called with the pipeline, the step, its timestep and tensors by
                name; it may set ``pipeline._interrupt`` to end with the image reached so far. It
                cannot replace tensors.
            callback_on_step_end_tensor_inputs: Tensors that the callback takes: "latents",
                "denoised" or both.

        Returns:
            Images of every object's views.

        Raises:
            ValueError: If an argument is out of range, or disagrees with another.
            NonFiniteError: If latents or images are not finite; names the part, object and view.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        cameras = self.default_rig if rig is None else rig
        size = (height or self.config.image_size, width or self.config.image_size)
        self._check(size, output_type, callback_on_step_end_tensor_inputs)
        device, parts = self._execution_device, self.parts
        policy = MultiViewUNet(self.unet, self.camera_encoder, mv_scale=mv_scale)
        strongest = max(guidance_scale, inversion_guidance_scale if zigzag_steps else 0.0)
        doubled = policy.guidance_width is None and strongest > 1.0
        maps = camera_image(cameras, height=size[0], width=size[1], device=device)
        conditioning = parts.build_conditioning(
            prompts,
            cameras,
            image_size=size,
            negative_prompt=negative_prompt if doubled else None,
            camera_features=policy.encode_cameras(maps),
        ).to(device)
        sampler = sampler_from_scheduler(
            self.scheduler,
            num_steps=num_inference_steps,
            snr_shift=self.config.snr_shift,
            eta=eta,
        ).to(device)
        self._interrupt, self._num_timesteps = False, sampler.num_steps
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        edges = (size[0] // factor, size[1] // factor)
        shape = (len(prompts), cameras.num_views, int(self.vae.config.latent_channels), *edges)
        first, step_noise = _noise(shape, generator, latents, noise, zigzag_steps > 0, device)
        arguments: dict[str, Any] = {"guidance_scale": guidance_scale, "camera_scale": camera_scale}
        rollout: Callable[..., Trajectory] = standard_rollout
        if zigzag_steps:
            rollout = zigzag_rollout
            arguments |= {
                "zigzag_steps": zigzag_steps,
                "zigzag_rounds": zigzag_rounds,
                "inversion_guidance_scale": inversion_guidance_scale,
                "inversion_camera_scale": inversion_camera_scale,
            }
        times = sampler.timesteps.tolist()

        def end_step(step: int, latent: Tensor, denoised: Tensor) -> bool:
            if callback_on_step_end is not None:
                values = {"latents": latent.view(shape), "denoised": denoised.view(shape)}
                given = {name: values[name] for name in callback_on_step_end_tensor_inputs}
                answer = callback_on_step_end(self, step, times[step], dict(given)) or {}
                if any(answer.get(name, value) is not value for name, value in given.items()):
                    msg = "`callback_on_step_end` must return its tensors as they are; got others."
                    raise ValueError(msg)
            return not self._interrupt

        calls = calls_per_step(
            sampler.num_steps, zigzag_steps=zigzag_steps, zigzag_rounds=zigzag_rounds
        )
        with self.progress_bar(total=sum(calls)) as bar:
            watched = WatchedPolicy(
                policy, sampler, calls, on_call=bar.update, on_step_end=end_step
            )
            try:
                trajectory = rollout(watched, sampler, first, conditioning, step_noise, **arguments)
            except RolloutStopped as stopped:
                final = stopped.denoised.view(shape)
            else:
                final = trajectory.denoised
                end_step(sampler.num_steps - 1, final, final)
        objects = range(len(prompts)) if noise is None else noise.objects
        require_finite(NETWORK_LATENT, final, objects)
        images: Any = final
        if output_type != "latent":
            images = self._images(parts, final, output_type, objects)
        self.maybe_free_model_hooks()
        return TextToMultiviewOutput(images=images) if return_dict else (images,)

    def _check(self, size: tuple[int, int], output_type: str, tensors: Sequence[str]) -> None:
        """Refuse arguments that would fail late or be dropped silently."""
        multiple = self.camera_encoder.config.downscale_factor
        for name, edge in zip(("height", "width"), size, strict=True):
            if edge < multiple or edge % multiple:
                nearest = max(1, round(edge / multiple)) * multiple
                msg = (
                    f"`{name}` must be a multiple of {multiple} pixels; got {edge}. The nearest "
                    f"valid value is {nearest}."
                )
                raise ValueError(msg)
        require_choice("output_type", output_type, OUTPUT_TYPES)
        for name in tensors:
            require_choice("callback_on_step_end_tensor_inputs", name, ("latents", "denoised"))

    def _images(
        self, parts: Components, latents: Tensor, output_type: str, objects: Sequence[int]
    ) -> Any:  # noqa: ANN401
        """Decode object by object, and convert to the output type."""
        upcast = self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        if upcast:  # its activations overflow in half precision
            self.vae.to(torch.float32)
        images = torch.cat([parts.decode(one[None]).float() for one in latents])
        if upcast:
            self.vae.to(torch.float16)
        require_finite(AUTOENCODER_IMAGE, images, objects)
        if output_type == "pt":
            return images
        arrays = images.permute(0, 1, 3, 4, 2).cpu().numpy()
        return arrays if output_type == "np" else [numpy_to_pil(views) for views in arrays]


def _noise(
    shape: tuple[int, ...],
    generator: Generator | None,
    latents: ObjectLatent | None,
    noise: SeededNoise | None,
    zigzag: bool,
    device: torch.device,
) -> tuple[ObjectLatent, NoiseSource]:
    """Give the initial noise, and the source of the steps' noise."""
    size = (len(noise.objects), *noise.shape) if noise is not None else shape
    if latents is not None:
        size = tuple(latents.shape)
    if size != shape:
        name = "noise" if latents is None else "latents"
        msg = f"`{name}` must have objects, views, channels and sides {shape}; got {size}."
        raise ValueError(msg)
    if noise is not None:
        if latents is not None or generator is not None:
            msg = "`noise` must be given alone; got `latents` or `generator` too."
            raise ValueError(msg)
        source = noise.arm("zigzag" if zigzag else "standard")
        return noise.initial().to(device), lambda step, draw: source(step, draw).to(device)
    each = generator if isinstance(generator, torch.Generator | None) else list(generator)
    if isinstance(each, list) and len(each) != shape[0]:
        msg = f"`generator` must be one, or one per object, {shape[0]}; got {len(each)}."
        raise ValueError(msg)

    def draw_one(_step: int = 0, _draw: int = 0) -> Tensor:
        drawn: Tensor = randn_tensor(shape, generator=each, device=device, dtype=torch.float32)
        return drawn

    return draw_one() if latents is None else latents.to(device, torch.float32), draw_one
