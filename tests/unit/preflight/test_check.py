"""`preflight.check`: a sound system passes; each injected fault is named by its cause."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from mvczigal_ref.config import load_config
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.preflight import attempts, noised_samples, trial_groups, trial_pairs
from mvczigal_ref.preflight.attempts import ATTEMPTS, CheckResult, Finding
from mvczigal_ref.preflight.check import check, check_system, trial_of
from mvczigal_ref.preflight.snapshots import in_fp32
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system import build_system
from mvczigal_ref.system.networks import DTYPES
from mvczigal_ref.system.scorers import no_scorers

CPU = torch.device("cpu")
RATIO, REPEATS, ZERO, SURVIVAL, LEARNING, RELOAD = (attempt for _, attempt in ATTEMPTS)


def components():
    """Build the narrowest network."""
    return tiny_components(seed=0, channels=(8, 8, 8), num_heads=(1, 1, 1), text_width=8)


def built(*words):
    """Build a system, and its configuration."""
    config = load_config(overrides=["sampler.num_steps=2", "model.lora_rank=2", *words])
    system = build_system(config, device=CPU, components=components(), scorers=no_scorers())
    return system, config


def flow_system(name, *words):
    """Build a recipe of groups on the narrowest transformer, and its configuration."""
    small = ["sampler.num_steps=3", "model.lora_rank=2"]
    if name != "tiny_branch_grpo":  # a tree's members are its leaves
        small.append("rollout.members=2")
    config = load_config(recipe(name), overrides=[*small, *words])
    parts = tiny_flow_components(
        seed=0, num_heads=1, head_width=8, num_layers=1, num_single_layers=1,
        vae_channels=(8, 8, 8), text_width=8,
    )  # fmt: skip
    system = build_system(config, device=CPU, components=parts, scorers=no_scorers())
    return system, config


def failures(attempt, system, config):
    """Try one law; give the reason of each finding that does not hold, by its name."""
    findings = list(attempt(trial_of(system, config, 1)))
    assert findings
    return {finding.name: finding.reason for finding in findings if not finding.passed}


# -- laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow), "fp16"])
def test_a_sound_system_passes_and_is_left_as_it_was(dtype):
    """Parameters come back to the bit, and no gradient stays."""
    system, config = built(f"model.dtype={dtype}")
    before = {name: p.detach().clone() for name, p in system.trained().items()}
    result = check_system(system, config)

    assert result.passed, result.findings
    assert len(result.findings) == 10
    assert len({finding.name for finding in result.findings}) == 10
    for name, parameter in system.trained().items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_attempts_share_what_was_sampled(monkeypatch):
    """One sampling for each storage dtype, and one more that must give the same bits."""
    storages, sample = [], trial_pairs.PairTrial.sample
    monkeypatch.setattr(
        trial_pairs.PairTrial,
        "sample",
        lambda trial, storage: storages.append(storage) or sample(trial, storage),
    )
    system, config = built()

    assert check_system(system, config).passed
    assert sorted(storages) == sorted([*DTYPES, config.model.storage_dtype])


def test_a_result_is_as_good_as_its_worst_finding():
    """One that fails is enough."""
    good = Finding(name="a", passed=True, reason="")

    assert CheckResult(findings=(good,), seconds=0.0).passed
    assert not CheckResult(findings=(good, replace(good, passed=False)), seconds=0.0).passed


# -- faults -------------------------------------------------------------------------------


def block(system):
    """Find the attention in the middle of the network."""
    return system.policy.unet.mid_block.attentions[0].transformer_blocks[0].attn1


def test_dropout_is_named():
    """The layer that is in training mode is told, and that nothing repeats."""
    system, config = built()
    block(system).to_out[1] = nn.Dropout(0.5).train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        ratio, repeats = failures(RATIO, system, config), failures(REPEATS, system, config)

    assert len(ratio) == 3
    assert all("dropout is on, in unet.mid_block" in text for text in ratio.values())
    assert repeats.keys() == {"sampling repeats", "replay repeats"}


def test_random_numbers_are_told_from_other_differences():
    """A network that draws noise differs from itself."""
    system, config = built()
    generator = torch.Generator().manual_seed(0)
    system.policy.register_forward_hook(
        lambda _m, _i, o: o + 1e-3 * torch.randn(o.shape, generator=generator)
    )

    assert all("draws random numbers" in text for text in failures(RATIO, system, config).values())
    assert "twice is not the same" in failures(REPEATS, system, config)["replay repeats"]


def when_learning(change):
    """Make a hook that changes the camera scale while gradients are computed."""

    def hook(_module, arguments, named):
        scale = named["camera_scale"] * (change if torch.is_grad_enabled() else 1.0)
        return arguments, {**named, "camera_scale": scale}

    return hook


def test_a_difference_that_gradients_make_is_told_as_one():
    """Another camera scale with gradient: only the ratio notices."""
    system, config = built()
    system.policy.register_forward_pre_hook(when_learning(1.5), with_kwargs=True)
    ratio = failures(RATIO, system, config)

    assert len(ratio) == 3
    assert all("right without gradient" in text for text in ratio.values())
    assert all("4 places, at step 0 of the zigzag arm" in text for text in ratio.values())
    assert failures(REPEATS, system, config) == {}


def test_another_guidance_in_replay_is_told_as_one(monkeypatch):
    """Sampling and replay are each right by themselves."""
    system, config = built()
    original = trial_pairs.replay_log_prob
    monkeypatch.setattr(
        trial_pairs,
        "replay_log_prob",
        lambda *arguments, **named: original(*arguments, **{**named, "camera_scale": 0.5}),
    )

    ratio = failures(RATIO, system, config)
    assert all("tell the network different things" in text for text in ratio.values())


def test_an_output_that_is_not_finite_names_the_type():
    """And whatever needs the loss is stopped by it, with its words."""
    system, config = built()
    system.policy.register_forward_hook(lambda _m, _i, o: o * float("nan"))
    result = check_system(system, config)
    reasons = {finding.name: finding.reason for finding in result.findings if not finding.passed}

    assert "not finite in fp32" in reasons["first ratio is 1, fp32 storage"]
    assert "stopped by NonFiniteError" in reasons["no advantage, no gradient"]
    assert "stopped by NonFiniteError" in reasons["frozen weights stay"]


def with_objective(monkeypatch, change):
    """Change the objective's derivatives."""
    original = trial_pairs.pair_objective
    monkeypatch.setattr(
        trial_pairs, "pair_objective", lambda config: partial(change, original(config))
    )


