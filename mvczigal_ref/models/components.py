"""Every part of a text-to-multiview pipeline, its saving and strict loading."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mvczigal_ref.cameras import OrthographicRig, camera_image
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.text import encode_prompts
from mvczigal_ref.records import Conditioning
from mvczigal_ref.shapes import BatchLatent, CameraFeature

__all__ = ["Components", "load_components", "load_strict"]

ADAPTER_FILE = "mv_adapter.safetensors"
UNET_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """What turns prompts and cameras into images."""

    tokenizer: CLIPTokenizer
    """Of the first text encoder."""

    tokenizer_2: CLIPTokenizer
    """Of the second."""

    text_encoder: CLIPTextModel
    """CLIP, its penultimate features used."""

    text_encoder_2: CLIPTextModelWithProjection
    """CLIP with the pooled projection."""

    vae: AutoencoderKL
    """Images to latents and back."""

    policy: MultiViewUNet
    """The network and its camera encoder."""

    latent_mean: Float[Tensor, " c"]
    """Mean of the autoencoder's raw latents, by channel [1]."""

    latent_std: Float[Tensor, " c"]
    """Their standard deviation [1]; positive."""

    @property
    def image_downscale(self) -> int:
        """Image pixels along one latent pixel."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def encode_rig(self, rig: OrthographicRig, *, image_size: int) -> tuple[CameraFeature, ...]:
        """Encode a rig's cameras, without gradient.

        Args:
            rig: Cameras, one a view.
            image_size: Height and width of the images [px].

        Returns:
            Features that hold for every prompt and step of these weights [1].
        """
        weight = self.policy.camera_encoder
        image = camera_image(rig, height=image_size, width=image_size)
        with torch.no_grad():
            return self.policy.encode_cameras(image.to(weight.device, weight.dtype))

    def build_conditioning(
        self,
        prompts: Sequence[str],
        rig: OrthographicRig,
        *,
        image_size: int,
        negative_prompt: str | None = None,
        camera_features: tuple[CameraFeature, ...] | None = None,
    ) -> Conditioning:
        """Encode prompts and cameras, each once, without gradient.

        Args:
            prompts: One text an object.
            rig: Cameras, one a view.
            image_size: Height and width of the images [px].
            negative_prompt: What classifier-free guidance leads away from; for
                networks without a guidance embedding.
            camera_features: Those of :meth:`encode_rig`, to spare encoding the
                same rig again.

        Returns:
            The record that the policy reads.
        """
        negative, negative_pooled = None, None
        embeds, pooled = encode_prompts(self, prompts)
        if negative_prompt is not None:
            negative, negative_pooled = encode_prompts(self, [negative_prompt])
        if camera_features is None:
            camera_features = self.encode_rig(rig, image_size=image_size)
        sizes = torch.tensor([[image_size, image_size, 0, 0, image_size, image_size]])
        return Conditioning(
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            time_ids=sizes.to(embeds).repeat(len(prompts), 1),
            camera_features=camera_features,
            num_views=rig.num_views,
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=negative_pooled,
        )

    def encode(
        self, images: Float[Tensor, "*batch rgb height width"]
    ) -> Float[Tensor, "*batch c h w"]:
        """Encode images into latents of mean 0 and standard deviation 1.

        Args:
            images: In [0, 1]. Gradient flows to them.

        Returns:
            The mean of the autoencoder's posterior, scaled [1].
        """
        flat = images.flatten(0, -4) if images.ndim > 3 else images[None]
        mean = self.vae.encode((2.0 * flat - 1.0).to(self.vae.dtype)).latent_dist.mean
        scaled = (mean - _per_channel(self.latent_mean, mean)) / _per_channel(
            self.latent_std, mean
        )
        return scaled.to(images.dtype).unflatten(0, images.shape[:-3]) if images.ndim > 3 else scaled[0]

    def decode(self, latent: BatchLatent) -> Float[Tensor, "*batch rgb height width"]:
        """Decode scaled latents into images in [0, 1].

        Args:
            latent: Scaled latents [1]. Gradient flows to them where the image
                is inside its range.

        Returns:
            Images, clamped.
        """
        flat = latent.flatten(0, -4) if latent.ndim > 3 else latent[None]
        raw = flat * _per_channel(self.latent_std, flat) + _per_channel(self.latent_mean, flat)
        image = self.vae.decode(raw.to(self.vae.dtype)).sample
        image = (0.5 * image + 0.5).clamp(0.0, 1.0).to(latent.dtype)
        return image.unflatten(0, latent.shape[:-3]) if latent.ndim > 3 else image[0]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Components":
        """Move, and where asked cast, every network in place.

        Args:
            device: Where to; unchanged when None.
            dtype: Floating type; unchanged when None.

        Returns:
            These components, for chaining.
        """
        for network in (self.text_encoder, self.text_encoder_2, self.vae, self.policy):
            network.to(device=device, dtype=dtype)
        return self

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write every part into its own sub-folder, in diffusers' layout.

        Row attention and camera encoder share one file under the names of the
        published adapter; ``unet/`` is a plain UNet that other tools load.

        Args:
            folder: Made if absent.
            dtype: Floating type of the stored tensors; as they are when None.

        Raises:
            ValueError: If the UNet holds a LoRA, which these files do not.
        """
        folder = Path(folder)
        tensors = self.policy.unet.state_dict()
        if any("lora_" in name for name in tensors):
            msg = (
                "`components` must hold no LoRA to be saved whole; got one in the UNet. Save it "
                "with lora_state_dict, or merge it first."
            )
            raise ValueError(msg)
        config = {
            "latents_mean": self.latent_mean.tolist(),
            "latents_std": self.latent_std.tolist(),
        }
        self.vae.register_to_config(**config)
        for name in ("tokenizer", "tokenizer_2"):
            getattr(self, name).save_pretrained(folder / name)
        for name in ("text_encoder", "text_encoder_2", "vae"):
            _cast_copy(getattr(self, name), dtype).save_pretrained(folder / name)
        self.policy.unet.save_config(folder / "unet")
        self.policy.camera_encoder.save_config(folder / "camera_encoder")
        plain = {name: value for name, value in tensors.items() if "_mv." not in name}
        adapter = {name: value for name, value in tensors.items() if "_mv." in name}
        adapter |= self.policy.camera_encoder.state_dict()
        _save(plain, folder / "unet" / UNET_FILE, dtype)
        _save(adapter, folder / ADAPTER_FILE, dtype)


