"""HyperScore's network: CLIP, four learned prompts, and a head whose weights a network computes.

CLIP's towers may run in half precision; the layers after them keep the head's precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.reward.openai_clip import from_openai, to_openai
from mvczigal_ref.reward.weights import build_network

__all__ = [
    "AXES",
    "Conditions",
    "HyperScoreNetwork",
    "HyperScoreSize",
    "build_hyperscore",
    "from_published",
    "to_published",
]

AXES = ("alignment", "geometry", "texture", "overall")
"""Axes of the judgement, in the order of the published model."""

_CONTEXT_TOKENS = 12
# A learned prompt reads "<start> NAME quality <12 learned> . <end>"; each name is one token.
_CLASS_TOKENS = 2
_END = 1 + _CLASS_TOKENS + _CONTEXT_TOKENS + 1
# The target network's widths, and the image-like feature from which its weights are computed.
_WIDTHS = (224, 112, 56, 28, 1)
_FEATURE = (112, 7, 7)
# The published file holds the text tower twice.
_CLIP, _TOWER, _ALIAS = "clip.", "clip_model.", "text_encoder."


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperScoreSize:
    """Widths and depths of CLIP; the defaults are the published ones (ViT-B/16)."""

    vision_width: int = 768
    vision_layers: int = 12
    patch_size: int = 16
    image_size: int = 224
    text_width: int = 512
    text_layers: int = 12
    embed_dim: int = 512
    vocab_size: int = 49_408
    context_length: int = 77


class Conditions(NamedTuple):
    """Features and weights of each axis, which depend on the checkpoint alone."""

    features: Float[Tensor, "axis embed"]
    """Text features of the learned prompts, one row per axis."""

    layers: list[tuple[Float[Tensor, "axis out into"], Float[Tensor, "axis out"]]]
    """Weight and bias of each layer of the axes' target networks."""


class HyperScoreNetwork(nn.Module):
    """Network from images and token ids to four opinion scores.

    Source:
        Zhang et al., arXiv:2412.11170, section 4, and its released code.

    Args:
        size: Widths and depths.
    """

    def __init__(self, size: HyperScoreSize) -> None:
        super().__init__()
        self.size = size
        self.clip = CLIPModel(_clip_config(size))
        self.prompt_learner = _LearnedPrompts(size)
        self.fc_quality = nn.Linear(size.embed_dim, _WIDTHS[0])
        self.fc_condition = nn.Linear(size.embed_dim, torch.Size(_FEATURE).numel())
        self.hypernet = _HyperNetwork()

    def encode_images(
        self, pixels: Float[Tensor, "row 3 size size"]
    ) -> Float[Tensor, "row patch embed"]:
        """Return every patch's projected feature, without the class token."""
        hidden = self.clip.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
        patches: Tensor = self.clip.visual_projection(self.clip.vision_model.post_layernorm(hidden))
        return patches

    def encode_text(
        self, ids: Int[Tensor, "text token"]
    ) -> tuple[Float[Tensor, "text token embed"], Float[Tensor, "text embed"]]:
        """Return every token's projected feature, also of padding, and the end token's."""
        features = self._text_features(self.clip.text_model.embeddings.token_embedding(ids))
        # The end token has the largest id.
        return features, features[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]

    def conditions(self) -> Conditions:
        """Encode the learned prompts and compute the target network of each axis."""
        features = self._text_features(self.prompt_learner())[:, _END]
        features = features.to(self.fc_condition.weight.dtype)
        return Conditions(
            features, self.hypernet(self.fc_condition(features).unflatten(-1, _FEATURE))
        )

    def forward(
        self,
        patches: Float[Tensor, "object patch embed"],
        tokens: Float[Tensor, "object token embed"],
        end: Float[Tensor, "object embed"],
        conditions: Conditions,
    ) -> Float[Tensor, "object axis"]:
        r"""Weight the patches of all views by axis and prompt, fuse them, and score.

        .. math::

            w_{aj} = \mathrm{softmax}_j \sum_t \cos(p_t, x_j) \cos(p_t, c_a), \qquad
            s_a = f_a\Big(W \Big(e \odot \sum_j w_{aj} x_j\Big) + b\Big)

        over patches :math:`x`, the prompt's tokens :math:`p` with end token :math:`e`, the
        axis's learned prompt :math:`c_a`, and the target network :math:`f_a`.

        Args:
            patches: Features of the patches of all views of an object, in any order.
            tokens: Features of the prompt's tokens.
            end: Feature of the prompt's end token.
            conditions: From :meth:`conditions`.

        Returns:
            Opinion scores, one per object and axis.
        """
        dtype = self.fc_quality.weight.dtype
        patches, tokens, end = patches.to(dtype), tokens.to(dtype), end.to(dtype)
        words = normalize(tokens, dim=-1)
        # Summed over tokens before the product with the patches: the same, in less memory.
        agreement = words @ normalize(conditions.features, dim=-1).T
        asked = agreement.mT @ words
        weight = (asked @ normalize(patches, dim=-1).mT).softmax(dim=-1)
        hidden: Tensor = self.fc_quality((weight @ patches) * end[:, None])
        for depth, (matrix, bias) in enumerate(conditions.layers):
            hidden = torch.einsum("bai,aoi->bao", hidden.relu() if depth else hidden, matrix) + bias
        return hidden.squeeze(-1)

    def _text_features(
        self, embedded: Float[Tensor, "text token width"]
    ) -> Float[Tensor, "text token embed"]:
        tower = self.clip.text_model
        hidden = tower.embeddings(inputs_embeds=embedded)
        length = hidden.shape[1]
        later = hidden.new_full((1, 1, length, length), -torch.inf).triu(1)
        hidden = tower.encoder(inputs_embeds=hidden, attention_mask=later).last_hidden_state
        features: Tensor = self.clip.text_projection(tower.final_layer_norm(hidden))
        return features


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of the network to the published names.

    Args:
        state: Tensors by this module's names, on any device, the meta device too.

    Returns:
        Tensors by the published names; the text tower's appear twice, as they are stored.
    """
    held = [name for name in state if name.startswith(_CLIP)]
    renamed = to_openai({name.removeprefix(_CLIP): state[name] for name in held})
    rest = {name: value for name, value in state.items() if not name.startswith(_CLIP)}
    # The second copy of the text tower leaves the word embeddings out.
    twice = ("transformer.", "positional_embedding", "text_projection", "ln_final.")
    aliases = {_ALIAS + name: value for name, value in renamed.items() if name.startswith(twice)}
    return {_TOWER + name: value for name, value in renamed.items()} | rest | aliases


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published tensors to the network's names: the inverse of :func:`to_published`.

    Args:
        tensors: Tensors by the published names.

    Returns:
        Tensors by this module's names.
    """
    held = [name for name in tensors if name.startswith(_TOWER)]
    clip = {name.removeprefix(_TOWER): tensors[name] for name in held}
    rest = {name: value for name, value in tensors.items() if not name.startswith((_TOWER, _ALIAS))}
    return {_CLIP + name: value for name, value in from_openai(clip).items()} | rest


