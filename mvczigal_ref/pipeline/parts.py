"""A diffusers pipeline's parts: how they are put together, loaded and saved."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, T2IAdapter, UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mvczigal_ref.cameras import PAPER_RIG, OrthographicRig
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.hub import latent_statistics, load_sdxl_components
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.schedulers import sdxl_scheduler, stored_prediction, stored_settings
from mvczigal_ref.models.sources import ADAPTER_FILES, SdxlSources, find_file, own_or_published
from mvczigal_ref.models.weight_files import refuse_single_file

__all__ = ["MultiviewPipelineParts"]

_Pipeline = TypeVar("_Pipeline", bound="MultiviewPipelineParts")


class MultiviewPipelineParts(DiffusionPipeline, StableDiffusionXLLoraLoaderMixin):
    """What a text-to-multiview pipeline is made of; a subclass says how it samples.

    Args:
        vae: Images to latents and back.
        text_encoder: CLIP, its penultimate features used.
        text_encoder_2: CLIP with the pooled projection.
        tokenizer: Of the first text encoder.
        tokenizer_2: Of the second.
        unet: SDXL-shaped; row attention is installed unless it is there already.
        camera_encoder: ``full_adapter_xl`` with 6 input channels.
        scheduler: An ``LCMScheduler`` or ``DDIMScheduler``, whose settings alone are read.
        image_size: Edge of an image where none is asked for [px].
        snr_shift: Factor that divides the signal-to-noise ratio at the noisy end [1].
        rig: Fields of the :class:`OrthographicRig` that is taken where none is given; the
            paper's six cameras if None.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->camera_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        camera_encoder: T2IAdapter,
        scheduler: Any,  # noqa: ANN401 - diffusers is untyped
        image_size: int = 768,
        snr_shift: float = 8.0,
        rig: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            camera_encoder=camera_encoder,
            scheduler=scheduler,
        )
        cameras = asdict(_rig(rig))
        self.register_to_config(image_size=image_size, snr_shift=snr_shift, rig=cameras)
        MultiViewUNet(unet, camera_encoder)  # installs row attention, or says why it cannot

    @classmethod
    def from_components(
        cls: type[_Pipeline],
        components: Components,
        *,
        scheduler: Any = None,  # noqa: ANN401
        rig: OrthographicRig = PAPER_RIG,
        image_size: int = 768,
        snr_shift: float = 8.0,
    ) -> _Pipeline:
        """Wrap loaded networks, which are shared and not copied.

        Args:
            components: The networks.
            scheduler: Whose settings are sampled by; the published one for the UNet if None.
            rig: Cameras that are taken where none are given.
            image_size: Edge of an image where none is given [px].
            snr_shift: Factor that divides the signal-to-noise ratio at the noisy end [1].

        Returns:
            The pipeline.
        """
        policy = components.policy
        components.vae.register_to_config(
            latents_mean=components.latent_mean.tolist(),
            latents_std=components.latent_std.tolist(),
            scaling_factor=1.0,
        )
        return cls(
            vae=components.vae,
            text_encoder=components.text_encoder,
            text_encoder_2=components.text_encoder_2,
            tokenizer=components.tokenizer,
            tokenizer_2=components.tokenizer_2,
            unet=policy.unet,
            camera_encoder=policy.camera_encoder,
            scheduler=scheduler or sdxl_scheduler(few_steps=policy.guidance_width is not None),
            image_size=image_size,
            snr_shift=snr_shift,
            rig=asdict(rig),
        )

    @classmethod
    def from_pretrained(
        cls: type[_Pipeline],
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        unet: str | None = None,
        vae: str | None = None,
        adapter: str | None = None,
        scheduler: Any = None,  # noqa: ANN401
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
    ) -> _Pipeline:
        """Load a saved pipeline, or any SDXL with the published adapter.

        Every tensor must fit; only safetensors are read, and no code of a repository is run. A
        plain SDXL pipeline's own UNet and autoencoder are taken, and what its scheduler says the
        UNet predicts; of SDXL's published base, by its hub id, text encoders alone: with it go the
        published few-step UNet and autoencoder, as they do, with a warning, where a folder has
        none.

        Args:
            pretrained_model_name_or_path: What :meth:`save_pretrained` wrote, or a plain SDXL
                pipeline: a folder or a hub id.
            unet: Folder or hub id of another UNet; ``id@revision`` names a revision.
            vae: Likewise of another autoencoder.
            adapter: Likewise of another row attention and camera encoder, or the file itself.
            scheduler: Whose settings are sampled by, in place of the stored ones.
            dtype: Floating type of the networks; float32 if None.
            torch_dtype: The same by its older name.
            revision: Of the pipeline's repository.
            cache_dir: Folder of the hub's cache.
            local_files_only: Whether to look into the cache alone.

        Returns:
            The pipeline, on the CPU.

        Raises:
            CheckpointError: If files are absent, and then each is named with where to get it; if
                a tensor does not fit; or if a saved pipeline names no scheduler.
        """
        source = str(pretrained_model_name_or_path)
        refuse_single_file("pretrained_model_name_or_path", source)
        if revision and not Path(source).is_dir():
            source += f"@{revision}"
        found = SdxlSources(base=source, cache=cache_dir, local_files_only=local_files_only)
        # A pipeline that brings its adapter brings its own networks too.
        whole = any(find_file(source, name, found)[0] for name in reversed(ADAPTER_FILES))
        found = replace(
            found,
            unet=unet or (None if whole else own_or_published("unet", found)),
            vae=vae or (None if whole else own_or_published("vae", found)),
            adapter=adapter or (source if whole else found.adapter),
        )
        prediction = None
        if scheduler is None and not (whole and unet is None):
            prediction = stored_prediction(found.unet or source, found)
        components = load_sdxl_components(found, dtype=dtype or torch_dtype or torch.float32)
        settings = stored_settings(source, found) if whole else {}
        rig = settings.pop("rig", None)
        if scheduler is not None:
            settings["scheduler"] = scheduler
        elif whole and "scheduler" not in settings:
            msg = (
                f"`{source}` must hold the settings of its scheduler, scheduler/scheduler_config."
                "json, or `scheduler` must be given, as sdxl_scheduler makes it."
            )
            raise CheckpointError(msg)
        if prediction is not None:
            few_steps = components.policy.guidance_width is not None
            fitting = sdxl_scheduler(few_steps=few_steps, prediction_type=prediction)
            setting = settings.setdefault("scheduler", fitting).config.prediction_type
            if setting != prediction:
                msg = (
                    f"`unet` must predict what the scheduler of {source!r} says, {setting!r}; got "
                    f"{prediction!r} in {found.unet!r}. Give `scheduler`, as sdxl_scheduler makes."
                )
                raise CheckpointError(msg)
        return cls.from_components(components, rig=_rig(rig), **settings)

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        **hub: Any,  # noqa: ANN401
    ) -> None:
        """Write every part: a folder that this class and :func:`load_components` read.

        Args:
            save_directory: Made if absent.
            dtype: Floating type of the stored tensors; as they are when None.
            **hub: ``push_to_hub``, ``repo_id`` and the like, as in diffusers.

        Raises:
            ValueError: If a LoRA is loaded; fuse and unload it first, or save it by itself.
        """
        self.parts.save(Path(save_directory), dtype=dtype)
        self.scheduler.save_pretrained(Path(save_directory) / "scheduler")
        self.save_config(str(save_directory), **hub)

    @classmethod
    def lora_state_dict(cls, source: Any, **options: Any) -> Any:  # noqa: ANN401
        """Read a LoRA's file as diffusers does, and one under the released names too.

        Args:
            source: File, folder, hub id or tensors by name.
            **options: As in diffusers; pickles are not read.

        Returns:
            Tensors by diffusers' names, and what else diffusers returns.

        Raises:
            ValueError: If the file is a pickle, or of a PEFT folder, whose scale diffusers would
                not read.
        """
        name = options.get("weight_name") or ".safetensors"
        if not name.endswith(".safetensors"):
            msg = f"`weight_name` must end in .safetensors; got {name!r}. Pickles are not read."
            raise ValueError(msg)
        options["use_safetensors"] = True
        tensors, *rest = super().lora_state_dict(source, **options)
        if any(name.startswith("base_model.") for name in tensors):
            msg = (
                "`source` must not be a PEFT folder, whose scale would be lost; got one. Read it "
                "with mvczigal_ref.models.lora_files.load_lora(pipeline.unet, folder)."
            )
            raise ValueError(msg)
        if not any(name.startswith(("unet.", "text_encoder", "lora_")) for name in tensors):
            tensors = {f"unet.{name}": value for name, value in tensors.items()}
        return (tensors, *rest)

    @property
    def parts(self) -> Components:
        """The networks as the rest of the package takes them, shared with the pipeline."""
        mean, std = latent_statistics(self.vae)
        return Components(
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            vae=self.vae,
            policy=MultiViewUNet(self.unet, self.camera_encoder),
            latent_mean=mean,
            latent_std=std,
        )

    @property
    def default_rig(self) -> OrthographicRig:
        """The cameras that are taken where none are given."""
        return _rig(self.config.rig)


def _rig(fields: Mapping[str, Any] | None) -> OrthographicRig:
    """Read a rig from its fields, as JSON keeps them."""
    if fields is None:
        return PAPER_RIG
    values: dict[str, Any] = dict(fields)
    for name in ("azimuth_deg", "elevation_deg", "distance"):
        values[name] = tuple(values[name])
    return OrthographicRig(**values)
