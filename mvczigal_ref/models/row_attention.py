"""Row attention: every view's tokens look along their own row in all views.

An attention processor for diffusers' UNets, and one for their cross-attention
that reads each prompt once per object. Knows nothing of the pipeline around.
"""

from functools import partial
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mvczigal_ref.models.projections import project

__all__ = [
    "DirectAttention",
    "FoldedCrossAttnProcessor",
    "RowSelfAttnProcessor",
    "install_row_attention",
    "is_row_attention",
    "token_grid",
]

Tokens = Float[Tensor, "row token width"]
ByHead = Float[Tensor, "row head _ channel"]


def token_grid(latent_size: tuple[int, int], num_tokens: int) -> tuple[int, int]:
    """Find the height and width of a layer's token grid from the latent's.

    The UNet halves both sides a few times, rounding up, so the grid is the
    first halving with the right number of tokens.

    Source:
        The stride-2 convolutions with padding 1 of SDXL's down blocks.

    Args:
        latent_size: Height and width of the latent [px].
        num_tokens: Tokens that the layer sees.

    Returns:
        Height and width of the grid [tokens].

    Raises:
        ValueError: If no halving of ``latent_size`` has ``num_tokens`` tokens.

    Examples:
        >>> token_grid((12, 8), 24)
        (6, 4)
    """
    height, width = latent_size
    while height * width > num_tokens and height * width > 1:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != num_tokens:
        msg = (
            f"`latent_size` must halve to the layer's tokens; got {latent_size} for {num_tokens} "
            "tokens. Give the height and width of the latents that entered the network."
        )
        raise ValueError(msg)
    return height, width


class RowSelfAttnProcessor(nn.Module):
    r"""Self-attention within a view, plus attention along a row through all views.

    .. math::

        y = W_o\,\mathrm{attn}(x) + s\,W_o^{mv}\,\mathrm{attn}_{row}(x)

    where in :math:`\mathrm{attn}_{row}` the token in row r of one view sees
    row r of every view of its object, and s is ``mv_scale``.

    Source:
        Huang et al., MV-Adapter, arXiv:2412.03632 (decoupled attention,
        row-wise). Views are folded into the sequence, so keys and values are
        used in place where the released code repeats them once per view; the
        values are the same.

    Args:
        attn: Layer of the processor. Its own projections are the initial ones.
        device: Device of the weights; on "meta" they have no values. That of the layer's if None.

    Raises:
        ValueError: If the layer normalises, rescales or adds a residual, which
            the sum above does not allow.
    """

    def __init__(self, attn: Attention, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        plain = (
            attn.group_norm is None
            and attn.spatial_norm is None
            and attn.norm_q is None
            and attn.norm_k is None
            and not attn.residual_connection
            and attn.rescale_output_factor == 1.0
        )
        if not plain:
            msg = (
                "`attn` must be a transformer block's self-attention, without norms, residual or "
                f"rescaling of its own; got {attn}. Choose the layers named attn1."
            )
            raise ValueError(msg)
        # Linear layers are rebuilt, not deep-copied: hooks and wrappers stay with the layer.
        self.to_q_mv = _copy_linear(attn.to_q, device)
        self.to_k_mv = _copy_linear(attn.to_k, device)
        self.to_v_mv = _copy_linear(attn.to_v, device)
        out = cast("nn.ModuleList", attn.to_out)
        self.to_out_mv = nn.ModuleList([_copy_linear(out[0], device), nn.Dropout(0.0)])

    # `Attention` calls the processor and reads this signature to choose arguments, hence no
    # `forward`.
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tokens,
        encoder_hidden_states: Tokens | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        num_views: int,
        latent_size: tuple[int, int],
        mv_scale: float = 1.0,
    ) -> Tokens:
        """Attend within and across views.

        Args:
            attn: The layer that holds the within-view projections.
            hidden_states: Tokens of every row, row-major in the image [1].
            encoder_hidden_states: Must be None: this is self-attention.
            attention_mask: Must be None: every token sees its whole row.
            temb: Time embedding; not read.
            num_views: Views of one object; divides the rows.
            latent_size: Height and width of the network's input [px].
            mv_scale: Weight of the row attention [1]; at 0 it is not computed.

        Returns:
            The attended tokens.

        Raises:
            ValueError: If ``num_views`` does not divide the rows, or an
                argument that must be None is not.
        """
        if encoder_hidden_states is not None or attention_mask is not None:
            msg = (
                "`encoder_hidden_states` and `attention_mask` must be None in row attention; got "
                "one. Install the processor on self-attention layers."
            )
            raise ValueError(msg)
        rows, tokens, width = hidden_states.shape
        if num_views < 1 or rows % num_views:
            msg = f"`num_views` must divide the {rows} rows; got {num_views}."
            raise ValueError(msg)
        del temb
        heads = attn.heads
        within = _attended(*project(hidden_states, attn.to_q, attn.to_k, attn.to_v, heads=heads))
        within = _put_out(within, cast("nn.ModuleList", attn.to_out))
        if mv_scale == 0.0:
            return within
        height, columns = token_grid(latent_size, tokens)
        objects = rows // num_views
        # (object view row column) -> (object row, view column): one copy here spares three after
        # the projections.
        folded = (
            hidden_states.view(objects, num_views, height, columns, width)
            .transpose(1, 2)
            .reshape(objects * height, num_views * columns, width)
        )
        across = _attended(*project(folded, self.to_q_mv, self.to_k_mv, self.to_v_mv, heads=heads))
        across = _put_out(across, self.to_out_mv)
        across = (
            across.view(objects, height, num_views, columns, -1)
            .transpose(1, 2)
            .reshape(rows, tokens, -1)
        )
        return torch.add(within, across, alpha=mv_scale)


