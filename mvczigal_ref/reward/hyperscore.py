"""HyperScore: people's opinion of a textured object seen from all sides, predicted on four axes."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar
from weakref import ref

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTokenizer

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.chunks import as_input, device_of, in_chunks
from mvczigal_ref.reward.clip_score import CLIP_TOKENIZER_FILES, check_prompts
from mvczigal_ref.reward.foreign_tensors import read_tensors
from mvczigal_ref.reward.hyperscore_network import (
    AXES,
    HyperScoreNetwork,
    HyperScoreSize,
    build_hyperscore,
)
from mvczigal_ref.reward.preprocessing import IMAGENET_MEAN, IMAGENET_STD, preprocess
from mvczigal_ref.reward.provenance import files_read, note
from mvczigal_ref.reward.text_repair import repaired
from mvczigal_ref.reward.weights import Published, Source, load_tokenizer
from mvczigal_ref.shapes import Images, JointViewReward

__all__ = ["HyperScore", "find_checkpoint"]

_FILES = ("model.safetensors", "model.pth")


class HyperScore:
    """`hyperscore`: one opinion score per object [MATE-3D opinion score].

    The model was fitted to mean opinion scores between 0 and 10; higher is better. Its output is
    not bounded: random weights or unusual images leave that range.

    Source:
        Zhang et al., arXiv:2412.11170. Deviations: images are resized in fp32 whatever the
        towers' precision, and the layers after the towers run in fp32 too; the released code runs
        everything in one type. Padding tokens take part in the patch weights, as in the released
        code.

    Args:
        network: From :func:`~mvczigal_ref.reward.hyperscore_network.build_hyperscore`.
        tokenizer: CLIP's tokenizer, with the vocabulary of the network.
        axis: ``alignment``, ``geometry``, ``texture`` or ``overall``.
        num_views: Views per object [1]. The network takes any number; a fixed one keeps scores
            comparable. MATE-3D has six.
        images_at_once: Images that pass the network together [1]; positive. The views of an
            object always stay together.
        dtype: Precision of the towers: float32 or bfloat16.

    Raises:
        ValueError: If a setting is out of range.
    """

    tokenizer_files: ClassVar[Published] = Published(
        repo="openai/clip-vit-base-patch16", files=CLIP_TOKENIZER_FILES, size="2.2 MB"
    )

    def __init__(
        self,
        network: HyperScoreNetwork,
        tokenizer: Any,  # noqa: ANN401 - transformers' tokenizers are untyped
        *,
        axis: str = "overall",
        num_views: int = 6,
        images_at_once: int = 48,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        _check_axis(axis)
        for name, number in (("num_views", num_views), ("images_at_once", images_at_once)):
            if number < 1:
                msg = f"`{name}` must be positive; got {number}."
                raise ValueError(msg)
        if dtype not in (torch.float32, torch.bfloat16):
            msg = f"`dtype` must be torch.float32 or torch.bfloat16; got {dtype}."
            raise ValueError(msg)
        self.network = network
        self.tokenizer = tokenizer
        self.axis = axis
        self.num_views = num_views
        self.images_at_once = images_at_once
        self.files: tuple[Path, ...] = ()
        self._last = _LastTable()
        network.clip.to(dtype)
        network.prompt_learner.to(dtype)

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        *,
        tokenizer: Source | None = None,
        size: HyperScoreSize | None = None,
        dtype: torch.dtype = torch.float32,
        local_files_only: bool = True,
        **settings: Any,  # noqa: ANN401 - the constructor's own keywords
    ) -> "HyperScore":
        """Read the published checkpoint, which is on no hub.

        Args:
            checkpoint: The released ``model.pth``, the same tensors as ``model.safetensors``, or
                a folder that holds either.
            tokenizer: A folder or hub id; CLIP's tokenizer when None.
            size: Widths and depths of the network; the published ones when None.
            dtype: Precision of the towers: float32 or bfloat16.
            local_files_only: If true, a hub id is looked up in the cache alone.
            **settings: The constructor's keywords.

        Returns:
            A scorer on the CPU.

        Raises:
            CheckpointError: If a file is absent, with where to get it, or if its tensors are not
                the network's; each is named.
        """
        size = size or HyperScoreSize()
        with files_read() as files:
            path = find_checkpoint(checkpoint)
            network = build_hyperscore(read_tensors(path), size=size, source=str(path))
            words = load_tokenizer(
                CLIPTokenizer,
                tokenizer or cls.tokenizer_files.repo,
                published=cls.tokenizer_files,
                vocab_size=size.vocab_size,
                local_files_only=local_files_only,
            )
        scorer = cls(network, words, dtype=dtype, **settings)
        scorer.files = tuple(files)
        return scorer

    def to(self, device: torch.device | str) -> "HyperScore":
        """Move the network in place.

        Args:
            device: Device of the network from now on.

        Returns:
            This scorer.
        """
        self.network.to(device)
        return self

    def on(self, axis: str) -> "HyperScore":
        """Return a scorer on another axis that shares this one's network, device and last scores.

        Args:
            axis: ``alignment``, ``geometry``, ``texture`` or ``overall``.

        Returns:
            A new scorer. Images that both score pass the network once.

        Raises:
            ValueError: If there is no such axis.
        """
        _check_axis(axis)
        other = copy(self)
        other.axis = axis
        return other

    def __call__(self, images: Images, prompts: Sequence[str]) -> JointViewReward:
        """Score each object on this scorer's axis; see :meth:`all_axes`."""
        table = self._last.of(images, prompts)
        if table is None:
            table = self.all_axes(images, prompts)
            self._last.keep(table, images, prompts)
        return table[:, AXES.index(self.axis)].clone()

    @torch.no_grad()
    def all_axes(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "object axis"]:
        """Score each object on all four axes, at the cost of one.

        Args:
            images: Decoded views in [0, 1]; stretched to the network's square.
            prompts: One prompt per object, in the order of ``images``.

        Returns:
            Scores in the order of :data:`~mvczigal_ref.reward.hyperscore_network.AXES`, fp32,
            on the images' device [MATE-3D opinion score]. No gradient.

        Raises:
            ValueError: If the number of views or prompts is wrong, or if a prompt is too long.
        """
        self._check(images, prompts)
        device = device_of(self.network)
        # Samples of one prompt share the prompt's features.
        texts = list(dict.fromkeys(prompts))
        row = torch.tensor([texts.index(prompt) for prompt in prompts], device=device)
        tokens, end = self.network.encode_text(self._token_ids(texts).to(device))
        conditions = self.network.conditions()

        def scores(objects: Int[Tensor, " object"]) -> Float[Tensor, "object axis"]:
            pixels = preprocess(
                images[objects.to(images.device)].flatten(0, 1).to(device).float(),
                size=self.network.size.image_size,
                mean=IMAGENET_MEAN,
                std=IMAGENET_STD,
                crop=False,
                interpolation="bilinear",
            )
            patches = self.network.encode_images(as_input(pixels, self.network.clip))
            patches = patches.unflatten(0, (len(objects), self.num_views)).flatten(1, 2)
            text = row[objects]
            table: Tensor = self.network(patches, tokens[text], end[text], conditions)
            return table

        chosen = torch.arange(len(prompts), device=device)
        at_once = max(1, self.images_at_once // self.num_views)
        return in_chunks(scores, chosen, size=at_once).float().to(images.device)

    def _token_ids(self, texts: Sequence[str]) -> Int[Tensor, "text token"]:
        length = self.network.size.context_length
        # CLIP's own tokenizer pads with zeros, transformers' with the end of text; here the
        # padding changes scores.
        ids = torch.zeros(len(texts), length, dtype=torch.int64)
        for line, text in zip(ids, texts, strict=True):
            numbers = self.tokenizer(repaired(text)).input_ids
            if len(numbers) > length:
                msg = (
                    f"`prompts` must fit in {length} tokens; got {len(numbers)} for {text!r}. "
                    "Shorten it."
                )
                raise ValueError(msg)
            line[: len(numbers)] = torch.tensor(numbers)
        return ids

    def _check(self, images: Images, prompts: Sequence[str]) -> None:
        if images.shape[1] != self.num_views:
            msg = (
                f"`images` must show {self.num_views} views per object; got {images.shape[1]}; "
                "build the scorer with the rig's `num_views`."
            )
            raise ValueError(msg)
        check_prompts(images, prompts)


class _LastTable:
    """Scores on all axes of the last images, valid as long as these live unchanged."""

    def __init__(self) -> None:
        self._entry: tuple[Any, int, tuple[str, ...], Tensor] | None = None

    def keep(self, table: Tensor, images: Images, prompts: Sequence[str]) -> None:
        if not images.is_inference():  # inference tensors do not count their changes
            self._entry = (ref(images), images._version, tuple(prompts), table)

    def of(self, images: Images, prompts: Sequence[str]) -> Tensor | None:
        if self._entry is None or isinstance(prompts, str):
            return None
        seen, version, texts, table = self._entry
        same = seen() is images and version == images._version and texts == tuple(prompts)
        return table if same else None


def _check_axis(axis: str) -> None:
    if axis not in AXES:
        msg = f"`axis` must be one of {AXES}; got {axis!r}."
        raise ValueError(msg)


def find_checkpoint(checkpoint: Path) -> Path:
    """Find the published file.

    Args:
        checkpoint: The file, or a folder that holds it.

    Returns:
        The file; of two, the one in safetensors.

    Raises:
        CheckpointError: If there is none; says where it is published.
    """
    candidates = [checkpoint / name for name in _FILES] if checkpoint.is_dir() else [checkpoint]
    for path in candidates:
        if path.is_file():
            return note(path)
    msg = (
        f"`checkpoint` must be HyperScore's file or a folder with {' or '.join(_FILES)}; got "
        f"{str(checkpoint)!r}. Get it (613 MB) by the link in the README of "
        "https://github.com/zhangyujie-1998/MATE-3D."
    )
    raise CheckpointError(msg)
