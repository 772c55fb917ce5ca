"""LoRA: oracle, laws, gradients, golden values, errors."""

import pytest
import torch

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.lora import (
    LORA_TARGETS,
    add_lora,
    load_lora_state_dict,
    lora_parameters,
    lora_state_dict,
)
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from tests.compare import FP64, assert_equal_to
from tests.unit.models.small import conditioning, fresh_components, published_on_meta, randn
from tests.unit.models.test_multiview_unet import SOME, latents, predict, published_names

RANK, ALPHA = 3, 6.0


def adapted(seed: int = 0, *, trained: bool = True) -> MultiViewUNet:
    """Build a policy with a LoRA, away from its initial zero unless asked."""
    policy = fresh_components().policy
    add_lora(policy.unet, rank=RANK, alpha=ALPHA, seed=seed)
    if trained:
        with torch.no_grad():
            for index, parameter in enumerate(lora_parameters(policy.unet).values()):
                parameter.copy_(0.1 * randn(*parameter.shape, seed=index))
    return policy.double()


# -- oracle: the update written out on a plain network -----------------------------------


def test_equals_the_update_written_out():
    """Every target's weight W acts as W + (alpha / r) B A."""
    policy, plain = adapted(), fresh_components().policy
    low_rank = lora_parameters(policy.unet)
    with torch.no_grad():
        for name, weight in plain.unet.named_parameters():
            up = low_rank.get(name.replace(".weight", ".lora_B.weight"))
            down = low_rank.get(name.replace(".weight", ".lora_A.weight"))
            if up is not None and down is not None:
                weight += ALPHA / RANK * up @ down

    x, given = latents(), conditioning()
    expected = predict(x, given, policy=plain)
    # Two products in place of one, through the depth of the network.
    assert_equal_to(predict(x, given, policy=policy), expected, 10 * FP64, axes=3)


def test_initial_values_are_pefts_gaussian():
    """A is normal with standard deviation 1 / r, B is zero."""
    policy = fresh_components().policy
    add_lora(policy.unet, rank=4, alpha=4.0, seed=0)
    parameters = lora_parameters(policy.unet)
    down = torch.cat([p.flatten() for name, p in parameters.items() if "lora_A" in name])
    up = torch.cat([p.flatten() for name, p in parameters.items() if "lora_B" in name])

    # Four standard errors of the mean and of the standard deviation.
    assert abs(down.mean().item()) < 4 * 0.25 / len(down) ** 0.5
    assert abs(down.std().item() - 0.25) < 4 * 0.25 / (2 * len(down)) ** 0.5
    assert not up.any()


# -- laws --------------------------------------------------------------------------------


def test_a_fresh_lora_changes_no_bit():
    """B is zero, so training starts at the base, which is frozen."""
    x, given, plain = latents(), conditioning(), fresh_components().policy
    # torch picks a matrix product by whether the weight requires a gradient, so freezing alone
    # moves last bits.
    plain.unet.requires_grad_(requires_grad=False)
    base = predict(x, given, policy=plain)

    assert torch.equal(predict(x, given, policy=adapted(trained=False)), base)


def test_every_target_is_reached_and_no_other_layer():
    """All attentions of the network, row attention included; two matrices a target."""
    policy = fresh_components().policy
    linear = {n for n, m in policy.unet.named_modules() if isinstance(m, torch.nn.Linear)}
    targets = {n for n in linear if n.endswith(tuple(f".{t}" for t in LORA_TARGETS))}
    add_lora(policy.unet, rank=RANK, alpha=ALPHA, seed=0)

    expected = {f"{t}.lora_{side}.weight" for t in targets for side in "AB"}
    assert set(lora_parameters(policy.unet)) == expected
    assert len(targets) == 7 * (4 + 4 + 4)


def test_only_the_lora_trains_in_fp32():
    """The base stays frozen, in whatever type it is."""
    policy = fresh_components().policy.to(torch.bfloat16)
    add_lora(policy.unet, rank=RANK, alpha=ALPHA, seed=0)
    low_rank = {id(p) for p in lora_parameters(policy.unet).values()}

    for parameter in policy.unet.parameters():
        ours = id(parameter) in low_rank
        assert parameter.requires_grad == ours
        assert parameter.dtype == (torch.float32 if ours else torch.bfloat16)
    y = predict(latents().float(), conditioning(), policy=policy)
    assert y.dtype == torch.float32
    assert y.isfinite().all()


