"""LoRA of flow transformers: oracle, laws, gradients, errors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.lora_file import (
    add_flow_lora,
    flow_lora_parameters,
    load_flow_lora,
    merge_flow_lora,
    save_flow_lora,
    without_flow_lora,
)
from mvczigal_ref.models.loading import quiet
from tests.compare import FP64, assert_equal_to
from tests.unit.models.flow_small import (
    TIMES,
    conditioning,
    flux_pipeline,
    fresh_flux,
    fresh_sd3,
    latents,
    predict,
    sd3_pipeline,
    small_flux,
    small_sd3,
)
from tests.unit.models.small import randn

RANK, ALPHA = 2, 6.0
FRESH = {"flux": fresh_flux, "sd3": fresh_sd3}
SMALL = {"flux": small_flux, "sd3": small_sd3}
KINDS = pytest.mark.parametrize("kind", ["flux", "sd3"])


def adapted(kind: str, seed: int = 0, *, trained: bool = True) -> FlowComponents:
    """Build a pipeline with a LoRA, away from its initial zero unless asked."""
    c = FRESH[kind]()
    add_flow_lora(c.policy, rank=RANK, alpha=ALPHA, seed=seed)
    if trained:
        with torch.no_grad():
            for index, parameter in enumerate(flow_lora_parameters(c.policy).values()):
                parameter.copy_(0.1 * randn(*parameter.shape, seed=index))
    return c.to(dtype=torch.float64)


def guided(c: FlowComponents) -> torch.Tensor:
    return predict(c.policy, conditioning(c), guidance_scale=3.0)


# -- oracle: the update written out, and diffusers' own reader ---------------------------


@KINDS
def test_equals_the_update_written_out(kind):
    """Every target's weight W acts as W + (alpha / r) B A."""
    c, plain = adapted(kind), FRESH[kind]()
    low_rank = flow_lora_parameters(c.policy)
    with torch.no_grad():
        for name, weight in plain.policy.named_parameters():
            up = low_rank.get(name.replace(".weight", ".lora_B.weight"))
            down = low_rank.get(name.replace(".weight", ".lora_A.weight"))
            if up is not None and down is not None:
                weight += ALPHA / RANK * up @ down

    assert_equal_to(guided(c), guided(plain), 100 * FP64, axes=3)
    assert (guided(c) - guided(SMALL[kind]())).abs().max() > 1e-3


@KINDS
def test_diffusers_pipelines_load_the_file(kind, tmp_path):
    """With the scale: alpha is not the rank, and without its name it would be taken for it."""
    c, plain = adapted(kind), FRESH[kind]()
    save_flow_lora(c.policy, tmp_path / "pytorch_lora_weights.safetensors")
    pipeline = (flux_pipeline if kind == "flux" else sd3_pipeline)(plain)
    with quiet():
        pipeline.load_lora_weights(tmp_path)

    assert_equal_to(guided(plain), guided(c), 10 * FP64, axes=3)


# -- laws --------------------------------------------------------------------------------


@KINDS
def test_only_the_targets_train(kind):
    """Every layer of a target's name has two fp32 matrices; nothing else wants a gradient."""
    c = FRESH[kind]().to(dtype=torch.bfloat16)
    ends = tuple(f".{target}" for target in c.policy.lora_targets)
    linear = [n for n, m in c.policy.named_modules() if isinstance(m, torch.nn.Linear)]
    targets = [name for name in linear if name.endswith(ends)]
    add_flow_lora(c.policy, rank=RANK, alpha=ALPHA, seed=0)
    low_rank = flow_lora_parameters(c.policy)

    assert set(low_rank) == {f"{t}.lora_{side}.weight" for t in targets for side in "AB"}
    assert len(targets) == {"flux": 12 + 3, "sd3": 8 + 7}[kind]
    ours = {id(p) for p in low_rank.values()}
    for parameter in c.policy.parameters():
        assert parameter.requires_grad == (id(parameter) in ours)
        assert parameter.dtype == (torch.float32 if id(parameter) in ours else torch.bfloat16)


def test_initial_values():
    """A is normal with standard deviation 1 / r, B zero; the output is the base's."""
    c = adapted("flux", trained=False)
    values = flow_lora_parameters(c.policy)
    down = torch.cat([p.flatten() for name, p in values.items() if ".lora_A." in name])

    # Four standard errors.
    assert abs(down.std().item() - 1 / RANK) < 4 / RANK / (2 * len(down)) ** 0.5
    assert not any(p.any() for name, p in values.items() if ".lora_B." in name)
    assert_equal_to(guided(c), guided(small_flux()), FP64, axes=3)


def test_initial_values_depend_on_the_seed_alone():
    """Not on the global generator, which is left as it was."""
    before = torch.get_rng_state()
    first, same, other = (
        flow_lora_parameters(adapted("flux", seed, trained=False).policy) for seed in (1, 1, 2)
    )

    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert all(not torch.equal(first[n], other[n]) for n in first if ".lora_A." in n)


