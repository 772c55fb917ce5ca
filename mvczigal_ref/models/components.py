"""Every part of a text-to-multiview pipeline, its saving and strict loading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mvczigal_ref.cameras import OrthographicRig, camera_image
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import usual_mode
from mvczigal_ref.models.fitting_parts import require_fitting_sdxl
from mvczigal_ref.models.latents import ScaledAutoencoder, shifted_statistics
from mvczigal_ref.models.loading import (
    cast_network,
    load_model,
    load_strict,
    quiet,
    require_exact,
    save_config,
    stored,
)
from mvczigal_ref.models.low_bit_reading import FewBits, few_bit_weights
from mvczigal_ref.models.multiview_unet import PUBLISHED_CAMERA_ENCODER, MultiViewUNet
from mvczigal_ref.models.placement import at_work
from mvczigal_ref.models.published import ADAPTER_FILE
from mvczigal_ref.models.row_attention import install_row_attention, is_row_attention
from mvczigal_ref.models.single_files import refuse_single_file
from mvczigal_ref.models.text import encode_clip_prompts, text_conditioning
from mvczigal_ref.models.tokenizer_files import fit_tokenizers, read_tokenizer
from mvczigal_ref.models.weight_files import described_by, read_safetensors
from mvczigal_ref.models.whole_pipelines import WEIGHTS_FILE, require_no_lora
from mvczigal_ref.policy import CameraFeatures, Conditioning
from mvczigal_ref.shapes import PromptEmbedding

__all__ = ["Components", "load_components", "with_adapter"]

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

ImageSize = int | tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Components(ScaledAutoencoder):
    """Networks and tokenizers that turn prompts and cameras into images."""

    tokenizer: CLIPTokenizer
    """Tokenizer of the first text encoder."""

    tokenizer_2: CLIPTokenizer
    """Tokenizer of the second text encoder."""

    text_encoder: CLIPTextModel
    """CLIP encoder whose penultimate features are used."""

    text_encoder_2: CLIPTextModelWithProjection
    """CLIP encoder with the pooled projection."""

    policy: MultiViewUNet
    """Denoising network with its camera encoder."""

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """Text encoders, first and second."""
        return (self.text_encoder, self.text_encoder_2)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Networks of the pipeline."""
        return (*self.text_encoders, self.vae, self.policy)

    def encode_prompts(
        self, prompts: Sequence[str]
    ) -> tuple[PromptEmbedding, Float[Tensor, "object pooled"]]:
        """Encode prompts with both text encoders by :func:`encode_clip_prompts`."""
        tokenizers = (self.tokenizer, self.tokenizer_2)
        return encode_clip_prompts(tokenizers, self.text_encoders, prompts)

    def encode_rig(self, rig: OrthographicRig, *, image_size: ImageSize) -> CameraFeatures:
        """Encode a rig's cameras, without gradient.

        Args:
            rig: Cameras, one per view.
            image_size: Height and width of the images, or both in one [px].

        Returns:
            Features that hold for every prompt and step of these weights [1].
        """
        height, width = _both_sides(image_size)
        image = camera_image(rig, height=height, width=width, device=self.policy.device)
        with torch.no_grad(), at_work(self.policy.camera_encoder, device=self.policy.device):
            return self.policy.encode_cameras(image)

    def build_conditioning(
        self,
        prompts: Sequence[str],
        rig: OrthographicRig,
        *,
        image_size: ImageSize,
        negative_prompt: str | None = None,
        camera_features: CameraFeatures | None = None,
    ) -> Conditioning:
        """Encode prompts and cameras, each once, without gradient.

        Args:
            prompts: One text per object.
            rig: Cameras, one per view.
            image_size: Height and width of the images, or both in one [px].
            negative_prompt: Text that classifier-free guidance leads away from;
                for networks without a guidance embedding.
            camera_features: Features from :meth:`encode_rig`, to spare encoding
                the same rig again.

        Returns:
            The record that the policy reads.

        Examples:
            >>> from mvczigal_ref.cameras import PAPER_RIG
            >>> from mvczigal_ref.models.tiny import tiny_components
            >>> conditioning = tiny_components(seed=0).build_conditioning(
            ...     ["a red cube", "a blue ball"], PAPER_RIG, image_size=32
            ... )
            >>> conditioning.num_objects, conditioning.num_views
            (2, 6)
        """
        if camera_features is None:
            camera_features = self.encode_rig(rig, image_size=image_size)
        return text_conditioning(
            self.encode_prompts, prompts, negative_prompt=negative_prompt,
            image_size=_both_sides(image_size), camera_features=camera_features,
            num_views=rig.num_views,
        )  # fmt: skip

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write every part into its own sub-folder, in diffusers' layout.

        Row attention and camera encoder share one file under the names of the
        published adapter; ``unet/`` is a plain UNet that other tools load.

        Args:
            folder: Folder to write into; made if absent.
            dtype: Floating type of the stored tensors; as they are when None.

        Raises:
            ValueError: If the UNet holds a LoRA, which these files do not.
        """
        folder = Path(folder)
        require_no_lora(self.policy.unet)
        tensors = self.policy.unet.state_dict()
        # The statistics hold a published autoencoder's factor.
        self.vae.register_to_config(
            latents_mean=self.latent_mean.tolist(),
            latents_std=self.latent_std.tolist(),
            scaling_factor=1.0,
        )
        camera_encoder = self.policy.camera_encoder
        with quiet():
            for name in ("tokenizer", "tokenizer_2"):
                getattr(self, name).save_pretrained(folder / name)
            for name in ("text_encoder", "text_encoder_2"):
                encoder = getattr(self, name)
                values = stored(encoder.state_dict(), dtype)
                encoder.save_pretrained(folder / name, state_dict=values)
        save_config(self.vae, folder / "vae")
        save_config(self.policy.unet, folder / "unet")
        save_config(camera_encoder, folder / "camera_encoder")
        plain = {n: value for n, value in tensors.items() if not is_row_attention(n)}
        rows = {n: value for n, value in tensors.items() if is_row_attention(n)}
        files = {
            folder / "vae" / WEIGHTS_FILE: self.vae.state_dict(),
            folder / "unet" / WEIGHTS_FILE: plain,
            folder / ADAPTER_FILE: rows | camera_encoder.state_dict(),
        }
        for path, values in files.items():
            save_file(stored(values, dtype), path, metadata={"format": "pt"})
        usual_mode(folder)


def load_components(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    policy_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    mapped: bool = False,
    few_bits: FewBits | None = None,
) -> Components:
    """Read what :meth:`Components.save` wrote, or a published pipeline with its adapter.

    Args:
        folder: Folder with the sub-folders of a diffusers pipeline and
            ``mv_adapter.safetensors``. Where ``camera_encoder/config.json`` is
            absent the published encoder's size is taken.
        dtype: Floating type of the networks; stored tensors are cast.
        policy_dtype: Floating type of UNet and camera encoder, where it is another.
        device: Device of the networks.
        mapped: Whether UNet and row attention keep the types of their files, so that the system
            reads weights when they are used and may forget them again.
        few_bits: Form of the UNet's frozen linear weights; whole if None, as row attention's are.

    Returns:
        Components in evaluation mode.

    Raises:
        CheckpointError: If a part is absent or unreadable, or a tensor is
            missing, left over or of another shape; the message names each.
    """
    folder = Path(folder)
    refuse_single_file("folder", folder)
    absent = [name for name in (*PARTS, ADAPTER_FILE) if not (folder / name).exists()]
    if absent:
        msg = f"`{folder}` must hold every part of a pipeline; absent: {', '.join(absent)}."
        raise CheckpointError(msg)
    try:
        with quiet():
            components = _read(
                folder, dtype, policy_dtype or dtype, mapped=mapped, few_bits=few_bits
            )
    except (OSError, RuntimeError, SafetensorError) as error:
        msg = f"`{folder}` must be readable; got {type(error).__name__}: {error}"
        raise CheckpointError(msg) from error
    return components.to(device)


def _read(
    folder: Path,
    dtype: torch.dtype,
    policy_dtype: torch.dtype,
    *,
    mapped: bool,
    few_bits: FewBits | None,
) -> Components:
    """Load every part."""
    camera_config = PUBLISHED_CAMERA_ENCODER
    if (folder / "camera_encoder").exists():
        camera_config = T2IAdapter.load_config(folder / "camera_encoder")
    require_fitting_sdxl({name: folder / name for name in PARTS}, camera_config)
    unet = load_model(
        UNet2DConditionModel, folder / "unet", dtype=policy_dtype, mapped=mapped, few_bits=few_bits
    )
    adapter = folder / ADAPTER_FILE
    policy = with_adapter(unet, adapter, camera_config, policy_dtype, mapped=mapped)
    vae = load_model(AutoencoderKL, folder / "vae", dtype=dtype)
    mean, std = shifted_statistics(vae)
    first = load_model(CLIPTextModel, folder / "text_encoder", dtype=dtype)
    second = load_model(CLIPTextModelWithProjection, folder / "text_encoder_2", dtype=dtype)
    words = [read_tokenizer(CLIPTokenizer, folder / n) for n in ("tokenizer", "tokenizer_2")]
    fit_tokenizers({"tokenizer": (words[0], first), "tokenizer_2": (words[1], second)})
    return Components(
        tokenizer=words[0],
        tokenizer_2=words[1],
        text_encoder=first.requires_grad_(requires_grad=False),
        text_encoder_2=second.requires_grad_(requires_grad=False),
        vae=vae,
        policy=policy.eval(),
        latent_mean=mean,
        latent_std=std,
    )


def with_adapter(
    unet: UNet2DConditionModel,
    path: Path,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    mapped: bool = False,
) -> MultiViewUNet:
    """Give a plain UNet the row attention and camera encoder of a file.

    Args:
        unet: SDXL's UNet, changed in place.
        path: File of both.
        config: Settings of the camera encoder.
        dtype: Floating type of the camera encoder; row attention has that of the UNet.
        mapped: Whether row attention keeps the type of the file, and its weights stay there until
            they are used.

    Returns:
        The policy.

    Raises:
        CheckpointError: If the settings describe no camera encoder, or a tensor is missing, left
            over or of another shape.
    """
    tensors = read_safetensors(path)
    with described_by(path.parent / "camera_encoder"), torch.device("meta"):
        camera_encoder = cast_network(T2IAdapter.from_config(config), None, dtype)
    few_bits = bool(few_bit_weights(unet))
    if mapped or few_bits:
        install_row_attention(unet, device="meta")
    if few_bits:
        empty = {n: torch.empty_like(v, device="cpu") for n, v in _rows(unet).items()}
        unet.load_state_dict(empty, strict=False, assign=True)
    policy = MultiViewUNet(unet, camera_encoder.to_empty(device="cpu"))
    rows = _rows(unet)
    cameras = camera_encoder.state_dict()
    if mapped:
        require_exact(rows | cameras, tensors, source=str(path))
        unet.load_state_dict({name: tensors.pop(name) for name in rows}, strict=False, assign=True)
        rows = {}
    load_strict(rows | cameras, tensors, source=str(path), spent=True)
    return policy


def _rows(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Find row attention's tensors."""
    return {name: value for name, value in unet.state_dict().items() if is_row_attention(name)}


def _both_sides(image_size: ImageSize) -> tuple[int, int]:
    """Split an image size into height and width."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size
