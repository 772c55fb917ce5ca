"""LoRA of flow transformers: oracle, laws, gradients, errors."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.policy import FlowPolicy
from mvczigal_ref.models.loading import quiet
from mvczigal_ref.models.lora import add_lora, lora_parameters
from mvczigal_ref.models.lora_files import load_lora
from mvczigal_ref.models.lora_weights import LoraWeights, write_lora_file, write_peft_files
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
    add(c.policy, seed=seed)
    if trained:
        with torch.no_grad():
            for index, parameter in enumerate(lora_parameters(c.policy.transformer).values()):
                parameter.copy_(0.1 * randn(*parameter.shape, seed=index))
    return c.to(dtype=torch.float64)


def add(policy: FlowPolicy, *, rank: int = RANK, alpha: float = ALPHA, seed: int = 0) -> None:
    """Adapt the layers that Flow-GRPO adapts."""
    targets = policy.lora_targets
    add_lora(policy.transformer, rank=rank, alpha=alpha, seed=seed, targets=targets)


def save(policy, path):
    """Write the LoRA as diffusers' pipelines read it."""
    write_lora_file(LoraWeights.of(policy.transformer), path)


def guided(c: FlowComponents) -> torch.Tensor:
    return predict(c.policy, conditioning(c), guidance_scale=3.0)


# -- oracle: the update written out, and diffusers' own reader ---------------------------


@KINDS
def test_equals_the_update_written_out(kind):
    """Every target's weight W acts as W + (alpha / r) B A."""
    c, plain = adapted(kind), FRESH[kind]()
    low_rank = lora_parameters(c.policy.transformer)
    with torch.no_grad():
        for name, weight in plain.policy.transformer.named_parameters():
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
    save(c.policy, tmp_path / "pytorch_lora_weights.safetensors")
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
    linear = [n for n, m in c.policy.transformer.named_modules() if isinstance(m, torch.nn.Linear)]
    targets = [name for name in linear if name.endswith(ends)]
    add(c.policy)
    low_rank = lora_parameters(c.policy.transformer)

    assert set(low_rank) == {f"{t}.lora_{side}.weight" for t in targets for side in "AB"}
    assert len(targets) == {"flux": 12 + 3, "sd3": 8 + 7}[kind]
    ours = {id(p) for p in low_rank.values()}
    for parameter in c.policy.parameters():
        assert parameter.requires_grad == (id(parameter) in ours)
        assert parameter.dtype == (torch.float32 if id(parameter) in ours else torch.bfloat16)


def test_initial_values():
    """A is normal with standard deviation 1 / r, B zero; the output is the base's."""
    c = adapted("flux", trained=False)
    values = lora_parameters(c.policy.transformer)
    down = torch.cat([p.flatten() for name, p in values.items() if ".lora_A." in name])

    # Four standard errors.
    assert abs(down.std().item() - 1 / RANK) < 4 / RANK / (2 * len(down)) ** 0.5
    assert not any(p.any() for name, p in values.items() if ".lora_B." in name)
    assert_equal_to(guided(c), guided(small_flux()), FP64, axes=3)


def test_initial_values_depend_on_the_seed_alone():
    """Not on the global generator, which is left as it was."""
    before = torch.get_rng_state()
    first, same, other = (
        lora_parameters(adapted("flux", seed, trained=False).policy.transformer)
        for seed in (1, 1, 2)
    )

    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert all(not torch.equal(first[n], other[n]) for n in first if ".lora_A." in n)


@KINDS
@pytest.mark.parametrize("held", [True, False])
def test_loading_returns_what_was_saved(kind, held, tmp_path):
    """Into a LoRA of another seed, or into a network without one."""
    c = adapted(kind)
    save(c.policy, tmp_path / "deep" / "lora.safetensors")
    other = adapted(kind, seed=9, trained=False) if held else FRESH[kind]()
    load_lora(other.policy.transformer, tmp_path / "deep" / "lora.safetensors")

    saved, read = (lora_parameters(x.policy.transformer) for x in (c, other))
    assert list(read) == list(saved)
    # A new LoRA is fp32.
    assert all(torch.equal(read[n], saved[n].to(read[n].dtype)) for n in saved)


def test_a_peft_folder_is_read_too(tmp_path):
    """Scale and targets are those of its settings."""
    c, other = adapted("flux"), fresh_flux()
    write_peft_files(LoraWeights.of(c.policy.transformer), tmp_path)
    load_lora(other.policy.transformer, tmp_path)

    saved, read = (lora_parameters(x.policy.transformer) for x in (c, other))
    assert list(read) == list(saved)
    assert all(torch.equal(read[n], saved[n].to(read[n].dtype)) for n in saved)
    assert other.policy.transformer.peft_config["default"].lora_alpha == ALPHA


# -- gradients ---------------------------------------------------------------------------


@KINDS
def test_gradient_reaches_every_lora_parameter(kind):
    """And no other."""
    c = adapted(kind)
    c.policy(latents(), TIMES, conditioning(c), guidance_scale=3.0).square().sum().backward()
    low_rank = lora_parameters(c.policy.transformer)

    unmoved = {name for name, p in low_rank.items() if p.grad is None or not p.grad.any()}
    # The last block of Stable Diffusion 3 answers its text's queries to nobody.
    dead = "transformer_blocks.1.attn.add_q_proj.lora_{}.weight"
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
        add(small_flux().policy, rank=rank, alpha=alpha)


def test_rejects_a_second_lora():
    """Stacked LoRAs would share their names."""
    with pytest.raises(ValueError, match="`network` must hold no LoRA yet"):
        add(adapted("flux").policy, rank=1, alpha=1.0)


def test_rejects_tensors_that_do_not_fit(tmp_path):
    """Every fault is named, with the file, and nothing is changed."""
    path, c = tmp_path / "lora.safetensors", adapted("flux")
    save(c.policy, path)
    other = fresh_flux()
    targets = c.policy.lora_targets[:4]
    add_lora(other.policy.transformer, rank=RANK, alpha=ALPHA, seed=3, targets=targets)
    before = {n: p.clone() for n, p in lora_parameters(other.policy.transformer).items()}
    with pytest.raises(CheckpointError, match=r"lora\.safetensors.*unexpected .*add_k_proj\.lora"):
        load_lora(other.policy.transformer, path)

    after = lora_parameters(other.policy.transformer)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_rejects_another_scale(tmp_path):
    """The same numbers would mean another update."""
    path = tmp_path / "lora.safetensors"
    save(adapted("flux").policy, path)
    other = fresh_flux()
    add(other.policy, alpha=2 * ALPHA)
    with pytest.raises(CheckpointError, match=r"alpha / rank = 12 / 2; got 6 / 2"):
        load_lora(other.policy.transformer, path)


@pytest.mark.parametrize("damage", ["absent", "cut", "unnamed"])
def test_rejects_an_unreadable_file(damage, tmp_path):
    """Absent, cut short, or without the scale."""
    path = tmp_path / "lora.safetensors"
    if damage != "absent":
        save(adapted("flux").policy, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    if damage == "unnamed":
        save_file(load_file(path), path)
    messages = {
        "absent": "`source` must be a LoRA's file, or a folder",
        "cut": "must be a whole safetensors file; it is ",
        "unnamed": "must be a LoRA with its rank, alpha and targets",
    }
    with pytest.raises(CheckpointError, match=messages[damage]):
        load_lora(fresh_flux().policy.transformer, path)
