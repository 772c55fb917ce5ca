"""CLIP score and PickScore: the cosine of an image's and its prompt's features."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.chunks import as_input, in_chunks
from mvczigal_ref.models.loading import quiet
from mvczigal_ref.models.weight_files import described_by, read_json
from mvczigal_ref.reward.foreign_tensors import read_tensors
from mvczigal_ref.reward.preprocessing import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, preprocess
from mvczigal_ref.reward.weights import (
    Published,
    Source,
    build_network,
    load_tokenizer,
    locate,
)
from mvczigal_ref.shapes import Images, PerViewReward

__all__ = ["CLIP_TOKENIZER_FILES", "ClipScore", "PickScore", "check_prompts", "working_dtype"]

CLIP_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

Pixels = Float[Tensor, "row rgb height width"]
Squares = Float[Tensor, "row rgb side side"]
Features = Float[Tensor, "row feature"]


class ClipScore:
    r"""`clip_score`: cosine of CLIP's image and text features [1].

    .. math:: R_{b v} = \frac{f(x_{b v}) \cdot g(c_b)}{|f(x_{b v})|\,|g(c_b)|}

    Values lie in [-1, 1]; images that match their prompt have about 0.25 to 0.35. Some
    publications multiply by 100, or cut off below 0.

    Source:
        Hessel et al., CLIPScore, arXiv:2104.08718, section 3, without the factor 2.5; Radford
        et al., CLIP, arXiv:2103.00020.

    Args:
        model: CLIP with both projections, in evaluation mode.
        tokenizer: The model's tokenizer.
        chunk_size: Images, or prompts, that pass the network at once [1]; positive.
        round_to_bytes: Round images to 8 bits per colour as in files, on which published
            numbers were measured; if false, a score changes with every change of an image.

    Examples:
        >>> ClipScore.from_pretrained("/absent")
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: `source` must be a folder or hub id that holds ...
    """

    weights: ClassVar[Published] = Published(
        repo="openai/clip-vit-large-patch14", files=_WEIGHTS, size="1.71 GB"
    )
    tokenizer_files: ClassVar[Published] = Published(
        repo="openai/clip-vit-large-patch14", files=CLIP_TOKENIZER_FILES, size="2.2 MB"
    )

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        *,
        chunk_size: int = 32,
        round_to_bytes: bool = True,
    ) -> None:
        if chunk_size < 1:
            msg = f"`chunk_size` must be positive; got {chunk_size}; use what fits in memory."
            raise ValueError(msg)
        self.model = model
        self.tokenizer = tokenizer
        self.chunk_size = chunk_size
        self.round_to_bytes = round_to_bytes

    @classmethod
    def from_pretrained(
        cls,
        source: Source | None = None,
        *,
        tokenizer: Source | None = None,
        dtype: torch.dtype = torch.float32,
        local_files_only: bool = True,
        **settings: Any,  # noqa: ANN401 - the constructor's own keywords
    ) -> "ClipScore":
        """Load a published checkpoint, or any CLIP in transformers' layout.

        Args:
            source: A folder with ``config.json`` and ``model.safetensors``, or a hub id; the
                published one when None. A ``pytorch_model.bin`` is to be converted first.
            tokenizer: A folder or hub id; the published one when None.
            dtype: Floating type of the network, float32 or bfloat16.
            local_files_only: If true, nothing is downloaded: a hub id is looked up in the
                cache alone.
            **settings: The constructor's keywords.

        Returns:
            A scorer on the CPU.

        Raises:
            CheckpointError: If a file is absent, with what to download and how large it is; or
                if a tensor is missing, left over or of another shape, each by name.
        """
        source = source or cls.weights.repo
        path = locate(source, cls.weights, local_files_only=local_files_only)
        config_path = locate(
            source, cls.weights, local_files_only=local_files_only, files=("config.json",)
        )
        content = read_json(config_path)
        if content.get("model_type") != "clip":
            kind = content.get("model_type")
            msg = f"`{config_path}` must describe a `clip` model; got {kind!r}."
            raise CheckpointError(msg)
        with described_by(config_path):
            config = CLIPConfig.from_dict(content)
        tensors = read_tensors(path)
        with quiet():
            model = build_network(lambda: CLIPModel(config), tensors, source=str(path), dtype=dtype)
        return cls(model, cls._tokenizer(tokenizer, model, local_files_only), **settings)

    @classmethod
    def _tokenizer(
        cls, source: Source | None, model: CLIPModel, local_files_only: bool
    ) -> CLIPTokenizer:
        return load_tokenizer(
            CLIPTokenizer,
            source or cls.tokenizer_files.repo,
            published=cls.tokenizer_files,
            vocab_size=model.config.text_config.vocab_size,
            local_files_only=local_files_only,
        )

    def to(self, device: torch.device | str) -> "ClipScore":
        """Move the network in place.

        Args:
            device: Device of the network from now on.

        Returns:
            This scorer.
        """
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> PerViewReward:
        """Score each view against its object's prompt.

        Args:
            images: Decoded views in [0, 1], on any device.
            prompts: One prompt per object; each distinct one is encoded once. Longer ones
                than the network takes are cut off.

        Returns:
            One cosine per view [1], in float32 or wider, on the images' device.

        Raises:
            ValueError: If there is not one prompt per object.
        """
        check_prompts(images, prompts)
        distinct = list(dict.fromkeys(prompts))
        text = in_chunks(self._text_features, self._tokens(distinct), size=self.chunk_size)
        text = text[[distinct.index(prompt) for prompt in prompts]].to(images.device)
        cosine: Tensor = torch.einsum("bvd,bd->bv", self.image_features(images), text)
        return cosine

    @torch.no_grad()
    def image_features(self, images: Images) -> Float[Tensor, "object view feature"]:
        """Return the features of each view, whatever its prompt, for distances between samples.

        Args:
            images: Decoded views in [0, 1], on any device.

        Returns:
            One vector per view, of length one [1], in float32 or wider, on the images' device.
        """
        rows = in_chunks(self._rows_features, images.flatten(0, 1), size=self.chunk_size)
        views: Tensor = rows.unflatten(0, images.shape[:2]).to(images.device)
        return views

    def _tokens(self, prompts: list[str]) -> Tensor:
        """Return token ids padded to one length, so that neighbours do not change features."""
        ids: Tensor = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.model.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return ids

    def _text_features(self, ids: Tensor) -> Features:
        # The padding needs no mask: attention is causal and the end of text comes before it.
        output = self.model.get_text_features(input_ids=as_input(ids, self.model))
        return _unit(output.pooler_output)

    def _rows_features(self, rows: Pixels) -> Features:
        pixels = self._pixels(rows.to(self.model.device, working_dtype(rows)))
        output = self.model.get_image_features(pixel_values=as_input(pixels, self.model))
        return _unit(output.pooler_output)

    def _pixels(self, rows: Pixels) -> Squares:
        """Prepare images as in the network's training."""
        return preprocess(
            rows,
            size=self.model.config.vision_config.image_size,
            mean=OPENAI_CLIP_MEAN,
            std=OPENAI_CLIP_STD,
            round_to_bytes=self.round_to_bytes,
        )