def test_initial_values_depend_on_the_seed_alone():
    """Not on the global generator, which is left as it was."""
    before = torch.get_rng_state()
    first = lora_state_dict(adapted(seed=1, trained=False).unet)
    torch.rand(3)
    second = lora_state_dict(adapted(seed=1, trained=False).unet)
    other = lora_state_dict(adapted(seed=2, trained=False).unet)
    torch.set_rng_state(before)
    adapted(seed=1)

    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(not torch.equal(first[n], other[n]) for n in first if "lora_A" in n)


def test_saved_values_make_the_same_policy():
    """A copy out and in again, whatever the other's seed was."""
    policy, other = adapted(), adapted(seed=9, trained=False)
    values = lora_state_dict(policy.unet)
    load_lora_state_dict(other.unet, values)
    x, given = latents(), conditioning()

    assert torch.equal(predict(x, given, policy=other), predict(x, given, policy=policy))
    # The copies do not follow the parameters.
    name, value = next(iter(values.items()))
    with torch.no_grad():
        lora_parameters(policy.unet)[name].zero_()
    assert value.any()


# -- gradients ---------------------------------------------------------------------------


def test_gradient_reaches_every_lora_parameter():
    """And no other; a fresh B has one, a fresh A has none yet."""
    policy = adapted()
    policy(latents(), SOME, conditioning(), guidance_scale=7.0).square().sum().backward()

    assert all(p.grad is not None and p.grad.any() for p in lora_parameters(policy.unet).values())
    assert sum(p.grad is not None for p in policy.parameters()) == 7 * 12 * 2


# -- golden parity -----------------------------------------------------------------------


def test_golden_names_at_full_size():
    """The published LoRA files, name by name and shape by shape."""
    policy = published_on_meta(256)
    add_lora(policy.unet, rank=16, alpha=16.0, seed=0)
    shapes = {name: list(value.shape) for name, value in lora_state_dict(policy.unet).items()}

    # The guidance embedding is no attention, so both base models have the same.
    assert shapes == published_names("names_lora_lcm_sdxl_r16")
    assert shapes == published_names("names_lora_sdxl_r16")


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "alpha", "name"), [(0, 1.0, "rank"), (1, 0.0, "alpha"), (1, float("nan"), "alpha")]
)
def test_rejects_a_useless_size(rank, alpha, name):
    """A rank or a scale of nothing would train nothing."""
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        add_lora(fresh_components().policy.unet, rank=rank, alpha=alpha, seed=0)


def test_rejects_a_second_lora():
    """Stacked LoRAs would share their names."""
    with pytest.raises(ValueError, match="`network` must hold no LoRA yet"):
        add_lora(adapted().unet, rank=1, alpha=1.0, seed=0)


@pytest.mark.parametrize("use", [lora_state_dict, lambda unet: load_lora_state_dict(unet, {})])
def test_rejects_a_network_without_a_lora(use):
    """There is nothing to save or to load into."""
    with pytest.raises(ValueError, match="`network` must hold a LoRA; got one without"):
        use(fresh_components().policy.unet)


def test_rejects_tensors_that_do_not_fit_and_changes_nothing():
    """Every fault is named, with the source."""
    policy = adapted()
    values, before = lora_state_dict(policy.unet), lora_state_dict(policy.unet)
    gone, misshapen, good = list(values)[:3]
    values["stranger"] = values.pop(gone)
    values[misshapen], values[good] = torch.zeros(7), torch.zeros_like(values[good])
    with pytest.raises(CheckpointError) as caught:
        load_lora_state_dict(policy.unet, values, source="run/lora.safetensors")

    text = str(caught.value)
    assert "`run/lora.safetensors`" in text
    assert f"missing {gone}; unexpected stranger; {misshapen} of shape (7,), not" in text
    after = lora_state_dict(policy.unet)
    assert all(torch.equal(before[name], after[name]) for name in before)
