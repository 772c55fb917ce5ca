"""ImageReward: BLIP's text encoder reads the prompt while it looks at the image."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.chunks import as_input, device_of, in_chunks
from mvczigal_ref.models.loading import quiet
from mvczigal_ref.models.weight_files import described_by, read_json
from mvczigal_ref.reward.clip_score import check_prompts, working_dtype
from mvczigal_ref.reward.foreign_tensors import read_tensors
from mvczigal_ref.reward.image_reward_network import (
    ImageRewardNetwork,
    blip_large,
    from_image_reward,
    to_image_reward,
)
from mvczigal_ref.reward.preprocessing import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, preprocess
from mvczigal_ref.reward.weights import (
    Published,
    Source,
    build_network,
    load_tokenizer,
    locate,
)
from mvczigal_ref.shapes import Images, PerViewReward

__all__ = ["ImageReward"]

RAW_MEAN = 0.16717362830052426
"""Mean of the head's output over the authors' validation set [1]."""

RAW_STD = 1.0333394966054072
"""Standard deviation of the head's output over the authors' validation set [1]."""

TEXT_LENGTH = 35
"""Most tokens of a prompt, including start and end [1]; the rest is cut off."""

# Heads of the contrastive pretraining, which the score does not use.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")
_TEXT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "pad_token_id",
)


class ImageReward:
    r"""`image_reward`: people's preference predicted by BLIP, standardised by its authors [1].

    .. math:: R_{b v} = (h(\mathrm{BLIP}(x_{b v}, c_b)) - m) / s

    About -2 to 2: mean 0 and deviation 1 over the authors' validation images. The text encoder
    attends to the image from its first layer on, so a prompt is tokenised once per object but
    encoded once per view.

    Source:
        Xu et al., ImageReward, arXiv:2304.05977, section 2.3; m and s are the released code's.

    Args:
        network: Network in evaluation mode.
        tokenizer: BERT's tokenizer, lower case.
        chunk_size: Images that pass the network at once [1]; positive.
        round_to_bytes: Round images to 8 bits per colour as in files, on which published
            numbers were measured; if false, a score changes with every change of an image.

    Examples:
        >>> ImageReward.from_pretrained("/absent")
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: `source` must be a ... that holds ImageReward.pt...
    """

    weights: ClassVar[Published] = Published(
        repo="THUDM/ImageReward", files=("ImageReward.pt",), size="1.79 GB"
    )
    tokenizer_files: ClassVar[Published] = Published(
        repo="google-bert/bert-base-uncased", files=("tokenizer.json", "vocab.txt"), size="0.5 MB"
    )

    def __init__(
        self,
        network: ImageRewardNetwork,
        tokenizer: BertTokenizer,
        *,
        chunk_size: int = 32,
        round_to_bytes: bool = True,
    ) -> None:
        if chunk_size < 1:
            msg = f"`chunk_size` must be positive; got {chunk_size}; use what fits in memory."
            raise ValueError(msg)
        self.network = network
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
        vision: BlipVisionConfig | None = None,
        **settings: Any,  # noqa: ANN401 - the constructor's own keywords
    ) -> "ImageReward":
        """Load the published checkpoint.

        Args:
            source: A folder with ``ImageReward.pt`` (or ``.safetensors``) and
                ``med_config.json``, the first of these files, or a hub id; the published one
                when None.
            tokenizer: A folder or hub id; the published one when None.
            dtype: Floating type of the network, float32 or bfloat16; the head is float32.
            local_files_only: If true, nothing is downloaded: a hub id is looked up in the
                cache alone.
            vision: Size of the image encoder; BLIP-large when None.
            **settings: The constructor's keywords.

        Returns:
            A scorer on the CPU.

        Raises:
            CheckpointError: If a file is absent, with what to download and how large it is; or
                if a tensor is missing, left over or of another shape, each by its name in the
                file.
        """
        source = source or cls.weights.repo
        image = vision or blip_large()
        path = locate(source, cls.weights, local_files_only=local_files_only)
        config_path = locate(
            source, cls.weights, local_files_only=local_files_only, files=("med_config.json",)
        )
        content = read_json(config_path)
        absent = [name for name in _TEXT_SETTINGS if name not in content]
        if absent:
            msg = f"`{config_path}` must describe BLIP's text encoder; absent: {absent}."
            raise CheckpointError(msg)
        with described_by(config_path):
            text = BlipTextConfig(
                encoder_hidden_size=image.hidden_size,
                # Gives the layers their cross-attention; they stay bidirectional.
                is_decoder=True,
                **{name: content[name] for name in _TEXT_SETTINGS},
            )
        tensors = read_tensors(path)
        with quiet():
            network = build_network(
                lambda: ImageRewardNetwork(image, text),
                {name: value for name, value in tensors.items() if not name.startswith(_UNUSED)},
                source=str(path),
                dtype=dtype,
                to_published=to_image_reward,
                from_published=from_image_reward,
            )
        network.head.float()
        words = load_tokenizer(
            BertTokenizer,
            tokenizer or cls.tokenizer_files.repo,
            published=cls.tokenizer_files,
            vocab_size=text.vocab_size,
            local_files_only=local_files_only,
        )
        return cls(network, words, **settings)

    def to(self, device: torch.device | str) -> "ImageReward":
        """Move the network in place.

        Args:
            device: Device of the network from now on.

        Returns:
            This scorer.
        """
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Images, prompts: Sequence[str]) -> PerViewReward:
        """Score each view against its object's prompt.

        Args:
            images: Decoded views in [0, 1], on any device.
            prompts: One prompt per object; the first 35 tokens of each count.

        Returns:
            One reward per view [1], in float32 or wider, on the images' device.

        Raises:
            ValueError: If there is not one prompt per object.
        """
        check_prompts(images, prompts)
        num_views = images.shape[1]
        rows = images.flatten(0, 1)
        text = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=TEXT_LENGTH,
            truncation=True,
            return_tensors="pt",
        )

        def score(index: Tensor) -> Tensor:
            part = rows[index.to(rows.device)]
            pixels = preprocess(
                part.to(device_of(self.network), working_dtype(part)),
                size=self.network.vision.config.image_size,
                mean=OPENAI_CLIP_MEAN,
                std=OPENAI_CLIP_STD,
                round_to_bytes=self.round_to_bytes,
            )
            words = (value[index // num_views] for value in (text.input_ids, text.attention_mask))
            inputs = (as_input(value, self.network) for value in (pixels, *words))
            raw: Tensor = self.network(*inputs)
            return (raw - RAW_MEAN) / RAW_STD

        reward: Tensor = in_chunks(score, torch.arange(len(rows)), size=self.chunk_size)
        return reward.reshape(images.shape[:2]).to(images.device)
