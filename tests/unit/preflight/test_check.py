"""`checking`: a sound system passes; each injected fault is found and told by its cause."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mvczigal_ref.config import load_config
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.preflight import attempts
from mvczigal_ref.preflight import trial as trial_module
from mvczigal_ref.preflight.attempts import ATTEMPTS, Finding, Verdict
from mvczigal_ref.preflight.check import check, check_system
from mvczigal_ref.preflight.trial import Trial, in_fp32
from mvczigal_ref.system import build_system
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


def told(attempt, system, config):
    """Try one thing; give what was told of each finding that does not hold, by its name."""
    findings = list(attempt(Trial(system, config, 1)))
    assert findings
    return {finding.name: finding.told for finding in findings if not finding.passed}


# -- laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_sound_system_passes_and_is_left_as_it_was(dtype):
    """Parameters come back to the bit, and no gradient stays."""
    system, config = built(f"model.dtype={dtype}")
    before = {name: p.detach().clone() for name, p in system.trained().items()}
    verdict = check_system(system, config)

    assert verdict.passed, verdict.findings
    assert len(verdict.findings) == 10
    assert len({finding.name for finding in verdict.findings}) == 10
    for name, parameter in system.trained().items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_a_verdict_is_as_good_as_its_worst_finding():
    """One that fails is enough."""
    good = Finding(name="a", passed=True, told="")

    assert Verdict(findings=(good,), seconds=0.0).passed
    assert not Verdict(findings=(good, replace(good, passed=False)), seconds=0.0).passed


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
        ratio, repeats = told(RATIO, system, config), told(REPEATS, system, config)

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

    assert all("draws random numbers" in text for text in told(RATIO, system, config).values())
    assert "twice is not the same" in told(REPEATS, system, config)["replay repeats"]


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
    ratio = told(RATIO, system, config)

    assert len(ratio) == 3
    assert all("right without gradient" in text for text in ratio.values())
    assert all("4 places, at step 0 of the zigzag arm" in text for text in ratio.values())
    assert told(REPEATS, system, config) == {}


def test_another_guidance_in_replay_is_told_as_one(monkeypatch):
    """Sampling and replay are each right by themselves."""
    system, config = built()
    original = trial_module.replay_log_prob
    monkeypatch.setattr(
        trial_module,
        "replay_log_prob",
        lambda *arguments, **named: original(*arguments, **{**named, "camera_scale": 0.5}),
    )

    ratio = told(RATIO, system, config)
    assert all("tell the network different things" in text for text in ratio.values())


def test_an_output_that_is_not_finite_names_the_type():
    """And whatever needs the loss is stopped by it, with its words."""
    system, config = built()
    system.policy.register_forward_hook(lambda _m, _i, o: o * float("nan"))
    verdict = check_system(system, config)
    told_of = {finding.name: finding.told for finding in verdict.findings if not finding.passed}

    assert "not finite in fp32" in told_of["first ratio is 1, fp32 storage"]
    assert "stopped by NonFiniteError" in told_of["no advantage, no gradient"]
    assert "stopped by NonFiniteError" in told_of["frozen weights stay"]


def with_objective(monkeypatch, change):
    """Change the objective's derivatives."""
    original = trial_module.reward_difference_gradients
    monkeypatch.setattr(
        trial_module,
        "reward_difference_gradients",
        lambda zigzag, standard, gap, **named: change(original, zigzag, standard, gap, named),
    )


def test_a_loss_that_adds_something_is_found(monkeypatch):
    """Without an advantage there must be no gradient."""
    system, config = built()
    with_objective(monkeypatch, lambda f, z, s, gap, named: f(z, s, gap + 0.1, **named))

    assert "get a gradient" in told(ZERO, system, config)["no advantage, no gradient"]


def test_a_wrong_sign_is_found(monkeypatch):
    """However short the step, the log-density falls."""
    system, config = built()
    with_objective(monkeypatch, lambda f, z, s, gap, named: f(z, s, -gap, **named))
    found = told(LEARNING, system, config)

    assert found.keys() == {"an advantage of 1 raises the log-density"}
    assert "wrong sign" in found["an advantage of 1 raises the log-density"]


