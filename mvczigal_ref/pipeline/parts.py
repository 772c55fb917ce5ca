"""Parts of the diffusers pipeline: put together, loaded and saved."""

import warnings
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
from mvczigal_ref.models.hub import load_sdxl_components
from mvczigal_ref.models.latents import latent_statistics
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.plain_pipelines import plain_scheduler, stored_prediction
from mvczigal_ref.models.published import ADAPTER_FILES, SdxlSources
from mvczigal_ref.models.schedulers import sdxl_scheduler, stored_settings
from mvczigal_ref.models.single_files import refuse_single_file
from mvczigal_ref.models.sources import find_file, published_place
from mvczigal_ref.pipeline.stock_files import write_stock_files

__all__ = ["MultiviewPipelineParts"]

_Pipeline = TypeVar("_Pipeline", bound="MultiviewPipelineParts")


class MultiviewPipelineParts(DiffusionPipeline, StableDiffusionXLLoraLoaderMixin):
    """Parts of a text-to-multiview pipeline; a subclass says how it samples.

    Args:
        vae: Autoencoder: images to latents and back.
        text_encoder: CLIP encoder whose penultimate features are used.
        text_encoder_2: CLIP encoder with the pooled projection.
        tokenizer: Tokenizer of the first text encoder.
        tokenizer_2: Tokenizer of the second text encoder.
        unet: SDXL-shaped UNet; row attention is installed unless it is there already.
        camera_encoder: ``full_adapter_xl`` with 6 input channels.
        scheduler: An ``LCMScheduler`` or ``DDIMScheduler``, whose settings alone are read.
        image_size: Edge of an image where the call gives none [px].
        snr_shift: Factor that divides the signal-to-noise ratio at the noisy end [1].
        rig: Fields of the :class:`OrthographicRig` that is used where the call gives none; the
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
        self._complete()

    def _complete(self) -> None:
        """Install row attention, or say why that cannot be."""
        MultiViewUNet(self.unet, self.camera_encoder)

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
            scheduler: Settings of sampling; the published ones for the UNet if None.
            rig: Cameras that are used where the call gives none.
            image_size: Edge of an image where the call gives none [px].
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

        Every tensor must fit; only safetensors are read, and no code of a repository is run. From
        a plain SDXL pipeline come its own UNet and autoencoder, and from its scheduler what
        :func:`~mvczigal_ref.models.plain_pipelines.plain_scheduler` takes. From SDXL's published
        base, named by its hub id, come the text encoders alone, beside the published few-step UNet
        and autoencoder. Where a folder has no UNet or autoencoder, the published one is taken with
        a warning.

        Args:
            pretrained_model_name_or_path: Folder or hub id of a pipeline that
                :meth:`save_pretrained` wrote, or of a plain SDXL pipeline.
            unet: Folder or hub id of another UNet; ``id@revision`` names a revision.
            vae: Folder or hub id of another autoencoder.
            adapter: Folder or hub id of another row attention and camera encoder, or their file.
            scheduler: Settings of sampling, in place of the stored ones.
            dtype: Floating type of the networks; float32 if None.
            torch_dtype: Older name of ``dtype``.
            revision: Revision of the pipeline's repository.
            cache_dir: Folder of the hub's cache.
            local_files_only: Whether to look into the cache alone.

        Returns:
            The pipeline, on the CPU.

        Raises:
            CheckpointError: If files are absent, each named with its place on the hub; if a tensor
                does not fit; or if a saved pipeline names no scheduler.
        """
        source = str(pretrained_model_name_or_path)
        refuse_single_file("pretrained_model_name_or_path", source)
        if revision and not Path(source).is_dir():
            source += f"@{revision}"
        sources = SdxlSources(base=source, cache=cache_dir, local_files_only=local_files_only)
        # A pipeline that brings its adapter brings its own networks too.
        whole = any(find_file(source, name, sources)[0] for name in reversed(ADAPTER_FILES))
        sources = replace(
            sources,
            unet=unet or (None if whole else published_place("unet", sources)),
            vae=vae or (None if whole else published_place("vae", sources)),
            adapter=adapter or (source if whole else sources.adapter),
        )
        prediction, place = None, sources.unet or source
        plain = scheduler is None and not (whole and unet is None)
        if plain:
            prediction = stored_prediction(place, sources)
        components = load_sdxl_components(sources, dtype=dtype or torch_dtype or torch.float32)
        settings = stored_settings(source, sources) if whole else {}
        rig = settings.pop("rig", None)
        if scheduler is not None:
            settings["scheduler"] = scheduler
        elif whole and "scheduler" not in settings:
            msg = (
                f"`{source}` must hold the settings of its scheduler, scheduler/scheduler_config."
                "json, or `scheduler` must be given, as sdxl_scheduler makes it."
            )
            raise CheckpointError(msg)
        if plain and "scheduler" not in settings:
            few_steps = components.policy.guidance_width is not None
            settings["scheduler"] = plain_scheduler(place, sources, few_steps=few_steps)
        elif prediction is not None:
            setting = settings["scheduler"].config.prediction_type
            if setting != prediction:
                msg = (
                    f"`unet` must predict what the scheduler of {source!r} says, {setting!r}; got "
                    f"{prediction!r} in {sources.unet!r}. Give `scheduler`, by sdxl_scheduler."
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
        """Write every part into a folder that this class, and stock diffusers with the folder's own
        ``pipeline.py``, read.

        ``DiffusionPipeline.from_pretrained`` with ``custom_pipeline=folder`` and
        ``trust_remote_code=True`` runs that file, which names this package's class and holds
        nothing else. Of a pipeline on the hub, download the whole repository first: diffusers
        leaves row attention out.

        Args:
            save_directory: Folder to write into; made if absent.
            dtype: Floating type of the stored tensors; as they are when None.
            **hub: ``push_to_hub``, ``repo_id`` and the like, as in diffusers.

        Raises:
            ValueError: If a LoRA is loaded; fuse and unload it first, or save it by itself.
        """
        folder = Path(save_directory)
        self.parts.save(folder, dtype=dtype)
        self.scheduler.save_pretrained(folder / "scheduler")
        write_stock_files(self.camera_encoder, folder, dtype=dtype)
        self.save_config(str(save_directory), **hub)

    @classmethod
    def lora_state_dict(cls, source: Any, **options: Any) -> Any:  # noqa: ANN401
        """Read a LoRA's file as diffusers does, also under the released names.

        Args:
            source: File, folder, hub id or tensors by name.
            **options: As in diffusers; pickles are not read.

        Returns:
            Tensors by diffusers' names, and anything else that diffusers returns.

        Raises:
            ValueError: If the file is a pickle, or lies in a PEFT folder, whose scale diffusers
                would not read.
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

    def load_lora_weights(
        self,
        source: Any,  # noqa: ANN401
        adapter_name: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Add a LoRA beside those that are loaded, as diffusers does, without its warnings.

        Args:
            source: As :meth:`lora_state_dict` takes it.
            adapter_name: Name of the LoRA, by which ``set_adapters`` and ``delete_adapters`` know
                it; "default_0" and so on if None.
            **options: As in diffusers.
        """
        with warnings.catch_warnings():
            # PEFT warns of a second adapter, which is what was asked for.
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            super().load_lora_weights(source, adapter_name=adapter_name, **options)

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: Mapping[str, torch.Tensor],
        network_alphas: Any,  # noqa: ANN401
        text_encoder: Any,  # noqa: ANN401
        prefix: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Load a text encoder's part of a LoRA, if it has one; diffusers warns where it has none.

        Args:
            state_dict: Tensors by name.
            network_alphas: As in diffusers.
            text_encoder: The network, changed in place.
            prefix: Beginning of the names of its tensors.
            **options: As in diffusers.
        """
        if any(name.startswith(f"{prefix}.") for name in state_dict):
            super().load_lora_into_text_encoder(
                state_dict, network_alphas, text_encoder, prefix=prefix, **options
            )

    @property
    def parts(self) -> Components:
        """Networks as the rest of the package takes them, shared with the pipeline."""
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
        """Cameras that are used where the call gives none."""
        return _rig(self.config.rig)


def _rig(fields: Mapping[str, Any] | None) -> OrthographicRig:
    """Make a rig from its fields as JSON stores them."""
    if fields is None:
        return PAPER_RIG
    values: dict[str, Any] = dict(fields)
    for name in ("azimuth_deg", "elevation_deg", "distance"):
        values[name] = tuple(values[name])
    return OrthographicRig(**values)