@KINDS
@pytest.mark.parametrize("held", [True, False])
def test_loading_returns_what_was_saved(kind, held, tmp_path):
    """Into a LoRA of another seed, or into a network without one."""
    c = adapted(kind)
    save_flow_lora(c.policy, tmp_path / "deep" / "lora.safetensors")
    other = adapted(kind, seed=9, trained=False) if held else FRESH[kind]()
    load_flow_lora(other.policy, tmp_path / "deep" / "lora.safetensors")

    saved, found = (flow_lora_parameters(x.policy) for x in (c, other))
    assert list(found) == list(saved)
    # A new LoRA is fp32.
    assert all(torch.equal(found[n], saved[n].to(found[n].dtype)) for n in saved)
    assert all(name.startswith("transformer.") for name in saved)


def test_switched_off_it_is_the_base_and_then_trains_again():
    """Also when the code inside fails."""
    c = adapted("flux")
    with_it = guided(c)
    with without_flow_lora(c.policy):
        assert_equal_to(guided(c), guided(small_flux()), FP64, axes=3)
    with pytest.raises(KeyError), without_flow_lora(c.policy):
        raise KeyError

    assert torch.equal(guided(c), with_it)
    ours = {id(p) for p in flow_lora_parameters(c.policy).values()}
    assert all(p.requires_grad == (id(p) in ours) for p in c.policy.parameters())


def test_merging_keeps_the_policy_and_takes_the_lora_away():
    """The same prediction from a network with plain names."""
    c = adapted("flux")
    before = guided(c)
    merge_flow_lora(c.policy)

    assert_equal_to(guided(c), before, 100 * FP64, axes=3)
    assert list(c.policy.state_dict()) == list(small_flux().policy.state_dict())


# -- gradients ---------------------------------------------------------------------------


@KINDS
def test_gradient_reaches_every_lora_parameter(kind):
    """And no other."""
    c = adapted(kind)
    c.policy(latents(), TIMES, conditioning(c), guidance_scale=3.0).square().sum().backward()
    low_rank = flow_lora_parameters(c.policy)

    unmoved = {name for name, p in low_rank.items() if p.grad is None or not p.grad.any()}
    # The last block of Stable Diffusion 3 answers its text's queries to nobody.
    dead = "transformer.transformer_blocks.1.attn.add_q_proj.lora_{}.weight"
    assert unmoved == ({dead.format(side) for side in "AB"} if kind == "sd3" else set())
    ours = {id(p) for p in low_rank.values()}
    assert all(p.grad is None for p in c.policy.parameters() if id(p) not in ours)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "alpha", "name"), [(0, 1.0, "rank"), (1, 0.0, "alpha"), (1, float("nan"), "alpha")]
)
def test_rejects_a_useless_size(rank, alpha, name):
    """A rank or a scale of nothing would train nothing."""
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        add_flow_lora(small_flux().policy, rank=rank, alpha=alpha, seed=0)


def test_rejects_a_second_lora():
    """Stacked LoRAs would share their names."""
    with pytest.raises(ValueError, match="`policy` must hold no LoRA yet"):
        add_flow_lora(adapted("flux").policy, rank=1, alpha=1.0, seed=0)


@pytest.mark.parametrize(
    "use",
    [
        merge_flow_lora,
        lambda policy: save_flow_lora(policy, Path("none")),
        lambda policy: without_flow_lora(policy).__enter__(),
    ],
)
def test_rejects_a_network_without_a_lora(use):
    """There is nothing to save, merge or switch off."""
    with pytest.raises(ValueError, match="`policy` must hold a LoRA; got one without"):
        use(small_flux().policy)


def test_rejects_tensors_that_do_not_fit(tmp_path):
    """Every fault is named, with the file, and nothing is changed."""
    path, c = tmp_path / "lora.safetensors", adapted("flux")
    save_flow_lora(c.policy, path)
    other = fresh_flux()
    targets = c.policy.lora_targets[:4]
    add_flow_lora(other.policy, rank=RANK, alpha=ALPHA, seed=3, targets=targets)
    before = {n: p.clone() for n, p in flow_lora_parameters(other.policy).items()}
    with pytest.raises(CheckpointError, match=r"lora\.safetensors.*unexpected .*add_k_proj\.lora"):
        load_flow_lora(other.policy, path)

    after = flow_lora_parameters(other.policy)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_rejects_another_scale(tmp_path):
    """The same numbers would mean another update."""
    path = tmp_path / "lora.safetensors"
    save_flow_lora(adapted("flux").policy, path)
    other = fresh_flux()
    add_flow_lora(other.policy, rank=RANK, alpha=2 * ALPHA, seed=0)
    with pytest.raises(CheckpointError, match=r"alpha / rank = 12\.0 / 2; got 6\.0 / 2"):
        load_flow_lora(other.policy, path)


@pytest.mark.parametrize("damage", ["absent", "cut", "unnamed"])
def test_rejects_an_unreadable_file(damage, tmp_path):
    """Absent, cut short, or without the scale."""
    path = tmp_path / "lora.safetensors"
    if damage != "absent":
        save_flow_lora(adapted("flux").policy, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    if damage == "unnamed":
        save_file(load_file(path), path)
    message = "must be a LoRA with its rank, alpha and targets"
    if damage != "unnamed":
        message = "must be a whole safetensors file; it is "
    with pytest.raises(CheckpointError, match=message):
        load_flow_lora(fresh_flux().policy, path)
