"""Layers of the same tokens as one product: names, memory, PEFT's switches, files."""

import copy

import pytest
import torch
from peft.tuners import lora
from torch import nn

from mvczigal_ref.models.lora import add_lora, lora_parameters
from mvczigal_ref.models.memo import memo_scope
from mvczigal_ref.models.projections import (
    MergedLinear,
    QuickLinear,
    install_merged_linears,
    project,
)
from tests.unit.models.small import conditioning, fresh_components, randn
from tests.unit.models.test_multiview_unet import SOME, latents, predict


def adapted(*, quick=True, alpha=6.0):
    """Build a policy with a LoRA away from zero, with or without merged layers."""
    policy = fresh_components().policy.float().requires_grad_(requires_grad=False)
    add_lora(policy.unet, rank=3, alpha=alpha, seed=0)
    with torch.no_grad():
        for index, parameter in enumerate(lora_parameters(policy.unet).values()):
            parameter.copy_(0.1 * randn(*parameter.shape, seed=index))
    if quick:
        install_merged_linears(policy.unet)
    return policy


def self_attention(policy):
    """Take a layer with all projections."""
    return policy.unet.mid_block.attentions[0].transformer_blocks[0].attn1


def gradients(policy):
    """Differentiate a number of a prediction by the LoRA."""
    output = policy(latents().float(), SOME, conditioning(), guidance_scale=7.0)
    output.square().mean().backward()
    return {name: p.grad for name, p in lora_parameters(policy.unet).items()}


def assigned(policy):
    """Put other tensors of the same values in the parameters' places."""
    values = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.load_state_dict(values, assign=True)
    return policy.requires_grad_(requires_grad=False)


# -- oracle: PEFT's own layers --------------------------------------------------------------


def test_prediction_and_gradients_are_pefts():
    """In fp32: values to 1e-5 of the largest, gradients to 1e-4 of the largest of each."""
    plain, quick = adapted(quick=False), adapted()
    x, given = latents().float(), conditioning()
    expected = predict(x, given, policy=plain)
    with torch.no_grad():
        assert (
            predict(x, given, policy=quick) - expected
        ).abs().max() < 1e-5 * expected.abs().max()
    ours, pefts = gradients(quick), gradients(plain)
    assert ours.keys() == pefts.keys()
    for name, gradient in pefts.items():
        assert (ours[name] - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


# -- laws -----------------------------------------------------------------------------------


def test_projections_share_one_memory_and_keep_their_names():
    """After the first call; values, shapes and names are those of before."""
    policy = adapted()
    before = {name: value.clone() for name, value in policy.unet.state_dict().items()}
    predict(latents().float(), conditioning(), policy=policy)
    after = policy.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    layer = self_attention(policy)
    memories = {
        projection.base_layer.weight.untyped_storage().data_ptr()
        for projection in (layer.to_q, layer.to_k, layer.to_v)
    }
    assert len(memories) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda policy: policy.double().float(),
        copy.deepcopy,
        lambda policy: (
            policy.load_state_dict(
                {n: v.clone() for n, v in policy.state_dict().items()}, assign=True
            )
            and policy
        ),
    ],
    ids=["cast", "copied", "assigned"],
)
def test_a_network_that_was_moved_predicts_the_same(change):
    """Weights that no longer share a memory are joined again."""
    policy = adapted()
    x, given = latents().float(), conditioning()
    expected = predict(x, given, policy=policy)
    assert torch.equal(predict(x, given, policy=change(policy)), expected)


def test_a_weight_changed_in_place_is_read():
    """After the projections share a memory."""
    policy = adapted()
    layer = self_attention(policy)
    tokens = randn(6, 4, layer.to_q.in_features, seed=0).float()
    first = project(tokens, layer.to_q, layer.to_k, layer.to_v, heads=1)
    with torch.no_grad():
        layer.to_k.base_layer.weight += 1.0
    second = project(tokens, layer.to_q, layer.to_k, layer.to_v, heads=1)
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, False, True]