class FoldedCrossAttnProcessor(AttnProcessor2_0):
    """diffusers' cross-attention, with the context given once per object.

    The rows of one object are laid end to end into one query sequence, so the
    context is projected once per object and never repeated per view. A
    context with one entry per row is attended as it is.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tokens,
        encoder_hidden_states: Float[Tensor, "context word context_width"],
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        num_views: int | None = None,
        latent_size: tuple[int, int] | None = None,
        mv_scale: float | None = None,
    ) -> Tokens:
        """Attend every row to its object's context.

        Args:
            attn: The layer that holds the projections.
            hidden_states: Tokens of every row [1].
            encoder_hidden_states: Context of every object, or of every row [1].
            attention_mask: Must be None when the context is given by object.
            temb: Time embedding, passed on.
            num_views: Ignored: accepted because all layers get one set of arguments.
            latent_size: Ignored, likewise.
            mv_scale: Ignored, likewise.

        Returns:
            The attended tokens.

        Raises:
            ValueError: If the objects do not divide the rows, or a mask comes
                with a context by object.
        """
        del num_views, latent_size, mv_scale
        rows, tokens, width = hidden_states.shape
        objects = encoder_hidden_states.shape[0]
        if objects == rows:
            attended = super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
            return cast("Tensor", attended)
        if rows % objects or attention_mask is not None:
            msg = (
                f"`encoder_hidden_states` must hold one unmasked context per object; got {objects} "
                f"for {rows} rows. Give one context per object, the views of an object adjacent."
            )
            raise ValueError(msg)
        folded = hidden_states.reshape(objects, rows // objects * tokens, width)
        (query,) = project(folded, attn.to_q, heads=attn.heads)
        attended = _attended(
            query,
            *project(encoder_hidden_states, attn.to_k, attn.to_v, heads=attn.heads, again=True),
        )
        attended = _put_out(attended, cast("nn.ModuleList", attn.to_out))
        return attended.view(rows, tokens, -1)


class DirectAttention(Attention):
    """diffusers' attention layer; it calls the processors of this module with all arguments.

    diffusers reads the signature of its processor in every call, a twentieth of a small network's
    seconds.
    """

    def forward(
        self,
        hidden_states: Tokens,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,  # noqa: ANN401 - diffusers'
    ) -> Tokens:
        """Attend as the processor does."""
        ask: Any = super().forward
        if isinstance(self.processor, RowSelfAttnProcessor | FoldedCrossAttnProcessor):
            ask = partial(self.processor, self)
        attended: Tensor = ask(hidden_states, encoder_hidden_states, attention_mask, **options)
        return attended


def install_row_attention(
    unet: UNet2DConditionModel, *, device: torch.device | str | None = None
) -> None:
    """Give every self-attention layer row attention, every cross-attention layer folding.

    Args:
        unet: Changed in place. The new weights start as copies of each layer's
            own projections.
        device: Device of the new weights; on "meta" they have no values. That of each layer's own
            if None.
    """
    processors: dict[str, nn.Module | AttnProcessor2_0] = {}
    for name in unet.attn_processors:
        layer = unet.get_submodule(name.removesuffix(".processor"))
        if type(layer) is Attention:
            layer.__class__ = DirectAttention
        processors[name] = (
            FoldedCrossAttnProcessor()
            if layer.is_cross_attention
            else RowSelfAttnProcessor(cast("Attention", layer), device=device)
        )
    unet.set_attn_processor(processors)


def is_row_attention(name: str) -> bool:
    """Tell row attention's tensors from the plain UNet's by their name.

    Args:
        name: In the UNet's state dict.

    Returns:
        Whether row attention owns the tensor.

    Examples:
        >>> is_row_attention("mid_block.attentions.0.attn1.processor.to_q_mv.weight")
        True
    """
    return "_mv." in name


def _attended(query: ByHead, key: ByHead, value: ByHead) -> Tokens:
    """Let queries attend to keys and values, head by head."""
    attended = functional.scaled_dot_product_attention(query, key, value)
    return attended.transpose(1, 2).flatten(-2)


def _put_out(attended: Tokens, layers: nn.ModuleList) -> Tokens:
    """Apply a layer's last projection, and its dropout in training."""
    projected: Tensor = layers[0](attended)
    return layers[1](projected) if layers[1].training else projected


def _copy_linear(source: nn.Module, device: torch.device | str | None) -> nn.Linear:
    """Build an independent linear layer with the same values."""
    linear = cast("nn.Linear", source)

    def copied(value: Tensor) -> nn.Parameter:
        if device is not None and torch.device(device).type == "meta":  # of few bits too
            return nn.Parameter(torch.empty(value.shape, dtype=value.dtype, device="meta"))
        return nn.Parameter(value.detach().to(device or value.device, copy=True))

    with torch.no_grad():
        copy = nn.Linear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            device="meta",
        )
        # `assign` by parameter: nothing is drawn from the global generator.
        copy.weight = copied(linear.weight)
        if linear.bias is not None:
            copy.bias = copied(linear.bias)
    return copy