def test_too_large_a_step_is_told_from_a_wrong_one(monkeypatch):
    """The rate that works is told; here a tenth of a step does."""
    system, config = built("optim.lr=3.0")
    original = attempts._rise

    def rises_later(trial, pair, *, factor):
        original(trial, pair, factor=factor)
        return 1e-3 if factor < 1.0 else -1e-3

    monkeypatch.setattr(attempts, "_rise", rises_later)
    found = told(LEARNING, system, config)["an advantage of 1 raises the log-density"]

    assert "only 0.1 of a step raises it: `optim.lr` = 3 is too large. Try 0.3." in found


@pytest.mark.parametrize(("scale", "lost"), [("1", True), ("null", False)])
def test_a_gradient_that_rounds_away_is_found(scale, lost):
    """At the weight of the run: here of as many objects as leave nothing of it in fp16."""
    system, config = built(
        "model.dtype=fp16",
        f"optim.loss_scale={scale}",
        "run.objects_per_iteration=80000",
        "objective.temperature=100",
        "optim.optimizer_steps_per_epoch=1",
    )
    found = told(SURVIVAL, system, config)

    assert bool(found) == lost
    if lost:
        text = found["gradients survive the dtype"]
        assert text.startswith("100.0% of its numbers are exactly 0 that are not in fp32; its cos")
        assert "rounds away in fp16: set `optim.loss_scale` higher, or `model.dtype`" in text


def test_gradients_are_those_of_the_run_s_own_weight(monkeypatch):
    """An element's share of an optimiser step, whatever number of objects is tried."""
    system, config = built("run.objects_per_iteration=24", "sampler.num_steps=4")
    weights = []
    original = trial_module.accumulate_pairs
    monkeypatch.setattr(
        trial_module,
        "accumulate_pairs",
        lambda *told, weight, **named: (
            weights.append(weight),
            original(*told, weight=weight, **named),
        ),
    )
    for objects in (1, 2):
        trial = Trial(system, config, objects)
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


def test_an_overflow_in_a_check_halves_the_scale():
    """As it would in the run."""
    system, config = built("model.dtype=fp16", "optim.loss_scale=4294967296")
    trial = Trial(system, config, 1)
    scale = trial.learn(trial.sample("fp16"), 0, advantage=1.0)

    assert 1.0 < scale < 2.0**32
    assert told(SURVIVAL, system, config) == {}


def test_a_detached_output_is_found():
    """It has a graph, and no gradient in it."""
    system, config = built()
    parameter = next(iter(system.trained().values()))
    system.policy.register_forward_hook(lambda _m, _i, o: o.detach() + 0.0 * parameter.sum())
    found = told(LEARNING, system, config)

    assert "no gradient reaches what trains" in found["an advantage of 1 raises the log-density"]


def test_a_base_weight_that_changes_is_named():
    """Here the network writes to its own bias; so would an optimiser that was given it."""
    system, config = built()

    def write(module, _inputs):
        if torch.is_grad_enabled():
            with torch.no_grad():
                module.bias.add_(1e-3)

    system.policy.unet.conv_in.register_forward_pre_hook(write)

    found = told(LEARNING, system, config)["frozen weights stay"]
    assert found.startswith("network: unet.conv_in.bias and 0 others changed")


def test_a_weight_that_wants_a_gradient_and_is_not_trained_is_named():
    """It costs memory and misleads."""
    system, config = built()
    system.components.vae.decoder.conv_in.bias.requires_grad_(requires_grad=True)

    found = told(LEARNING, system, config)["frozen weights stay"]
    assert (
        found == "autoencoder: decoder.conv_in.bias and 0 others want a gradient and are not "
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
    assert "is not what was saved" in told(RELOAD, system, config)["a saved state comes back"]


def test_a_state_that_is_not_written_is_found(monkeypatch):
    """Such as on a full disk."""
    system, config = built()
    monkeypatch.setattr(attempts, "find_checkpoint", lambda *_: None)

    assert "nothing was written" in told(RELOAD, system, config)["a saved state comes back"]


# -- errors -------------------------------------------------------------------------------


def test_another_kind_of_run_is_refused():
    """Groups have no pairs."""
    config = load_config(
        overrides=["rollout.kind=group", "objective.kind=policy_gradient", "sampler.kind=ddim"]
    )
    with pytest.raises(ConfigError, match=r"tries pairs .* got `rollout.kind` = \"group\""):
        check(config, device=CPU, components=components())
