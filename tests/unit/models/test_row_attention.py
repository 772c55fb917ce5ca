"""Row attention and folded cross-attention: oracle, laws, gradients, golden values, errors."""

import math
import re

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mvczigal_ref.models.row_attention import (
    FoldedCrossAttnProcessor,
    RowSelfAttnProcessor,
    install_row_attention,
    is_row_attention,
    token_grid,
)
from tests.compare import FP64, assert_equal_to
from tests.golden import constants, tensors
from tests.unannotated import without_shape_checks
from tests.unit.models.small import fresh_components, randn

OBJECTS, VIEWS, HEIGHT, COLUMNS, HEADS, WIDTH = 2, 3, 2, 4, 2, 6
GRIDS = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))


def self_attention(width: int = WIDTH, heads: int = HEADS, seed: int = 0) -> Attention:
    """Build a layer whose row attention differs from its own projections."""
    layer = Attention(query_dim=width, heads=heads, dim_head=width // heads).double()
    layer.set_processor(RowSelfAttnProcessor(layer))
    randomise(layer, seed)
    return layer


def cross_attention(width: int = WIDTH, context: int = 5, seed: int = 0) -> Attention:
    """Build a layer that reads a context."""
    layer = Attention(
        query_dim=width, cross_attention_dim=context, heads=HEADS, dim_head=width // HEADS
    ).double()
    layer.set_processor(FoldedCrossAttnProcessor())
    randomise(layer, seed)
    return layer


def randomise(layer: nn.Module, seed: int) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed + index) / math.sqrt(WIDTH))


def attend(layer: Attention, x: Tensor, views=VIEWS, grid=(HEIGHT, COLUMNS), scale=1.0) -> Tensor:
    return layer(x, num_views=views, latent_size=grid, mv_scale=scale)


def tokens(objects=OBJECTS, views=VIEWS, grid=(HEIGHT, COLUMNS), width=WIDTH, seed=0) -> Tensor:
    return randn(objects * views, grid[0] * grid[1], width, seed=seed)


# -- oracle: one token at a time, in plain Python floats ---------------------------------


def matvec(linear: nn.Linear, vector: list[float]) -> list[float]:
    rows = linear.weight.tolist()
    bias = [0.0] * len(rows) if linear.bias is None else linear.bias.tolist()
    return [
        sum(w * v for w, v in zip(r, vector, strict=True)) + b
        for r, b in zip(rows, bias, strict=True)
    ]


def one_token(query: list[float], seen: list[list[float]], parts, heads: int) -> list[float]:
    """Attend one token to the tokens it sees, head by head."""
    to_q, to_k, to_v, to_out = parts
    q, size = matvec(to_q, query), len(query) // heads
    keys, values = [matvec(to_k, s) for s in seen], [matvec(to_v, s) for s in seen]
    joined = []
    for head in range(heads):
        span = range(head * size, (head + 1) * size)
        scores = [math.exp(sum(q[i] * k[i] for i in span) / math.sqrt(size)) for k in keys]
        total = sum(scores)
        joined += [sum(s * v[i] for s, v in zip(scores, values, strict=True)) / total for i in span]
    return matvec(to_out, joined)


def oracle(layer: Attention, x: Tensor, views: int, grid: tuple[int, int], scale: float) -> Tensor:
    """Transcribe the sum of both attentions for every token."""
    mv = layer.processor
    own = (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0])
    across = (mv.to_q_mv, mv.to_k_mv, mv.to_v_mv, mv.to_out_mv[0])
    values, out = x.tolist(), []
    for row, view in enumerate(values):
        first = row - row % views
        out.append([])
        for token, query in enumerate(view):
            line = token // grid[1]
            in_line = range(line * grid[1], (line + 1) * grid[1])
            seen = [values[first + v][i] for v in range(views) for i in in_line]
            a = one_token(query, view, own, layer.heads)
            b = one_token(query, seen, across, layer.heads)
            out[-1].append([p + scale * q for p, q in zip(a, b, strict=True)])
    return torch.tensor(out, dtype=torch.float64)


@given(GRIDS, st.sampled_from([1.0, 0.3, -2.0]))
def test_equals_the_definition_token_by_token(sizes, scale):
    """A token sees its own view, and its row in every view of its object."""
    objects, views, *grid = sizes
    layer, x = self_attention(), tokens(objects, views, grid)

    expected = oracle(layer, x, views, tuple(grid), scale)
    assert_equal_to(attend(layer, x, views, tuple(grid), scale), expected, FP64, axes=2)


# -- laws --------------------------------------------------------------------------------


def test_objects_do_not_see_each_other():
    """Permuting the objects permutes the output."""
    layer, x = self_attention(), tokens()
    y = attend(layer, x).unflatten(0, (OBJECTS, VIEWS)).flip(0).flatten(0, 1)

    swapped = x.unflatten(0, (OBJECTS, VIEWS)).flip(0).flatten(0, 1)
    assert_equal_to(attend(layer, swapped), y, FP64, axes=2)


