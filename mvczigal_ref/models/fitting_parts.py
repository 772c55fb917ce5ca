"""Parts of a pipeline that must fit each other, compared by their settings before any is loaded."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, T5Config

from mvczigal_ref.errors import CheckpointError, quoted
from mvczigal_ref.models.weight_files import described_by, read_json

__all__ = ["require_fitting_flux", "require_fitting_sd3", "require_fitting_sdxl"]


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
    unet, vae = _of(UNet2DConditionModel, folders["unet"]), _of(AutoencoderKL, folders["vae"])
    first, second = (_clip(folders[name]) for name in ("text_encoder", "text_encoder_2"))
    encoder = _defaults(T2IAdapter) | dict(cameras)
    place, latent = folders["unet"], vae["latent_channels"]
    width = _total(first.hidden_size, second.hidden_size)
    sizes = _total(second.projection_dim, *[unet["addition_time_embed_dim"]] * 6)
    blocks, scale = list(unet["block_out_channels"]), 2 ** len(vae["block_out_channels"])
    levels, channels = [*blocks, *blocks[-1:]], list(encoder["channels"])
    text = "the widths of both text encoders together"
    rules = [
        _Rule(place, "addition_embed_type", unet["addition_embed_type"], "text_time", "as SDXL is"),
        *(
            _Rule(place, name, unet[name], None, "as SDXL is")
            for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
        ),
        *(
            _Rule(place, name, unet[name], latent, "the autoencoder's latent_channels")
            for name in ("in_channels", "out_channels")
        ),
        _Rule(place, "cross_attention_dim", unet["cross_attention_dim"], width, text),
        _Rule(
            place,
            "projection_class_embeddings_input_dim",
            unet["projection_class_embeddings_input_dim"],
            sizes,
            "the projection of text_encoder_2 and six embedded sizes",
        ),
        _Rule(place, "levels of the camera encoder", channels, levels, "its block_out_channels"),
        _Rule(
            folders["vae"],
            "twice its reduction",
            scale,
            encoder["downscale_factor"],
            "the downscale_factor of the camera encoder",
        ),
        *_images(folders["vae"], vae),
    ]
    _require([*rules, *_layers(folders["text_encoder"], first)])
    _require(_layers(folders["text_encoder_2"], second))


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