def build_hyperscore(
    tensors: Mapping[str, Tensor], *, size: HyperScoreSize, source: str
) -> HyperScoreNetwork:
    """Build the network from a published checkpoint's tensors.

    Args:
        tensors: All tensors, by the published names.
        size: Widths and depths of the network.
        source: Origin of the tensors, for the message.

    Returns:
        A frozen network in evaluation mode, fp32, on the CPU.

    Raises:
        CheckpointError: If a tensor is missing, left over or of another shape, or if the two
            copies of the text tower differ; each is named.
    """
    network = build_network(
        lambda: HyperScoreNetwork(size),
        tensors,
        source=source,
        dtype=torch.float32,
        to_published=to_published,
        from_published=from_published,
    )
    copies = {name: name.replace(_ALIAS, _TOWER) for name in tensors if name.startswith(_ALIAS)}
    unequal = [n for n, first in copies.items() if not torch.equal(tensors[n], tensors[first])]
    if unequal:
        msg = (
            f"`{source}` must hold two equal copies of the text tower; they differ in "
            f"{'; '.join(unequal)}. Fetch it again."
        )
        raise CheckpointError(msg)
    return network


class _LearnedPrompts(nn.Module):
    """Embedded prompts of the four axes, with the axis's name before the learned tokens."""

    def __init__(self, size: HyperScoreSize) -> None:
        super().__init__()
        rest = size.context_length - 1 - _CONTEXT_TOKENS
        self.ctx = nn.Parameter(torch.empty(len(AXES), _CONTEXT_TOKENS, size.text_width))
        self.token_prefix: Tensor
        self.token_suffix: Tensor
        self.register_buffer("token_prefix", torch.empty(len(AXES), 1, size.text_width))
        self.register_buffer("token_suffix", torch.empty(len(AXES), rest, size.text_width))

    def forward(self) -> Float[Tensor, "axis token width"]:
        name, rest = self.token_suffix[:, :_CLASS_TOKENS], self.token_suffix[:, _CLASS_TOKENS:]
        return torch.cat([self.token_prefix, name, self.ctx, rest], dim=1)


class _HyperNetwork(nn.Module):
    """Computes each axis's target network; modules have the published names."""

    def __init__(self) -> None:
        super().__init__()
        channels = _FEATURE[0]
        for number, (into, out) in enumerate(pairwise(_WIDTHS), start=1):
            if out > 1:
                # An output position holds one number per channel, hence the division.
                positions = _FEATURE[1] * _FEATURE[2]
                writer = nn.Conv2d(channels, into * out // positions, kernel_size=3, padding=1)
                self.add_module(f"fc{number}w_conv", writer)
            else:
                self.add_module(f"fc{number}w_fc", nn.Linear(channels, into))
            self.add_module(f"fc{number}b_fc", nn.Linear(channels, out))

    def forward(
        self, feature: Float[Tensor, "axis 112 7 7"]
    ) -> list[tuple[Float[Tensor, "axis out into"], Float[Tensor, "axis out"]]]:
        pooled = feature.mean(dim=(-2, -1))
        layers = []
        for number, (into, out) in enumerate(pairwise(_WIDTHS), start=1):
            kind, source = ("w_conv", feature) if out > 1 else ("w_fc", pooled)
            matrix = self.get_submodule(f"fc{number}{kind}")(source).reshape(-1, out, into)
            layers.append((matrix, self.get_submodule(f"fc{number}b_fc")(pooled)))
        return layers


def _clip_config(size: HyperScoreSize) -> CLIPConfig:
    def tower(width: int, layers: int) -> dict[str, int]:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            # CLIP's heads are 64 wide.
            "num_attention_heads": max(1, width // 64),
            "projection_dim": size.embed_dim,
        }

    # CLIP's last two tokens are its start and its end.
    ends = {"bos_token_id": size.vocab_size - 2, "eos_token_id": size.vocab_size - 1}
    text = {"vocab_size": size.vocab_size, "max_position_embeddings": size.context_length} | ends
    vision = {"patch_size": size.patch_size, "image_size": size.image_size}
    return CLIPConfig(
        text_config=tower(size.text_width, size.text_layers) | text,
        vision_config=tower(size.vision_width, size.vision_layers) | vision,
        projection_dim=size.embed_dim,
    )