@given(st.permutations(range(VIEWS)))
def test_views_have_no_order(order):
    """Permuting the views of every object permutes the output."""
    layer, x = self_attention(), tokens()
    y = attend(layer, x).unflatten(0, (OBJECTS, VIEWS))[:, order]

    permuted = x.unflatten(0, (OBJECTS, VIEWS))[:, order].flatten(0, 1)
    assert_equal_to(attend(layer, permuted), y.flatten(0, 1), FP64, axes=2)


def test_other_views_notice_a_change_in_the_same_row_alone():
    """A row of one view reaches that row of the object's other views, and nothing else of them."""
    layer, x = self_attention(), tokens()
    changed = x.clone()
    changed[0, COLUMNS] += 1.0  # view 0, row 1, column 0

    same = attend(layer, x) == attend(layer, changed)
    same = same.all(-1).view(OBJECTS, VIEWS, HEIGHT, COLUMNS)
    assert same[1].all()
    assert same[0, 1:, 0].all()
    assert not same[0, 1:, 1].any()
    assert not same[0, 0].any()


def test_scale_0_is_the_plain_self_attention():
    """Without its weight, row attention leaves diffusers' own result, bit for bit."""
    layer, x = self_attention(), tokens()
    plain = AttnProcessor2_0()(layer, x)

    assert torch.equal(attend(layer, x, scale=0.0), plain)


def test_at_scale_0_row_attention_is_not_computed(monkeypatch):
    """What is not added costs nothing."""
    calls = counted_attention(monkeypatch)
    attend(self_attention(), tokens(), scale=0.0)

    assert len(calls) == 1


@given(st.floats(-3.0, 3.0))
def test_output_is_affine_in_the_scale(scale):
    """The weight multiplies the row attention alone."""
    layer, x = self_attention(), tokens()
    zero, one = attend(layer, x, scale=0.0), attend(layer, x)

    assert_equal_to(attend(layer, x, scale=scale), zero + scale * (one - zero), FP64, axes=2)


def test_new_projections_start_as_copies_of_the_layer_s_own():
    """Equal at first, and free to differ."""
    layer = Attention(query_dim=WIDTH, heads=HEADS, dim_head=WIDTH // HEADS)
    processor = RowSelfAttnProcessor(layer)
    pairs = [
        (processor.to_q_mv, layer.to_q),
        (processor.to_k_mv, layer.to_k),
        (processor.to_v_mv, layer.to_v),
        (processor.to_out_mv[0], layer.to_out[0]),
    ]

    for new, own in pairs:
        assert torch.equal(new.weight, own.weight)
        assert new.weight.data_ptr() != own.weight.data_ptr()
        assert (new.bias is None) == (own.bias is None)
    assert torch.equal(processor.to_out_mv[0].bias, layer.to_out[0].bias)
    assert layer.to_q.bias is None
    assert all(parameter.requires_grad for parameter in processor.parameters())


def counted_attention(monkeypatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Record what scaled-dot-product attention is called with."""
    calls, real = [], functional.scaled_dot_product_attention

    def recorded(query, key, value, **options):
        calls.append((query, key, value))
        return real(query, key, value, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", recorded)
    return calls


def test_keys_and_values_are_not_repeated(monkeypatch):
    """Both attentions read each token's key and value once."""
    calls, x = counted_attention(monkeypatch), tokens()
    attend(self_attention(), x)

    assert len(calls) == 2
    assert [t.numel() for call in calls for t in call] == [x.numel()] * 6
    # Once over a view's tokens, once over a row's tokens of all views.
    assert [key.shape[-2] for _, key, _ in calls] == [HEIGHT * COLUMNS, VIEWS * COLUMNS]


def test_context_is_projected_once_an_object(monkeypatch):
    """Folding the views into the queries leaves one key a word and object."""
    calls, context = counted_attention(monkeypatch), randn(OBJECTS, 7, 5, seed=9)
    cross_attention()(tokens(), encoder_hidden_states=context)

    ((query, key, value),) = calls
    assert key.numel() == value.numel() == OBJECTS * 7 * WIDTH
    assert query.numel() == tokens().numel()


@given(st.integers(1, 3), st.integers(1, 4))
def test_context_by_object_equals_the_context_repeated_by_row(objects, views):
    """Rows of one object share their prompt."""
    layer, x = cross_attention(), tokens(objects, views)
    context = randn(objects, 7, 5, seed=9)
    by_row = AttnProcessor2_0()(layer, x, context.repeat_interleave(views, 0))

    assert_equal_to(layer(x, encoder_hidden_states=context), by_row, FP64, axes=2)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 4))
def test_token_grid_is_the_latent_halved(height, width, times):
    """Each level of the network halves both sides, rounding up."""
    grid = height, width
    for _ in range(times):
        grid = math.ceil(grid[0] / 2), math.ceil(grid[1] / 2)

    assert token_grid((height, width), grid[0] * grid[1]) == grid


def test_every_attention_of_a_unet_gets_its_processor():
    """Self-attention looks along rows, cross-attention folds."""
    unet = fresh_components().policy.unet
    kinds = {name: type(processor) for name, processor in unet.attn_processors.items()}

    assert len(kinds) == 14
    for name, kind in kinds.items():
        assert kind is (RowSelfAttnProcessor if "attn1" in name else FoldedCrossAttnProcessor)
    named = [name for name in unet.state_dict() if is_row_attention(name)]
    assert len(named) == 7 * 5
    install_row_attention(unet)
    assert [name for name in unet.state_dict() if is_row_attention(name)] == named