@pytest.mark.parametrize("again", [False, True])
def test_calls_that_share_values_have_the_bits_of_others(again):
    """Sampling and replay, before and after a change in place, a swap and PEFT's switch."""
    policy = adapted()
    layer, factors = self_attention(policy), list(lora_parameters(policy.unet).values())
    tokens = randn(6, 4, layer.to_q.in_features, seed=0).float()

    def projected():
        parts = project(tokens, layer.to_q, layer.to_k, layer.to_v, heads=1, again=again)
        return torch.stack(parts).detach()

    def outcomes():
        yield projected()
        with torch.no_grad():
            yield projected()
            yield projected()
            for factor in factors:
                factor.mul_(2.0)
            yield projected()
            tokens.mul_(2.0)
            yield projected()
            policy.unet.disable_adapters()
            yield projected()
            policy.unet.enable_adapters()
            yield projected()
            for factor in factors:
                factor.data = factor.data / 2.0
            tokens.mul_(0.5)
            yield projected()

    plain = list(outcomes())
    with memo_scope():
        shared = list(outcomes())
    assert all(torch.equal(a, b) for a, b in zip(shared, plain, strict=True))
    assert len({float(value.sum()) for value in plain}) == 4


def test_pefts_switch_turns_the_update_off():
    """As the reference policy needs it."""
    policy, plain = adapted(), fresh_components().policy.float()
    policy.unet.disable_adapters()
    x, given = latents().float(), conditioning()
    expected = predict(x, given, policy=plain)
    torch.testing.assert_close(predict(x, given, policy=policy), expected, rtol=1e-4, atol=1e-5)


def test_layers_that_differ_are_called_one_by_one():
    """Two widths, and a layer with a hook, which its call runs."""
    tokens, seen = torch.ones(5, 2), []
    layers = [nn.Linear(2, 6).requires_grad_(requires_grad=False) for _ in range(3)]
    layers.append(nn.Linear(2, 4).requires_grad_(requires_grad=False))
    expected = [layer(tokens).unflatten(-1, (2, -1)).transpose(0, 1) for layer in layers]
    layers[0].register_forward_hook(lambda *given: seen.append(1))
    for output, value in zip(project(tokens, *layers, heads=2), expected, strict=True):
        assert torch.equal(output, value)
    assert seen == [1]


def test_weights_that_train_get_their_gradient():
    """Full fine-tuning: nothing is fused, and nothing is left out."""
    layer = nn.Linear(3, 2)
    install_merged_linears(holder := nn.Sequential(layer))
    assert isinstance(layer, QuickLinear)
    holder(torch.ones(4, 3)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((2, 3), 4.0))


def test_a_bias_that_trains_gets_its_gradient():
    """Also where its weight is frozen, alone and among projections that are one product."""
    layer = QuickLinear(4, 4)
    layer.weight.requires_grad_(requires_grad=False)
    tokens = randn(2, 4, seed=0).float()

    layer(tokens).sum().backward()
    assert layer.bias.grad.tolist() == [2.0] * 4
    layer.bias.grad = None
    project(tokens, layer, heads=1)[0].sum().backward()
    assert layer.bias.grad.tolist() == [2.0] * 4


@pytest.mark.parametrize("setting", [{"lora_dropout": 0.5}, {"use_dora": True}])
def test_another_kind_of_lora_is_left_to_peft(setting):
    """Dropout and DoRA."""
    with torch.random.fork_rng(devices=[]):
        base = nn.Linear(4, 4).requires_grad_(requires_grad=False)
        config = lora.LoraConfig(r=2, lora_alpha=2, **setting)
        layer = lora.Linear(base, "default", config=config, r=2, lora_alpha=2, **setting)
        layer.eval()
    expected = layer(torch.ones(1, 4))
    install_merged_linears(nn.Sequential(layer))
    assert type(layer) is MergedLinear
    assert torch.equal(layer(torch.ones(1, 4)), expected)