def test_a_loss_that_adds_something_is_found(monkeypatch):
    """Without an advantage there must be no gradient."""
    system, config = built()
    with_objective(monkeypatch, lambda f, z, s, gap: f(z, s, gap + 0.1))

    assert "get a gradient" in failures(ZERO, system, config)["no advantage, no gradient"]


def test_a_wrong_sign_is_found(monkeypatch):
    """However short the step, the log-density falls."""
    system, config = built()
    with_objective(monkeypatch, lambda f, z, s, gap: f(z, s, -gap))
    faults = failures(LEARNING, system, config)

    assert faults.keys() == {"an advantage of 1 raises the log-density"}
    assert "wrong sign" in faults["an advantage of 1 raises the log-density"]


def test_too_large_a_step_is_told_from_a_wrong_one(monkeypatch):
    """The rate that works is told; here a tenth of a step does."""
    system, config = built("optim.lr=3.0")
    original = attempts._rise

    def rises_later(trial, pair, *, factor):
        original(trial, pair, factor=factor)
        return 1e-3 if factor < 1.0 else -1e-3

    monkeypatch.setattr(attempts, "_rise", rises_later)
    faults = failures(LEARNING, system, config)["an advantage of 1 raises the log-density"]

    assert "only 0.1 of a step raises it: `optim.lr` = 3 is too large. Try 0.3." in faults


