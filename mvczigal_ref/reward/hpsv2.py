"""HPSv2: OpenCLIP's ViT-H-14 trained on people's choices, run by transformers' CLIP."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import CLIPConfig, CLIPModel

from mvczigal_ref.models.loading import quiet
from mvczigal_ref.reward.clip_score import CLIP_TOKENIZER_FILES, ClipScore, Pixels, Squares
from mvczigal_ref.reward.foreign_tensors import read_tensors
from mvczigal_ref.reward.openai_clip import from_openai, to_openai
from mvczigal_ref.reward.preprocessing import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, preprocess
from mvczigal_ref.reward.text_repair import repaired
from mvczigal_ref.reward.weights import Published, Source, build_network, locate

__all__ = ["HpsV2", "vit_h_14"]

_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class HpsV2(ClipScore):
    r"""`hpsv2`: cosine of image and text features of the human preference model [1].

    About 0.2 to 0.35. Version 2.1 and version 2.0 differ by their training data; their scores
    must not be compared with each other. An image that is not square is scaled by its longer side
    and padded with black; nothing is cut off. Prompts are repaired as in OpenCLIP's tokenizer:
    a typographic apostrophe becomes a plain one.

    Source:
        Wu et al., Human Preference Score v2, arXiv:2306.09341, section 4. Deviation: where the
        resizing filter overshoots, values are clamped to [0, 1].

    Examples:
        >>> HpsV2.from_pretrained("/absent")
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: `source` must be ... holds HPS_v2.1_compressed...
    """

    weights: ClassVar[Published] = Published(
        repo="xswu/HPSv2", files=("HPS_v2.1_compressed.pt",), size="1.97 GB"
    )
    tokenizer_files: ClassVar[Published] = Published(
        repo="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", files=CLIP_TOKENIZER_FILES, size="2.2 MB"
    )

    @classmethod
    def from_pretrained(
        cls,
        source: Source | None = None,
        *,
        tokenizer: Source | None = None,
        dtype: torch.dtype = torch.float32,
        local_files_only: bool = True,
        config: CLIPConfig | None = None,
        **settings: Any,  # noqa: ANN401 - the constructor's own keywords
    ) -> "HpsV2":
        """Load a published checkpoint, or any CLIP in OpenCLIP's layout.

        Args:
            source: A file of OpenCLIP's tensors, a folder with ``HPS_v2.1_compressed.pt`` (or
                ``.safetensors``), or a hub id; the published one when None. Version 2.0 is its
                file ``HPS_v2_compressed.pt``.
            tokenizer: A folder or hub id; the published one when None.
            dtype: Floating type of the network, float32 or bfloat16.
            local_files_only: If true, nothing is downloaded: a hub id is looked up in the
                cache alone.
            config: Size of the network; ViT-H-14 when None.
            **settings: The constructor's keywords.

        Returns:
            A scorer on the CPU.

        Raises:
            CheckpointError: If a file is absent, with what to download and how large it is; or
                if a tensor is missing, left over or of another shape, each by its name in the
                file.
        """
        size = config or vit_h_14()
        path = locate(source or cls.weights.repo, cls.weights, local_files_only=local_files_only)
        tensors = read_tensors(path)
        with quiet():
            model = build_network(
                lambda: CLIPModel(size),
                tensors,
                source=str(path),
                dtype=dtype,
                to_published=to_openai,
                from_published=from_openai,
            )
        return cls(model, cls._tokenizer(tokenizer, model, local_files_only), **settings)

    def _tokens(self, prompts: list[str]) -> Tensor:
        return super()._tokens([repaired(prompt) for prompt in prompts])

    def _pixels(self, rows: Pixels) -> Squares:
        size = self.model.config.vision_config.image_size
        height, width = rows.shape[-2:]
        longer = max(height, width)
        inner = (max(1, round(height * size / longer)), max(1, round(width * size / longer)))
        # The published pipeline rounds before it resizes, not after.
        if self.round_to_bytes:
            rows = preprocess(rows, size=(height, width), mean=_ZERO, std=_ONE, round_to_bytes=True)
        rows = preprocess(rows, size=inner, mean=_ZERO, std=_ONE, crop=False)
        above, left = (size - inner[0]) // 2, (size - inner[1]) // 2
        rows = pad(rows, (left, size - inner[1] - left, above, size - inner[0] - above))
        return preprocess(rows, size=size, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD)


def vit_h_14() -> CLIPConfig:
    """Return the size of OpenCLIP's ViT-H-14, from which HPSv2 was trained.

    Returns:
        A configuration of 986 million parameters; its activation is the exact GELU.

    Examples:
        >>> vit_h_14().vision_config.num_hidden_layers
        32
    """
    shared: dict[str, Any] = {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "num_attention_heads": 16,
        "projection_dim": 1024,
    }
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
    return CLIPConfig(
        text_config=shared | text,
        vision_config=shared | vision | {"image_size": 224, "patch_size": 14},
        projection_dim=1024,
    )
