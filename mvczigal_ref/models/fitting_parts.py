"""Parts of a pipeline that must fit each other, compared by their settings before any is loaded."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    T2IAdapter,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextConfig, Qwen3Config, T5Config

from mvczigal_ref.errors import CheckpointError, quoted
from mvczigal_ref.models.weight_files import described_by, read_json

__all__ = [
    "require_fitting_flux",
    "require_fitting_sd3",
    "require_fitting_sdxl",
    "require_fitting_unet",
    "require_fitting_z_image",
]


class _Rule(NamedTuple):
    """A setting that another part decides."""

    place: Path
    setting: str
    value: Any
    expected: Any
    reason: str


def require_fitting_sdxl(folders: Mapping[str, Path], cameras: Mapping[str, Any]) -> None:
    """Compare the parts of a multi-view SDXL.

    Args:
        folders: Folders of ``unet``, ``vae``, ``text_encoder`` and ``text_encoder_2``.
        cameras: Settings of the camera encoder.

    Raises:
        CheckpointError: If a part has a setting that another part, or SDXL's way of conditioning,
            does not fit; names the folder, the setting and both values. Or if settings are
            unreadable.
    """
    encoder, vae = _defaults(T2IAdapter) | dict(cameras), _of(AutoencoderKL, folders["vae"])
    unet = _of(UNet2DConditionModel, folders["unet"])
    blocks, scale = list(unet["block_out_channels"]), 2 ** len(vae["block_out_channels"])
    levels, channels = [*blocks, *blocks[-1:]], list(encoder["channels"])
    place, down = folders["unet"], encoder["downscale_factor"]
    _require(
        [
            *_unet(place, folders["vae"], [folders["text_encoder"], folders["text_encoder_2"]]),
            _Rule(place, "levels of the camera encoder", channels, levels, "its channels"),
            _Rule(folders["vae"], "twice its reduction", scale, down, "as the camera encoder"),
        ]
    )


def require_fitting_unet(unet: Path, vae: Path, text_encoders: Sequence[Path]) -> None:
    """Compare the parts of a single-view UNet's pipeline.

    Args:
        unet: Folder of the UNet.
        vae: Folder of the autoencoder.
        text_encoders: Folders of the text encoders: two of SDXL, one of Stable Diffusion 1.5.

    Raises:
        CheckpointError: As :func:`require_fitting_sdxl`.
    """
    _require(_unet(unet, vae, text_encoders))


def _unet(place: Path, vae_place: Path, texts: Sequence[Path]) -> list[_Rule]:
    """Compare a UNet with its autoencoder and its one or two text encoders."""
    unet, vae = _of(UNet2DConditionModel, place), _of(AutoencoderKL, vae_place)
    encoders = [_clip(folder) for folder in texts]
    width, latent = _total(*(e.hidden_size for e in encoders)), vae["latent_channels"]
    named = "the autoencoder's latent_channels"
    wide = "the width of the text encoders together"
    plain = dict.fromkeys(("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"))
    plain["addition_embed_type"] = "text_time" if len(texts) > 1 else None
    rules = [_Rule(place, name, unet[name], only, "as published") for name, only in plain.items()]
    rules += [_Rule(place, n, unet[n], latent, named) for n in ("in_channels", "out_channels")]
    rules += [_Rule(place, "cross_attention_dim", unet["cross_attention_dim"], width, wide)]
    if len(texts) > 1:
        name = "projection_class_embeddings_input_dim"
        sizes = _total(encoders[1].projection_dim, *[unet["addition_time_embed_dim"]] * 6)
        both = "the projection of text_encoder_2 and six embedded sizes"
        rules += [_Rule(place, name, unet[name], sizes, both)]
    rules += _images(vae_place, vae)
    for folder, encoder in zip(texts, encoders, strict=True):
        rules += _layers(folder, encoder)
    return rules


def require_fitting_flux(folders: Mapping[str, Path]) -> None:
    """Compare the parts of a FLUX.1 pipeline.

    Args:
        folders: Folders of ``transformer``, ``vae``, ``text_encoder`` and ``text_encoder_2``.

    Raises:
        CheckpointError: As :func:`require_fitting_sdxl`.
    """
    place = folders["transformer"]
    network, vae = _of(FluxTransformer2DModel, place), _of(AutoencoderKL, folders["vae"])
    clip, words = _clip(folders["text_encoder"]), _t5(folders["text_encoder_2"])
    pooled, latent = clip.hidden_size, _total(*[vae["latent_channels"]] * 4)
    packed = "the autoencoder's latent_channels, of 2 x 2 positions"
    _require(
        [
            _Rule(place, "in_channels", network["in_channels"], latent, packed),
            *_texts(place, network, words.d_model, pooled, "the width of text_encoder"),
            *_images(folders["vae"], vae),
        ]
    )


def require_fitting_sd3(folders: Mapping[str, Path]) -> None:
    """Compare the parts of a pipeline of Stable Diffusion 3 or 3.5.

    Args:
        folders: Folders of ``transformer``, ``vae`` and three text encoders.

    Raises:
        CheckpointError: As :func:`require_fitting_sdxl`.
    """
    place = folders["transformer"]
    network, vae = _of(SD3Transformer2DModel, place), _of(AutoencoderKL, folders["vae"])
    clips = [_clip(folders[name]) for name in ("text_encoder", "text_encoder_2")]
    words, latent = _t5(folders["text_encoder_3"]), vae["latent_channels"]
    pooled, both = _total(*(c.projection_dim for c in clips)), "both CLIPs' projections together"
    _require(
        [
            _Rule(place, "in_channels", network["in_channels"], latent, "the latent_channels"),
            *_texts(place, network, words.d_model, pooled, both),
            *_images(folders["vae"], vae),
        ]
    )


def require_fitting_z_image(folders: Mapping[str, Path]) -> None:
    """Compare the parts of a Z-Image pipeline.

    Args:
        folders: Folders of ``transformer``, ``vae`` and ``text_encoder``.

    Raises:
        CheckpointError: As :func:`require_fitting_sdxl`.
    """
    place = folders["transformer"]
    network, vae = _of(ZImageTransformer2DModel, place), _of(AutoencoderKL, folders["vae"])
    width, latent = _text(Qwen3Config, folders["text_encoder"]).hidden_size, vae["latent_channels"]
    _require(
        [
            _Rule(place, "in_channels", network["in_channels"], latent, "the latent_channels"),
            _Rule(place, "cap_feat_dim", network["cap_feat_dim"], width, "as text_encoder is wide"),
            *_images(folders["vae"], vae),
        ]
    )


def _texts(
    place: Path, network: Mapping[str, Any], width: int, pooled: int | None, both: str
) -> list[_Rule]:
    """Compare a flow transformer with its text encoders."""
    names = ("joint_attention_dim", "pooled_projection_dim")
    tokens = _Rule(place, names[0], network[names[0]], width, "the width of T5")
    return [tokens, _Rule(place, names[1], network[names[1]], pooled, both)]


def _images(place: Path, vae: Mapping[str, Any]) -> list[_Rule]:
    """Demand an autoencoder of pictures of three colours."""
    names = ("in_channels", "out_channels")
    return [_Rule(place, name, vae[name], 3, "red, green and blue") for name in names]


def _layers(place: Path, encoder: CLIPTextConfig) -> list[_Rule]:
    """Demand a layer before the last, whose features are read."""
    enough = encoder.num_hidden_layers if encoder.num_hidden_layers else 1
    reason = "at least, whose input is what is read"
    return [_Rule(place, "num_hidden_layers", encoder.num_hidden_layers, enough, reason)]


def _require(rules: Iterable[_Rule]) -> None:
    for place, setting, value, expected, reason in rules:
        if value != expected:
            msg = (
                f"`{place}` must have {setting} = {quoted(expected)}, {reason}; got "
                f"{quoted(value)}. Take parts that belong together."
            )
            raise CheckpointError(msg)


def _of(kind: Any, folder: Path) -> dict[str, Any]:  # noqa: ANN401 - diffusers is untyped
    """Read a network's settings, with its class's own values of those that are absent."""
    settings = _defaults(kind) | read_json(folder / "config.json")
    if isinstance(settings.get("block_out_channels"), list | tuple | None):
        return settings
    msg = (
        f"`{folder}` must have a list of numbers as block_out_channels; got "
        f"{quoted(settings['block_out_channels'])}."
    )
    raise CheckpointError(msg)


def _defaults(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - diffusers is untyped
    return {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()}


def _clip(folder: Path) -> CLIPTextConfig:
    return _text(CLIPTextConfig, folder)


def _t5(folder: Path) -> T5Config:
    return _text(T5Config, folder)


def _text(kind: Any, folder: Path) -> Any:  # noqa: ANN401 - transformers is untyped
    read_json(folder / "config.json")  # which says what it is, where it is something else
    with described_by(folder / "config.json"):
        return kind.from_pretrained(folder, local_files_only=True)


def _total(*numbers: Any) -> int | None:  # noqa: ANN401 - whatever the settings hold
    """Add whole numbers; None, which no network has, where one is none."""
    return sum(numbers) if all(type(number) is int for number in numbers) else None