@pytest.mark.parametrize(("scale", "lost"), [("1", True), ("null", False)])
def test_a_gradient_that_rounds_away_is_found(scale, lost, monkeypatch):
    """At the weight of the run: here of as many objects as leave nothing of it in fp16."""
    original = trial_pairs.accumulate_pairs
    monkeypatch.setattr(
        trial_pairs,
        "accumulate_pairs",
        lambda *arguments, weight, **named: original(*arguments, weight=weight / 800, **named),
    )
    system, config = built(
        "model.dtype=fp16",
        f"optim.loss_scale={scale}",
        "run.objects_per_iteration=10000",
        "optim.optimizer_steps_per_epoch=1",
    )
    faults = failures(SURVIVAL, system, config)

    assert bool(faults) == lost
    if lost:
        text = faults["gradients survive the dtype"]
        assert text.startswith("100.0% of its numbers are exactly 0 that are not in fp32; its cos")
        assert "rounds away in fp16: set `optim.loss_scale` higher, or `model.dtype`" in text


def test_gradients_are_those_of_the_run_s_own_weight(monkeypatch):
    """An element's share of an optimiser step, whatever number of objects is tried."""
    system, config = built("run.objects_per_iteration=24", "sampler.num_steps=4")
    weights = []
    original = trial_pairs.accumulate_pairs
    monkeypatch.setattr(
        trial_pairs,
        "accumulate_pairs",
        lambda *arguments, weight, **named: (
            weights.append(weight),
            original(*arguments, weight=weight, **named),
        ),
    )
    for objects in (1, 2):
        trial = trial_of(system, config, objects)
        trial.learn(trial.sample("fp32"), 0, advantage=1.0)

    # 24 objects in two optimiser steps, three of four steps trained.
    assert weights == [1 / 36, 2 / 36]


def test_half_precision_comes_back_to_the_bit():
    """After fp32 has been tried in its place."""
    system, _ = built("model.dtype=fp16")
    before = {name: p.detach().clone() for name, p in system.policy.state_dict().items()}
    with in_fp32(system.policy) as widened:
        assert widened
        assert all(p.dtype == torch.float32 for p in system.policy.parameters())

    after = system.policy.state_dict()
    assert all(torch.equal(after[n], p) and after[n].dtype == p.dtype for n, p in before.items())


def test_half_precision_comes_back_where_memory_ends(monkeypatch):
    """The second tensor cannot be widened: none stays wide, and the law is not tried."""
    system, _ = built("model.dtype=fp16")
    before = {name: p.detach().clone() for name, p in system.policy.state_dict().items()}
    original, half = torch.Tensor.float, []

    def runs_out(tensor):
        if tensor.dtype == torch.float16 and not tensor.requires_grad:
            half.append(tensor)
            if len(half) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "float", runs_out)
    with pytest.raises(torch.OutOfMemoryError), in_fp32(system.policy):
        pass
    after = system.policy.state_dict()
    assert len(half) == 2
    assert all(torch.equal(after[n], p) and after[n].dtype == p.dtype for n, p in before.items())


@pytest.mark.parametrize(
    ("error", "tried"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        pytest.param(RuntimeError("MPS backend out of memory"), False, marks=pytest.mark.slow),
        (RuntimeError("another"), True),
    ],
)
def test_a_network_too_large_for_fp32_is_not_tried_there(error, tried, monkeypatch):
    """Its half precision may be right, so that nothing fails; another error does."""
    system, config = built("model.dtype=fp16")

    @contextmanager
    def runs_out(_network):
        raise error
        yield True

    monkeypatch.setattr(attempts, "in_fp32", runs_out)
    result = check_system(system, config)
    finding = {one.name: one for one in result.findings}["gradients survive the dtype"]

    assert result.passed != tried
    assert (finding.tried, finding.passed) == (tried, not tried)
    if not tried:
        assert finding.reason == "not tried: no room for an fp32 copy of the network"


def test_the_gradient_is_set_against_the_optimiser_s_smallest_number():
    """By hand: the root of its mean square over all that trains."""
    system, config = built("optim.eps=1e-6")
    trial = trial_of(system, config, 1)
    trial.learn(trial.sample("fp32"), 0, advantage=1.0)
    numbers = torch.cat([p.grad.double().flatten() for p in system.trained().values()])
    rms = numbers.square().mean().sqrt().item()
    (finding,) = SURVIVAL(trial)

    assert rms > 0.0
    assert f"; rms {rms:.2g} against optim.eps 1e-06" in finding.reason


