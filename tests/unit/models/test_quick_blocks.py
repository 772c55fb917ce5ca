"""`quick_blocks` and `flow.attention`: diffusers' blocks are the oracle."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor

from mvczigal_ref.models.flow.attention import QuickFluxAttention
from mvczigal_ref.models.memo import memo_scope
from mvczigal_ref.models.projections import install_merged_linears
from mvczigal_ref.models.quick_blocks import QuickResnet, QuickTransformer
from mvczigal_ref.models.row_attention import DirectAttention
from tests.unit.models.quick import outcome, quickened, same
from tests.unit.models.small import randn

SEEN = []


@pytest.fixture(autouse=True)
def own_generator():
    """Draw weights without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def resnet(**options):
    """Build a residual block of a UNet."""
    sizes = {"in_channels": 8, "out_channels": 16, "temb_channels": 12, "groups": 4}
    return ResnetBlock2D(**sizes | options).eval()


# -- oracle -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"out_channels": 8}, {"temb_channels": None}])
def test_a_residual_block_has_diffusers_bits(options):
    """Values and gradients, with and without a shortcut's convolution and a time embedding."""
    block = resnet(**options)
    time = None if "temb_channels" in options else randn(2, 12, seed=2).float()
    given = randn(2, 8, 4, 4, seed=1).float(), time
    quick = quickened(block)
    assert type(quick) is QuickResnet
    with memo_scope():
        assert same(outcome(quick, *given), outcome(block, *given))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_transformer_has_diffusers_values(linear, layout):
    """To the bit; the channels stay last where they were."""
    block = Transformer2DModel(
        2, 4, in_channels=8, norm_num_groups=4, use_linear_projection=linear
    ).eval()
    given = randn(2, 8, 4, 4, seed=1).float().contiguous(memory_format=layout)
    quick = quickened(block)
    assert type(quick) is QuickTransformer
    with torch.no_grad():
        output = quick(given, return_dict=False)[0]
        assert torch.equal(output, block(given, return_dict=False)[0])
    assert output.is_contiguous(memory_format=layout) or not linear


@pytest.mark.parametrize("text", [True, False], ids=["two streams", "one stream"])
def test_flux_attention_is_diffusers_but_for_rounding(text):
    """Values and gradients to 1e-5 of the largest; positions turn queries and keys."""
    more = {"added_kv_proj_dim": 16} if text else {"pre_only": True}
    block = FluxAttention(16, heads=2, dim_head=8, out_dim=16, bias=True, **more)
    angles = randn(5 + 3 * text, 4, seed=2).float().repeat_interleave(2, 1)
    given = {"image_rotary_emb": (angles.cos(), angles.sin())}
    if text:
        given["encoder_hidden_states"] = randn(2, 3, 16, seed=3).float()
    quick = quickened(block)
    assert type(quick) is QuickFluxAttention
    frozen = quickened(block).requires_grad_(requires_grad=False)
    install_merged_linears(frozen)
    tokens = randn(2, 5, 16, seed=1).float()
    expected = outcome(block, tokens, **given)
    count = 3 if text else 2  # outputs, and the gradient of the tokens
    for ours in (outcome(quick, tokens, **given), outcome(frozen, tokens, **given)[:count]):
        for value, other in zip(ours, expected, strict=False):
            assert (value - other).abs().max() <= 1e-5 * other.abs().max()


# -- laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"output_scale_factor": 2.0}, {"time_embedding_norm": "scale_shift"}, {"up": True},
     {"skip_time_act": True}, {"non_linearity": "gelu"}],
    ids=str,
)  # fmt: skip
def test_another_kind_of_residual_block_stays_as_it_is(options):
    """Each does something else."""
    assert type(quickened(resnet(**options))) is ResnetBlock2D


def test_dropout_is_diffusers_in_training():
    """The quick form knows none."""
    block = resnet(dropout=0.5).train()
    quick = quickened(block)
    given = randn(2, 8, 4, 4, seed=1).float(), randn(2, 12, seed=2).float()
    outputs = []
    for each in (block, quick):
        torch.default_generator.manual_seed(1)
        outputs.append(each(*given))
    assert torch.equal(*outputs)


def test_a_time_embedding_that_trains_gets_its_gradient():
    """Calls that share values share none of it."""
    quick, leaf = quickened(resnet()), randn(2, 12, seed=2).float().requires_grad_()
    with memo_scope():
        quick(randn(2, 8, 4, 4, seed=1).float(), leaf).sum().backward()
    assert leaf.grad.abs().max() > 0.0


def test_other_processors_are_diffusers():
    """Of either attention."""
    layer = Attention(8, heads=2, dim_head=4, processor=AttnProcessor2_0())
    tokens = randn(2, 5, 8, seed=1).float()
    expected = layer(tokens)
    layer.__class__ = DirectAttention
    assert torch.equal(layer(tokens), expected)

    class Noting(FluxAttnProcessor):
        def __call__(self, *given, **more):
            SEEN.append(1)
            return super().__call__(*given, **more)

    flux = FluxAttention(8, heads=2, dim_head=4, pre_only=True, processor=Noting())
    assert torch.equal(quickened(flux)(tokens), flux(tokens))
    assert SEEN == [1, 1]