def load_components(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Components:
    """Read what :meth:`Components.save` wrote, or a published pipeline with its adapter.

    Args:
        folder: With the sub-folders of a diffusers pipeline and
            ``mv_adapter.safetensors``.
        dtype: Floating type of the networks; stored tensors are cast.
        device: Where the networks go.

    Returns:
        Components in evaluation mode.

    Raises:
        ValueError: If a tensor is missing, left over or of another shape; the
            message names each.
    """
    folder = Path(folder)
    unet = _load(UNet2DConditionModel, folder / "unet", dtype)
    encoder_config = T2IAdapter.load_config(folder / "camera_encoder")
    policy = MultiViewUNet(unet, T2IAdapter.from_config(encoder_config).to(dtype))
    tensors = load_file(folder / ADAPTER_FILE)
    rows = {name: value for name, value in tensors.items() if "_mv." in name}
    cameras = {name: value for name, value in tensors.items() if "_mv." not in name}
    wanted = {name: value for name, value in unet.state_dict().items() if "_mv." in name}
    wanted |= policy.camera_encoder.state_dict()
    load_strict(wanted, rows | cameras, source=str(folder / ADAPTER_FILE))
    vae = _load(AutoencoderKL, folder / "vae", dtype)
    channels = vae.config.latent_channels
    scale = 1.0 / vae.config.scaling_factor
    mean = vae.config.latents_mean or [0.0] * channels
    std = vae.config.latents_std or [scale] * channels
    components = Components(
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        text_encoder=_load(CLIPTextModel, folder / "text_encoder", dtype),
        text_encoder_2=_load(CLIPTextModelWithProjection, folder / "text_encoder_2", dtype),
        vae=vae,
        policy=policy.eval(),
        latent_mean=torch.tensor(mean),
        latent_std=torch.tensor(std),
    )
    return components.to(device)


def load_strict(
    target: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, source: str
) -> None:
    """Copy tensors into others of the same names and shapes, or refuse by name.

    Args:
        target: Tensors to overwrite, by name; they keep their type and device.
        tensors: Values.
        source: Where they came from, for the message.

    Raises:
        CheckpointError: If a tensor is missing, left over or of another shape.
    """
    faults = [f"missing {name}" for name in target if name not in tensors]
    faults += [f"unexpected {name}" for name in tensors if name not in target]
    faults += [
        f"{name} of shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
        for name, value in target.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if faults:
        msg = f"`{source}` must hold exactly the network's tensors; got: " + "; ".join(faults)
        raise CheckpointError(msg)
    with torch.no_grad():
        for name, value in target.items():
            value.copy_(tensors[name])


def _load(kind: Any, folder: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - untyped libraries
    """Load a diffusers or transformers model and refuse what they only log."""
    loaded, info = kind.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    faults = {name: info.get(name) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(faults.values()):
        msg = f"`{folder}` must hold exactly the network's tensors; got {faults}."
        raise CheckpointError(msg)
    return loaded.eval()


def _save(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None) -> None:
    """Write tensors, cast where asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().to(dtype=dtype).contiguous() for name, value in tensors.items()}
    save_file(stored, path, metadata={"format": "pt"})


def _cast_copy(network: nn.Module, dtype: torch.dtype | None) -> Any:  # noqa: ANN401
    """Copy a network in another type, or return it."""
    return network if dtype is None else copy.deepcopy(network).to(dtype)


def _per_channel(value: Tensor, like: Tensor) -> Tensor:
    """Lay a number a channel over latents."""
    return value.to(like)[:, None, None]