def test_an_overflow_in_a_check_halves_the_scale():
    """As it would in the run."""
    system, config = built("model.dtype=fp16", "optim.loss_scale=4294967296")
    trial = trial_of(system, config, 1)
    scale = trial.learn(trial.sample("fp16"), 0, advantage=1.0)

    assert 1.0 < scale < 2.0**32
    assert failures(SURVIVAL, system, config) == {}


def test_a_detached_output_is_found():
    """It has a graph, and no gradient in it."""
    system, config = built()
    parameter = next(iter(system.trained().values()))
    system.policy.register_forward_hook(lambda _m, _i, o: o.detach() + 0.0 * parameter.sum())
    faults = failures(LEARNING, system, config)

    assert "no gradient reaches what trains" in faults["an advantage of 1 raises the log-density"]


def test_a_base_weight_that_changes_is_named():
    """Here the network writes to its own bias; so would an optimiser that was given it."""
    system, config = built()

    def write(module, _inputs):
        if torch.is_grad_enabled():
            with torch.no_grad():
                module.bias.add_(1e-3)

    system.policy.unet.conv_in.register_forward_pre_hook(write)

    faults = failures(LEARNING, system, config)["frozen weights stay"]
    assert faults.startswith("network: unet.conv_in.bias and 0 others changed")


def test_a_weight_that_wants_a_gradient_and_is_not_trained_is_named():
    """It costs memory and misleads."""
    system, config = built()
    system.components.vae.decoder.conv_in.bias.requires_grad_(requires_grad=True)

    faults = failures(LEARNING, system, config)["frozen weights stay"]
    assert (
        faults == "autoencoder: decoder.conv_in.bias and 0 others want a gradient and are not "
        "trained."
    )


def test_a_state_that_is_rounded_is_found(monkeypatch):
    """Half precision of a trained tensor is not its value."""
    system, config = built()
    original = attempts.resume

    def rounded(*arguments):
        state = original(*arguments)
        with torch.no_grad():
            for parameter in system.trained().values():
                parameter.copy_(parameter.half())
        return state

    monkeypatch.setattr(attempts, "resume", rounded)
    assert "is not what was saved" in failures(RELOAD, system, config)["a saved state comes back"]


def test_a_state_that_is_not_written_is_found(monkeypatch):
    """Such as on a full disk."""
    system, config = built()
    monkeypatch.setattr(attempts, "find_checkpoint", lambda *_: None)

    assert "nothing was written" in failures(RELOAD, system, config)["a saved state comes back"]


# -- groups, branches and the forward process --------------------------------------------


GROUPS = {
    "groups": ("tiny_flow_grpo",),
    "guard in fp16": ("tiny_grpo_guard", "model.dtype=fp16"),
    "near the reference": ("tiny_flow_grpo", "objective.kl_weight=0.1"),
    "tree": ("tiny_branch_grpo", "rollout.split_steps=[0]"),
    "branches": ("tiny_g2rpo", "rollout.window_size=1"),
    "captions": ("tiny_mv_grpo_vlm",),
}


@pytest.mark.parametrize("words", GROUPS.values(), ids=GROUPS)
def test_sound_groups_pass(words):
    """Every law is tried, and nothing is changed."""
    system, config = flow_system(*words)
    before = {name: p.detach().clone() for name, p in system.trained().items()}
    result = check_system(system, config)

    assert result.passed, result.findings
    assert all(finding.tried for finding in result.findings)
    for name, parameter in system.trained().items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def weakened(update, place, factor):
    """Multiply the loss of an update, whose objective is one of its positional arguments."""

    def changed(*arguments, **named):
        objective = arguments[place]

        def smaller(samples):
            loss, stats = objective(samples)
            return factor * loss, stats

        return update(*arguments[:place], smaller, *arguments[place + 1 :], **named)

    return changed


UPDATES = {
    "groups": ("tiny_flow_grpo", trial_groups, "update_groups", 4),
    "forward": ("tiny_diffusion_nft", noised_samples, "update_forward", 3),
}


