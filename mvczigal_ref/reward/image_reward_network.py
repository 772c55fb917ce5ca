"""ImageReward's network, built on transformers' BLIP, and its published names."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from mvczigal_ref.reward.clip_score import Pixels
from mvczigal_ref.reward.weights import renamed

__all__ = ["ImageRewardNetwork", "blip_large", "from_image_reward", "to_image_reward"]

_HEAD_WIDTHS = (1024, 128, 64, 16, 1)
# The published head has dropouts at 1, 3 and 5, which do nothing in evaluation.
_HEAD_INDICES = (0, 2, 4, 6, 7)
_RENAMED = (
    ("vision.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
    ("vision.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
    ("vision.embeddings.patch_embedding.", "blip.visual_encoder.patch_embed.proj."),
    ("vision.encoder.layers.", "blip.visual_encoder.blocks."),
    ("vision.post_layernorm.", "blip.visual_encoder.norm."),
    (".self_attn.qkv.", ".attn.qkv."),
    (".self_attn.projection.", ".attn.proj."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    ("text.", "blip.text_encoder."),
    ("head.", "mlp.layers."),
)


class ImageRewardNetwork(nn.Module):
    """BLIP's two encoders, and a head that turns their feature into one number.

    Args:
        vision: Size of the image encoder.
        text: Size of the text encoder; its cross-attention reads ``vision``'s tokens.
    """

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        widths = (text.hidden_size, *_HEAD_WIDTHS)
        layers = zip(_HEAD_INDICES, widths[:-1], widths[1:], strict=True)
        # Linear maps only: in the authors' code the activations are commented out.
        self.head = nn.ModuleDict(
            {str(index): nn.Linear(inside, outside) for index, inside, outside in layers}
        )

    def forward(self, pixels: Pixels, ids: Tensor, mask: Tensor) -> Float[Tensor, " row"]:
        """Score images against prompts, row by row.

        Args:
            pixels: Normalised images.
            ids: Token ids of each row's prompt.
            mask: One where there is a token, zero where there is padding.

        Returns:
            The head's raw output [1].
        """
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen)
        # The published code, too, leaves half precision before the head.
        feature: Tensor = read.last_hidden_state[:, 0].to(self.head["0"].weight.dtype)
        for layer in self.head.values():
            feature = layer(feature)
        return feature[:, 0]


def blip_large() -> BlipVisionConfig:
    """Return the size of BLIP-large's image encoder at 224 pixels.

    Returns:
        A configuration of 303 million parameters.

    Examples:
        >>> blip_large().hidden_size
        1024
    """
    return BlipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=16,
        # The library's default is that of the converted captioning models.
        layer_norm_eps=1e-6,
    )


def to_image_reward(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the network's tensors as ``ImageReward.pt`` names them.

    Args:
        tensors: Tensors by the network's names.

    Returns:
        Tensors by their published names.

    Examples:
        >>> import torch
        >>> list(to_image_reward({"vision.encoder.layers.3.self_attn.qkv.bias": torch.zeros(3)}))
        ['blip.visual_encoder.blocks.3.attn.qkv.bias']
    """
    return {renamed(name, _RENAMED): value for name, value in tensors.items()}


def from_image_reward(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of ``ImageReward.pt`` as the network names them.

    Args:
        tensors: Tensors by their published names.

    Returns:
        Tensors by the network's names; the inverse of :func:`to_image_reward`.

    Examples:
        >>> import torch
        >>> list(from_image_reward({"mlp.layers.7.bias": torch.zeros(1)}))
        ['head.7.bias']
    """
    table = [(theirs, ours) for ours, theirs in _RENAMED]
    return {renamed(name, table): value for name, value in tensors.items()}
