"""HPSv3: Qwen2-VL with a small head, trained on people's choices between images."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.chunks import in_chunks
from mvczigal_ref.models.loading import quiet
from mvczigal_ref.models.weight_files import described_by, read_json
from mvczigal_ref.reward.foreign_tensors import read_tensors
from mvczigal_ref.reward.hpsv3_network import (
    IMAGE_TOKEN,
    REWARD_TOKEN,
    build_hpsv3,
    read_instruction,
    read_tokenizer,
)
from mvczigal_ref.reward.weights import Published, Source, locate
from mvczigal_ref.shapes import Images, PerViewReward

__all__ = ["HpsV3"]

PIXELS = 256 * 28 * 28
"""Approximate area of a resized image [px]: 256 image tokens, as in training."""

_PROMPT = "{text_prompt}"
_BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
_IMAGE = "<|vision_start|>{}<|vision_end|>"


class HpsV3:
    r"""`hpsv3`: mean of the score that people would give an image for its prompt [1].

    .. math:: R_{b v} = \mu(h_{b v}), \qquad h_{b v} = f(x_{b v}, c_b)_{\text{reward token}}

    Unbounded, as its authors state: it was fitted to choices, which show only differences; at
    a difference of 1, at most 73 % choose the better image. Their README's averages over generators
    reach from -0.2 (Stable Diffusion 2) to 10.6 (Kolors). The second output, the logarithm of
    the uncertainty, is not used. Unverified: tables with values near 0.15 divide by 100.

    The words around the prompt belong to the network like its weights, and are not shipped here:
    put them into ``hpsv3_instruction.txt`` beside the weights. Unverified: equality with
    the released code on the released weights, which were not run together.

    Source:
        Ma et al., HPSv3, arXiv:2508.03789, section 4, and its released inference. As there, image
        tokens are numbered like words, not by row and column, and the rotary frequencies are
        rounded to bfloat16. Text after the reward token is left out: attention is causal.

    Args:
        model: Qwen2-VL without its language head, in evaluation mode.
        head: Maps a token's features to mean and uncertainty, in float32.
        tokenizer: The network's tokenizer with the reward token.
        instruction: Text with ``{text_prompt}`` once and, after it, ``<|Reward|>`` once.
        chunk_size: Views of one object that pass the network at once [1]; positive. Objects
            never share a pass, so neither neighbours nor padding change a score.
        pixels: Approximate area of a resized image [px].

    Examples:
        >>> HpsV3.from_pretrained("/absent")
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: `source` must be a folder or hub id that holds ...
    """

    weights: ClassVar[Published] = Published(
        repo="MizzenAI/HPSv3", files=("HPSv3.safetensors",), size="16.6 GB"
    )
    base_files: ClassVar[Published] = Published(
        repo="Qwen/Qwen2-VL-7B-Instruct", files=("tokenizer.json",), size="7.0 MB"
    )

    def __init__(
        self,
        model: Qwen2VLModel,
        head: nn.Module,
        tokenizer: Tokenizer,
        *,
        instruction: str,
        chunk_size: int = 8,
        pixels: int = PIXELS,
    ) -> None:
        if chunk_size < 1:
            msg = f"`chunk_size` must be positive; got {chunk_size}; use what fits in memory."
            raise ValueError(msg)
        before, *after = instruction.split(_PROMPT)
        if len(after) != 1 or after[0].count(REWARD_TOKEN) != 1 or REWARD_TOKEN in before:
            msg = (
                f"`instruction` must hold {_PROMPT} once and after it {REWARD_TOKEN} once; got "
                f"{instruction[:80]!r}. Take the words that the network was trained with."
            )
            raise ValueError(msg)
        number = tokenizer.token_to_id(IMAGE_TOKEN)
        if number != model.config.image_token_id:
            msg = (
                f"`tokenizer` must number {IMAGE_TOKEN} {model.config.image_token_id} as the "
                f"network does; got {number}. Use the one of `{self.base_files.repo}`."
            )
            raise ValueError(msg)
        self.model, self.head, self.tokenizer = model, head, tokenizer
        self.instruction = instruction[: instruction.index(REWARD_TOKEN) + len(REWARD_TOKEN)]
        self.chunk_size = chunk_size
        vision = model.config.vision_config
        self._merge = vision.spatial_merge_size
        # Least and most pixels are equal: every image gets about the same number of tokens.
        self._processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": pixels, "longest_edge": pixels},
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: Source | None = None,
        *,
        base: Source | None = None,
        instruction: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
        local_files_only: bool = True,
        chunk_size: int = 8,
        pixels: int = PIXELS,
    ) -> "HpsV3":
        """Load the published checkpoint, or one of its layout at any width.

        Args:
            source: A folder with ``HPSv3.safetensors``, a hub id, or the file; the published
                one when None.
            base: Folder or hub id of ``config.json`` and ``tokenizer.json``, whose weights are
                not needed; the published one when None.
            instruction: The words around the prompt; read from ``hpsv3_instruction.txt``
                beside the weights when None.
            dtype: Floating type of the network, bfloat16 as in training or float32; the head is
                float32.
            local_files_only: If true, nothing is downloaded: a hub id is looked up in the
                cache alone.
            chunk_size: Views that pass the network at once [1].
            pixels: Approximate area of a resized image [px].

        Returns:
            A scorer on the CPU.

        Raises:
            ValueError: If ``dtype`` or another setting is out of range.
            CheckpointError: If a file is absent, with what to download and how large it is; or
                if a tensor is missing, left over or of another shape, each by its name in the
                file.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            msg = f"`dtype` must be torch.float32 or torch.bfloat16; got {dtype}."
            raise ValueError(msg)
        path = locate(source or cls.weights.repo, cls.weights, local_files_only=local_files_only)
        words = read_instruction(path) if instruction is None else instruction
        base_config, base_tokenizer = (
            locate(
                base or cls.base_files.repo,
                cls.base_files,
                local_files_only=local_files_only,
                files=(name,),
            )
            for name in ("config.json", "tokenizer.json")
        )
        content = read_json(base_config)
        if content.get("model_type") != "qwen2_vl":
            kind = content.get("model_type")
            msg = f"`{base_config}` must describe a `qwen2_vl` model; got {kind!r}."
            raise CheckpointError(msg)
        tokenizer = read_tokenizer(base_tokenizer)
        with described_by(base_config):
            config = Qwen2VLConfig.from_dict(content)
        # The embedding was cut to the tokenizer's length when the reward token was added.
        config.text_config.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        with quiet(), described_by(f"{base_config} or {path}"):
            model, head = build_hpsv3(config, read_tensors(path), source=str(path), dtype=dtype)
        settings = {"chunk_size": chunk_size, "pixels": pixels}
        return cls(model, head, tokenizer, instruction=words, **settings)

    def to(self, device: torch.device | str) -> "HpsV3":
        """Move the network in place.

        Args:
            device: Device of the network from now on.

        Returns:
            This scorer.
        """
        self.model.to(device)
        self.head.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> PerViewReward:
        """Score each view against its object's prompt.

        Args:
            images: Decoded views in [0, 1], on any device; they are rounded to 8 bits and
                resized on the CPU, as in training.
            prompts: One prompt per object; each is encoded once.

        Returns:
            One score per view [1], in float32, on the images' device.

        Raises:
            ValueError: If there is not one prompt per object, or a prompt holds one of the
                tokenizer's special tokens.
        """
        if isinstance(prompts, str) or len(prompts) != len(images) or not prompts:
            msg = f"`prompts` must be one text per object, {len(images)}; got {prompts!r}."
            raise ValueError(msg)
        special = [token.content for token in self.tokenizer.get_added_tokens_decoder().values()]
        for prompt in prompts:
            if inside := [token for token in special if token in prompt]:
                msg = f"`prompts` must hold no special token; got {inside[0]!r} in {prompt!r}."
                raise ValueError(msg)
        rows = [self._object(views, prompt) for views, prompt in zip(images, prompts, strict=True)]
        return torch.stack(rows).to(images.device)

    def _object(
        self, views: Float[Tensor, "view rgb height width"], prompt: str
    ) -> Float[Tensor, " view"]:
        """Score the views of one object."""
        pixels = (views.float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu()
        words = self.instruction.replace(_PROMPT, prompt)
        ids: list[int] = []

        def score(rows: UInt8[Tensor, "row rgb height width"]) -> Float[Tensor, " row"]:
            seen = self._processor(
                images=[row.numpy() for row in rows],
                input_data_format="channels_first",
                return_tensors="pt",
            )
            if not ids:
                count = int(seen["image_grid_thw"][0].prod()) // self._merge**2
                text = _BEFORE + _IMAGE.format(IMAGE_TOKEN * count) + words
                ids.extend(self.tokenizer.encode(text, add_special_tokens=False).ids)
            return self._score(seen["pixel_values"], seen["image_grid_thw"], ids)

        return in_chunks(score, pixels, size=self.chunk_size)

    def _score(
        self, patches: Float[Tensor, "patch value"], grid: Int[Tensor, "row 3"], ids: list[int]
    ) -> Float[Tensor, " row"]:
        """Run the network on images that share their text."""
        device = self.model.device
        hidden = self.model(
            input_ids=torch.tensor(ids, device=device).expand(len(grid), -1),
            position_ids=torch.arange(len(ids), device=device).expand(3, len(grid), -1),
            pixel_values=patches.to(device),
            image_grid_thw=grid.to(device),
            use_cache=False,
        ).last_hidden_state
        # The reward token is the last one.
        mean_and_uncertainty: Tensor = self.head(hidden[:, -1].float())
        return mean_and_uncertainty[:, 0]