@pytest.mark.parametrize(("scale", "lost"), [("1", True), ("null", False)])
@pytest.mark.parametrize(("name", "module", "update", "place"), UPDATES.values(), ids=UPDATES)
def test_a_gradient_of_groups_that_rounds_away_is_measured(
    name, module, update, place, scale, lost, monkeypatch
):
    """An update stops at such a gradient; the check goes on, and gives the shares."""
    monkeypatch.setattr(module, update, weakened(getattr(module, update), place, 1e-2))
    system, config = flow_system(
        name, "model.dtype=fp16", f"optim.loss_scale={scale}",
        "run.objects_per_iteration=10000", "optim.optimizer_steps_per_epoch=1",
    )  # fmt: skip
    faults = failures(SURVIVAL, system, config)

    assert bool(faults) == lost
    if lost:
        text = faults["gradients survive the dtype"]
        assert text.startswith("100.0% of its numbers are exactly 0 that are not in fp32; its cos")
        assert "its cosine to fp32 is 0.0000; the loss scale 1; rms 0 against optim.eps" in text


def test_captions_double_the_replays():
    """Each decision is scored under its prompt and under a caption."""
    plain, captioned = (
        trial_of(*flow_system(name), 1) for name in ("tiny_flow_grpo_fast", "tiny_mv_grpo_vlm")
    )
    places = [trial.places(trial.sample("fp32")) for trial in (plain, captioned)]

    names = [[place.name for place in one] for one in places]
    assert len(names[0]) == 1
    assert names[1] == [names[0][0], f"{names[0][0]}, under a caption"]


def test_the_forward_process_has_no_ratio_and_says_so():
    """Everything else is tried; the error of its fit falls."""
    result = check_system(*flow_system("tiny_diffusion_nft"))
    by_name = {finding.name: finding for finding in result.findings}

    assert result.passed, result.findings
    assert [name for name, finding in by_name.items() if not finding.tried] == [
        f"first ratio is 1, {storage} storage" for storage in ("fp32", "bf16", "fp16")
    ]
    assert "asks for no density" in by_name["first ratio is 1, fp32 storage"].reason
    assert "an advantage of 1 fits its sample better" in by_name


def test_dropout_is_named_in_groups_too():
    """And whatever needs the ratio is stopped by it."""
    system, config = flow_system("tiny_flow_grpo")
    block_ = system.policy.transformer.single_transformer_blocks[0]
    block_.proj_out = nn.Sequential(block_.proj_out, nn.Dropout(0.5).train())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        result = check_system(system, config)
    reasons = {finding.name: finding.reason for finding in result.findings if not finding.passed}

    assert "dropout is on, in transformer.single" in reasons["first ratio is 1, fp32 storage"]
    assert "sampling repeats" in reasons
    assert "stopped by ReplayMismatchError" in reasons["no advantage, no gradient"]


def test_every_element_of_a_group_weighs_what_it_weighs_in_the_run():
    """By hand: two of eight objects, of an optimiser step's four, and one of three decisions."""
    system, config = flow_system(
        "tiny_flow_grpo", "run.objects_per_iteration=8", "optim.optimizer_steps_per_epoch=2",
        "sampler.num_steps=4", "rollout.window=all",
    )  # fmt: skip
    trial = trial_of(system, config, 2)
    samples = trial.sample("fp32")

    share = trial._share(samples, samples.decisions[0])
    assert share == pytest.approx(2 / 4 / len(samples.decisions))


def test_captions_share_the_weight_with_the_prompt():
    """By hand: one of 32 objects in one optimiser step, under its prompt and two captions."""
    trial = trial_of(*flow_system("tiny_mv_grpo_vlm", "run.objects_per_iteration=32"), 1)
    samples = trial.sample("fp32")

    assert trial.config.optim.optimizer_steps_per_epoch == 1
    assert trial._share(samples, samples.decisions[0]) == pytest.approx(1 / 32 / 3)


# -- errors -------------------------------------------------------------------------------


def test_what_training_would_refuse_is_refused():
    """A window that does not fit, before anything is tried."""
    with pytest.raises(ConfigError, match=r"`rollout` does not fit `sampler`"):
        check_system(*flow_system("tiny_branch_grpo", "rollout.split_steps=[7]"))


def test_slices_that_cannot_be_shared_out_are_refused():
    """As in training, before anything is built."""
    config = load_config(overrides=["run.objects_per_iteration=2", "run.objects_per_slice=2"])
    with pytest.raises(ConfigError, match="nearest valid value"):
        check(config, device=CPU, components=components())