# -- gradients ---------------------------------------------------------------------------


def test_gradient_is_the_derivative():
    """Through tokens and every projection."""
    layer, x = self_attention(), tokens(1, 2, (2, 2))

    def run(tokens_in, *parameters):
        names = [name for name, _ in layer.named_parameters()]
        swapped = dict(zip(names, parameters, strict=True))
        options = {"num_views": 2, "latent_size": (2, 2), "mv_scale": 0.7}
        return torch.func.functional_call(layer, swapped, (tokens_in,), options)

    inputs = [x, *(p.detach().clone() for p in layer.parameters())]
    assert torch.autograd.gradcheck(run, [i.requires_grad_() for i in inputs])


# -- golden parity -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mvrow_attention_a", "mvrow_attention_b"])
def test_golden_row_attention(name):
    """The released processor's output, without its weight too, and every gradient."""
    recorded, known = tensors("models", name), constants("models", name)
    layer = self_attention(known["dim"], known["heads"])
    weights = {k.removeprefix("w."): v for k, v in recorded.items() if k.startswith("w.")}
    layer.load_state_dict(weights)
    x = recorded["x"].requires_grad_()
    grid = known["height"], known["width"]
    y = attend(layer, x, known["num_views"], grid, known["mv_scale"])
    (y * recorded["gy"]).sum().backward()

    assert_equal_to(y, recorded["y"], FP64, axes=2)
    plain = attend(layer, x, known["num_views"], grid, 0.0)
    assert_equal_to(plain, recorded["y_mv_scale0"], FP64, axes=2)
    assert_equal_to(x.grad, recorded["gx"], FP64, axes=2)
    found = {f"gw.{k}": p.grad for k, p in layer.named_parameters()}
    assert set(found) == {k for k in recorded if k.startswith("gw.")}
    for key, gradient in found.items():
        assert_equal_to(gradient, recorded[key], FP64, axes=gradient.ndim)


def test_golden_cross_attention():
    """The released processor with its multi-view part off, one context a row."""
    recorded, known = (
        tensors("models", "mvrow_attention_cross"),
        constants("models", "mvrow_attention_cross"),
    )
    layer = Attention(
        query_dim=known["dim"],
        cross_attention_dim=known["cross_attention_dim"],
        heads=known["heads"],
        dim_head=known["dim"] // known["heads"],
        processor=FoldedCrossAttnProcessor(),
    ).double()
    layer.load_state_dict(
        {k.removeprefix("w."): v for k, v in recorded.items() if k.startswith("w.")}
    )

    y = layer(recorded["x"], encoder_hidden_states=recorded["encoder_hidden_states"])
    assert_equal_to(y, recorded["y"], FP64, axes=2)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [0, 4, 5])
def test_rejects_views_that_do_not_divide_the_rows(views):
    """Six rows are not four views."""
    with pytest.raises(ValueError, match=rf"`num_views` must divide the 6 rows; got {views}"):
        attend(self_attention(), tokens(), views=views)


def test_rejects_a_latent_that_does_not_halve_to_the_tokens():
    """A grid guessed wrong would mix rows."""
    message = re.escape("`latent_size` must halve to the layer's tokens; got (3, 5) for 8 tokens.")
    with pytest.raises(ValueError, match=message):
        attend(self_attention(), tokens(), grid=(3, 5))


@pytest.mark.parametrize("argument", ["encoder_hidden_states", "attention_mask"])
def test_rejects_a_context_in_self_attention(argument):
    """Row attention has no context, and no mask."""
    layer, x = self_attention(), tokens()
    with pytest.raises(
        ValueError, match="`encoder_hidden_states` and `attention_mask` must be None"
    ):
        layer.processor(layer, x, **{argument: x}, num_views=VIEWS, latent_size=(HEIGHT, COLUMNS))


@pytest.mark.parametrize(
    "option",
    [
        {"norm_num_groups": 2},
        {"residual_connection": True},
        {"rescale_output_factor": 2.0},
        {"qk_norm": "layer_norm"},
        {"spatial_norm_dim": 4},
    ],
    ids=lambda option: next(iter(option)),
)
def test_rejects_a_layer_that_does_more_than_attend(option):
    """The sum of two attentions would count the rest twice."""
    layer = Attention(query_dim=32, heads=2, dim_head=16, **option)
    with pytest.raises(ValueError, match="`attn` must be a transformer block's self-attention"):
        RowSelfAttnProcessor(layer)


def test_rejects_a_context_that_fits_no_object():
    """Six rows cannot share four contexts, and a mask is by row."""
    layer, message = cross_attention(), "`encoder_hidden_states` must hold one unmasked context"
    with pytest.raises(ValueError, match=message):
        layer(tokens(), encoder_hidden_states=randn(4, 7, 5))
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        layer.processor(layer, tokens(), randn(2, 7, 5), randn(2, 7))