class PickScore(ClipScore):
    r"""`pickscore`: :class:`ClipScore` by a network trained on people's choices [1].

    About 0.15 to 0.25; a difference of 0.01 is what people notice. Some publications multiply
    by the network's ``exp(logit_scale)``, which is 100.

    Source:
        Kirstain et al., Pick-a-Pic, arXiv:2305.01569, section 3, without the temperature.
    """

    weights = Published(repo="yuvalkirstain/PickScore_v1", files=_WEIGHTS, size="3.94 GB")
    tokenizer_files = Published(
        repo="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", files=CLIP_TOKENIZER_FILES, size="2.2 MB"
    )


def check_prompts(images: Images, prompts: Sequence[str]) -> None:
    """Refuse anything but one prompt per object.

    Args:
        images: The views.
        prompts: The texts, one per object.

    Raises:
        ValueError: If ``prompts`` is a bare string, or not as long as there are objects.
    """
    if isinstance(prompts, str) or len(prompts) != len(images) or not prompts:
        msg = (
            f"`prompts` must be one text per object, of {len(images)} objects; got {prompts!r}. "
            "Give a list."
        )
        raise ValueError(msg)


def working_dtype(images: Tensor) -> torch.dtype:
    """Return the dtype in which images are resized: their own, but at least float32.

    Args:
        images: Floating-point images.

    Returns:
        float32 or wider.

    Examples:
        >>> working_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.promote_types(images.dtype, torch.float32)


def _unit(feature: Features) -> Features:
    """Scale features to length one, in at least float32: bfloat16 would round the cosine."""
    return normalize(feature.to(working_dtype(feature)), dim=-1)
