"""`config.train`: each rule with what breaks it and a neighbour that does not; every setting."""

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest

import mvczigal_ref
from mvczigal_ref.config import (
    ModelConfig,
    RunConfig,
    TrainConfig,
    from_dict,
    load_config,
    method_rules,
    recomputation,
    sampling_rules,
    sharding,
    to_dict,
    train,
)
from mvczigal_ref.config.train import contradictions
from mvczigal_ref.errors import ConfigError

PACKAGE = Path(mvczigal_ref.__file__).parent
GROUPS = ("objective.kind=policy_gradient", "rollout.kind=group")
FLOW = (
    "model.network=flow", "sampler.kind=flow", "reward.joint=per_view", "advantage.mode=per_view",
)  # fmt: skip
FORWARD = (*FLOW, "objective.kind=forward_process", "rollout.kind=group")
TREE = (*GROUPS[:1], "rollout.kind=tree", "rollout.split_steps=[0]")
UNSCALED = (*FLOW, "flow.kernel=cps", "flow.density=unscaled")
BRANCHES = (*FLOW, *GROUPS[:1], "rollout.kind=branches")

# By what it is about: the words that contradict each other, what is said, and words beside them.
RULES = {
    "zigzag longer than the grid": (
        ["zigzag.steps=5"], "`zigzag.steps` must be at most `sampler.num_steps` = 4; got 5",
        ["zigzag.steps=4"],
    ),
    "one action that no image shows": (
        ["sampler.num_steps=1", "sampler.kind=ddim"], "`sampler.num_steps` must be at least 2",
        ["sampler.num_steps=1", "objective.train_last_action=true"],
    ),
    "multiplier out of its box": (
        ["constraint.multiplier_init=6"], "`constraint.multiplier_init` must be at most",
        ["constraint.multiplier_init=5"],
    ),
    "a rate that is 0 before the end": (
        ["run.iterations=10", "optim.decay_iterations=9"],
        "`optim.decay_iterations` must be at least `run.iterations` = 10",
        ["run.iterations=10", "optim.decay_iterations=10"],
    ),
    "more steps than the grid has": (
        ["sampler.num_steps=51"], "`sampler.num_steps` must be at most 50 with `sampler.kind` = ",
        ["sampler.num_steps=50"],
    ),
    "more steps of evaluation than the grid has": (
        ["sampler.kind=ddim", "sampler.evaluation_steps=1001"],
        "`sampler.evaluation_steps` must be at most 1000",
        ["sampler.kind=ddim", "sampler.evaluation_steps=1000"],
    ),
    "an image that cannot be divided": (
        ["model.image_size=33"], "must be a multiple of 8, since autoencoder and cameras or tokens "
        "divide an image so; got 33. The nearest valid value is 32.",
        ["model.image_size=40"],
    ),
    "an image that FLUX cannot divide": (
        [*FLOW, *GROUPS, "model.weights=folder", "model.image_size=24"],
        "must be a multiple of 16, since", [*FLOW, *GROUPS, "model.image_size=24",
        "model.weights=tiny_flow"],
    ),
    "a warm-up beyond the run": (
        ["run.iterations=3", "optim.warmup_iterations=4"],
        "`optim.warmup_iterations` must be at most `run.iterations` = 3; got 4, which the run does "
        "not reach. Set it to 3, or to 0 for none.",
        ["run.iterations=3", "optim.warmup_iterations=3"],
    ),
    "an average beyond the run": (
        ["run.iterations=3", "optim.average_decay=0.9"],
        "`optim.average_every` must be at most `run.iterations` = 3; got 4, which the run does not "
        "reach. Set it to 3, or `optim.average_decay` to 0.",
        ["run.iterations=3"],
    ),
    "a guard beyond the run": (
        ["run.iterations=3", "guard.every=4", "guard.diversity=true"],
        "`guard.every` must be at most `run.iterations` = 3; got 4",
        ["run.iterations=3", "guard.every=3", "guard.diversity=true"],
    ),
    "evaluations beyond the run": (
        ["run.iterations=3", "run.evaluate_every=4"],
        "`run.evaluate_every` must be at most `run.iterations` = 3; got 4",
        ["run.iterations=3", "run.evaluate_every=3"],
    ),
    "more steps together than there are": (
        ["sampler.num_steps=2", "optim.steps_per_microbatch=3"],
        "`optim.steps_per_microbatch` must be at most `sampler.num_steps` = 2; got 3.",
        ["sampler.num_steps=2", "optim.steps_per_microbatch=2"],
    ),
    "guard of nothing": (
        ["guard.every=1"], "`guard.every` needs something to watch",
        ["guard.every=1", "advantage.mode=joint"],
    ),
    "diversity of one": (
        ["guard.every=1", "guard.diversity=true", "guard.noises=1"], "`guard.noises` must be at",
        ["guard.every=1", "guard.diversity=true", "guard.noises=2"],
    ),
    "flow network, other sampler": (
        [*FLOW, *GROUPS, "sampler.kind=ddim"],
        '`sampler.kind` = "ddim" does not fit `model.network` = "flow"', [*FLOW, *GROUPS],
    ),
    "flow sampler, other network": (
        [*GROUPS, "sampler.kind=flow"],
        '`sampler.kind` = "flow" does not fit `model.network` = "multiview"',
        [*GROUPS, "sampler.kind=ddim"],
    ),
    "one view judged jointly": (
        [*FLOW, *GROUPS, "reward.joint=world.joint"],
        '`reward.joint` must be "per_view" with `model.network` = "flow", one',
        [*FLOW, *GROUPS],
    ),
    "one view compared jointly": (
        [*FLOW, *GROUPS, "advantage.mode=joint"],
        '`advantage.mode` must be "per_view" with `model.network` = "flow"',
        [*GROUPS, "advantage.mode=joint"],
    ),
    "cameras of one view": (
        [*FLOW, *GROUPS, "model.elevation=30"], "`model.azimuths` and `model.elevation` place",
        [*GROUPS, "model.elevation=30"],
    ),
    "other cameras of one view": (
        [*FLOW, *GROUPS, "model.azimuths=[0]"], "`model.azimuths` and `model.elevation` place",
        [*GROUPS, "model.azimuths=[0]"],
    ),
    "too much of a kept coefficient": (
        [*FLOW, *GROUPS, "flow.kernel=cps", "flow.noise_scale=1.5"],
        "`flow.noise_scale` must be at most 1",
        [*FLOW, *GROUPS, "flow.kernel=sde", "flow.noise_scale=1.5"],
    ),
    "DDIM without noise": (
        ["sampler.kind=ddim", "sampler.eta=0"], "`sampler.eta` must be positive",
        ["sampler.kind=lcm", "sampler.eta=0"],
    ),
    "a single-view UNet judged jointly": (
        ["model.network=unet", "advantage.mode=per_view"],
        '`reward.joint` must be "per_view" with `model.network` = "unet"',
        ["model.network=unet", "advantage.mode=per_view", "reward.joint=per_view"],
    ),
    "TCD without noise": (
        ["sampler.kind=tcd", "sampler.eta=0"], '`sampler.eta` must be positive: "tcd" without',
        ["sampler.kind=tcd", "sampler.eta=1"],
    ),
    "more than all noise": (
        ["sampler.kind=euler_ancestral", "sampler.eta=1.5"],
        '`sampler.eta` must be at most 1 with "euler_ancestral"; got 1.5',
        ["sampler.kind=euler_ancestral", "sampler.eta=1"],
    ),
    "a last step without noise": (
        ["sampler.kind=tcd", "objective.train_last_action=true"],
        '`objective.train_last_action` must be false with `sampler.kind` = "tcd"',
        ["sampler.kind=ddim", "objective.train_last_action=true"],
    ),
    "a sample at the clean end": (
        ["sampler.kind=euler_ancestral", "sampler.prediction_type=sample"],
        '`sampler.prediction_type` must be "epsilon" or "v_prediction" with "euler_ancestral"',
        ["sampler.kind=tcd", "sampler.prediction_type=sample"],
    ),
    "pairs without a last density": (
        [*FLOW, "objective.kind=policy_gradient", "flow.kernel=cps"],
        '`rollout.kind` = "pair" scores every step', [*FLOW, *GROUPS, "flow.kernel=cps"],
    ),
    "branches without an ODE": (
        [*GROUPS[:1], "rollout.kind=branches"], '`rollout.kind` = "branches" needs a flow model',
        [*BRANCHES],
    ),
    "a window of LCM": (
        [*GROUPS, "rollout.window=fixed"], '`rollout.window` must be "all" with `sampler.kind`',
        [*GROUPS, "rollout.window=fixed", "sampler.kind=ddim"],
    ),
    "a group of one": (
        [*GROUPS, "rollout.members=1"], "`rollout.members` must be at least 2",
        [*TREE, "rollout.members=1"],
    ),
    "a tree without a split": (
        [*TREE[:2]], "`rollout.split_steps` must name a step", [*TREE],
    ),
    "a tree that does not divide": (
        [*TREE, "rollout.split_width=1"], "`rollout.split_width` must be at least 2",
        [*GROUPS, "rollout.split_width=1"],
    ),
    "sequences of a tree": (
        [*TREE, "objective.kind=sequence"], '`objective.kind` = "sequence" needs the whole',
        [*GROUPS, "objective.kind=sequence"],
    ),
    "sequences with a change per step": (
        [*GROUPS, "objective.kind=sequence", "optim.step_per_decision=true"],
        "`optim.step_per_decision` false with", [*GROUPS, "objective.kind=sequence"],
    ),
    "divergences of pairs": (
        ["objective.kind=divergence"], '`objective.kind` = "divergence" needs groups',
        [*GROUPS, "objective.kind=divergence"],
    ),
    "weights by a flow's gradient elsewhere": (
        [*GROUPS, "objective.step_weight=rectified"],
        '`objective.step_weight` = "rectified" is defined on the noise levels',
        [*FLOW, *GROUPS, "objective.step_weight=rectified"],
    ),
    "leaves of no tree": (
        [*GROUPS, "advantage.fusion_inverse_temperature=1"],
        "`advantage.fusion_inverse_temperature` is for the inner nodes of a tree",
        [*TREE, "advantage.fusion_inverse_temperature=1"],
    ),
    "branches compared with all": (
        [*BRANCHES, "advantage.spread=batch"], '`advantage.spread` must be "group"',
        [*GROUPS, "advantage.spread=batch"],
    ),
    "a replay slice of groups": (
        [*GROUPS, "run.replay_objects_per_slice=1"], "`run.replay_objects_per_slice` is for obj",
        ["run.replay_objects_per_slice=1"],
    ),
    "a compiled network in parts": (
        ["run.sharding=full", "model.compile=inductor"],
        '`model.compile` must be "none" where `run.sharding` is "full"; got \'inductor\'',
        ["model.compile=inductor"],
    ),
    "channels last in parts": (
        ["run.sharding=full", "model.channels_last=true"],
        '`model.channels_last` must be false or "auto" where `run.sharding` is "full"',
        ["run.sharding=full", "model.channels_last=auto"],
    ),
    "an ordered sum of parts": (
        ["run.sharding=full", "model.finetune=full", "run.reduction=ordered"],
        '`run.reduction` must be "auto" or "engine" where `run.sharding` and `model.finetune`',
        ["run.sharding=full", "run.reduction=ordered"],
    ),
    "two arms of groups": (
        [*GROUPS, "run.arms_per_call=2"], "`run.arms_per_call` is for objectives",
        ["run.arms_per_call=2"],
    ),
    "joint replay of groups": (
        [*GROUPS, "optim.steps_per_microbatch=2"], "`optim.steps_per_microbatch` is for objectives",
        ["optim.steps_per_microbatch=2"],
    ),
    "a comparison of no pair": (
        ["objective.kind=preference", "rollout.kind=group"],
        '`objective.kind` = "preference" compares two trajectories', ["objective.kind=preference"],
    ),
    "a guard off the flow": (
        [*GROUPS[1:], "objective.kind=guard"], '`objective.kind` = "guard" is defined on the noise',
        [*FLOW, *GROUPS[1:], "objective.kind=guard"],
    ),
    "a guard of pairs": (
        [*FLOW, "objective.kind=guard"], '`objective.kind` = "guard" needs groups',
        [*FLOW, "objective.kind=policy_gradient"],
    ),
    "a forward process of trees": (
        [*FORWARD, "rollout.kind=tree", "rollout.split_steps=[0]"], "learns from samples alone",
        [*FORWARD],
    ),
    "equal samples": (
        [*FORWARD, "rollout.shared_noise=true"], "`rollout.shared_noise` must be False",
        [*FLOW, *GROUPS, "rollout.shared_noise=true"],
    ),
    "a divergence of pairs": (
        ["objective.kl_weight=0.1"], "`objective.kl_weight` must be 0 with `objective.kind`",
        [*GROUPS, "objective.kl_weight=0.1"],
    ),
    "a divergence from nothing": (
        [*GROUPS, "objective.kl_weight=0.1", "model.finetune=full"],
        "`objective.kl_weight` needs a reference", [*GROUPS, "model.finetune=full"],
    ),
    "a step's length off the flow": (
        [*GROUPS, "objective.kl_form=without_step_length"],
        '`objective.kl_form` = "without_step_length" is defined',
        [*FLOW, *GROUPS, "objective.kl_form=without_step_length"],
    ),
    "steps of pairs weighed": (
        ["objective.step_weight=noise"], "`objective.step_weight`, `objective.train_share` and",
        [*GROUPS, "objective.step_weight=noise"],
    ),
    "steps of the forward process": (
        [*FORWARD, "objective.train_share=0.5"], "are for policy gradients; got `objective.kind`",
        [*FLOW, *GROUPS, "objective.train_share=0.5"],
    ),
    "an update a step of pairs": (
        ["optim.step_per_decision=true"], "are for policy gradients",
        [*GROUPS, "optim.step_per_decision=true"],
    ),
    "a window of the forward process": (
        [*FORWARD, "rollout.window=fixed"], "samples follow the ODE throughout; got 'fixed'",
        [*FLOW, *GROUPS, "rollout.window=fixed"],
    ),
    "branches left out": (
        [*BRANCHES, "objective.train_share=0.5"], "`objective.train_share` must be 1",
        [*BRANCHES, "objective.step_weight=noise"],
    ),
    "captions of pairs": (
        ["condition.enhancer=world", "objective.kind=policy_gradient"],
        '`condition.enhancer` = "world" needs groups', [*TREE, "condition.enhancer=world"],
    ),
    "captions of the forward process": (
        [*FORWARD, "condition.enhancer=world"], "the forward process no ratio",
        [*FLOW, *GROUPS, "condition.enhancer=world"],
    ),
    "captions of no file": (
        [*GROUPS, "condition.enhancer=stored"], "`condition.file` must be given",
        [*GROUPS, "condition.enhancer=stored", "condition.file=captions.jsonl"],
    ),
    "captions of no model": (
        [*GROUPS, "condition.enhancer=local"], "`condition.model` must be given",
        [*GROUPS, "condition.enhancer=local", "condition.model=folder"],
    ),
    "captions of no server": (
        [*GROUPS, "condition.enhancer=chat", "condition.model=one"], "`condition.url` must be",
        [*GROUPS, "condition.enhancer=chat", "condition.model=one", "condition.url=http://a/v1"],
    ),
    "a shuffle of one": (
        ["advantage.shuffle=true", "run.objects_per_iteration=1", "run.objects_per_slice=1"],
        "`run.objects_per_iteration` must be at least 2", ["advantage.shuffle=true"],
    ),
    "slices that leave a rest": (
        ["run.objects_per_slice=7"], "The nearest valid value is 6", ["run.objects_per_slice=6"],
    ),
    "noise preferred of a flow": (
        [*FLOW, "objective.kind=preference", "objective.preference_form=noise"],
        '`objective.preference_form` = "noise" is defined on the signal shares of a UNet',
        ["objective.kind=preference", "objective.preference_form=noise"],
    ),
    "Gaussians compared without their scale": (
        [*UNSCALED, *GROUPS[1:], "objective.kind=guard"],
        '`flow.density` must be "gaussian" with `objective.kind` = "guard"', [*UNSCALED, *GROUPS],
    ),
    "paths weighed without their scale": (
        [*UNSCALED, *TREE, "advantage.fusion_inverse_temperature=1"],
        '`flow.density` must be "gaussian" with a positive `advantage.fusion_inverse_temperature`',
        [*UNSCALED, *TREE],
    ),
    "a preference without a reference": (
        ["objective.kind=preference", "objective.reference=frozen", "model.finetune=full"],
        '`objective.reference` = "frozen" needs a reference, which is the network without its LoRA',
        ["objective.kind=preference", "objective.reference=frozen"],
    ),
    "a budget of parts": (
        ["run.sharding=full", "model.gradient_checkpointing=auto"],
        "must be true or false where `run.sharding`",
        ["run.sharding=full", "model.gradient_checkpointing=true"],
    ),
    "a budget of a compiled network": (
        ["model.compile=inductor", "model.gradient_checkpointing=auto"],
        "must be true or false where `model.compile` is 'inductor'",
        ["model.compile=inductor", "model.gradient_checkpointing=true"],
    ),
    "replayed slices that leave a rest": (
        ["run.replay_objects_per_slice=7"], "`run.replay_objects_per_slice` must divide",
        ["run.replay_objects_per_slice=2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_refuses_what_breaks_it_and_nothing_beside(rule):
    """With a sentence that names the setting."""
    broken, said, beside = RULES[rule]
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=broken, training=False)

    assert said in str(caught.value)
    assert str(caught.value).endswith(".")
    assert list(contradictions(load_config(overrides=beside, training=False))) == []


def test_every_sentence_has_its_case(monkeypatch):
    """Each that is written there is said of a configuration above."""
    monkeypatch.setattr("mvczigal_ref.config.train.contradictions", lambda config: ())
    told = [load_config(overrides=broken, training=False) for broken, _, _ in RULES.values()]
    said = "\n".join(sentence for config in told for sentence in contradictions(config))
    modules = (train, sampling_rules, method_rules, sharding, recomputation)
    yields = [
        [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and type(n.value) is str]
        for module in modules
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Yield)
    ]
    written = [max(texts, key=len) for texts in yields]

    assert len(written) >= 55
    assert [sentence for sentence in written if sentence not in said] == []


def test_each_setting_that_an_enhancer_lacks_is_named(monkeypatch):
    """A served model has two."""
    monkeypatch.setattr("mvczigal_ref.config.train.contradictions", lambda config: ())
    config = load_config(overrides=[*GROUPS, "condition.enhancer=chat"])
    first, second = contradictions(config)

    assert first.startswith("`condition.url` must be given")
    assert second.startswith("`condition.model` must be given")


def test_a_contradiction_is_found_wherever_a_configuration_is_made():
    """In code as in a file."""
    values = to_dict(TrainConfig())
    values["zigzag"]["steps"] = 9
    with pytest.raises(ConfigError, match=r"`zigzag\.steps` must be at most"):
        from_dict(values)


@pytest.mark.parametrize("whole", [10**5 - 1, 99991, 65536])
def test_the_nearest_divisor_is_found_at_once(whole):
    """Of large numbers and of primes."""
    size = 700
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    nearest = min(divisors, key=lambda n: abs(n - size))
    words = [f"run.objects_per_iteration={whole}", f"run.objects_per_slice={size}"]
    with pytest.raises(ConfigError, match=rf"The nearest valid value is {nearest}\."):
        load_config(overrides=words)


def test_a_multiplier_without_a_cap_may_begin_anywhere():
    """And the cap of 0, which would hold it at 0, is refused."""
    words = ["constraint.multiplier_max=none", "constraint.multiplier_init=600"]
    assert load_config(overrides=words).constraint.multiplier_max is None
    with pytest.raises(ConfigError, match=r"`constraint\.multiplier_max`: .* \"none\" for no cap"):
        load_config(overrides=["constraint.multiplier_max=0"])


# -- every setting -------------------------------------------------------------------------


SETTINGS_FILES = ("config/system", "config/method", "config/run")
SECTIONS = dataclasses.fields(TrainConfig)[1:]


@pytest.mark.parametrize("kind", [f.default_factory for f in SECTIONS] + [TrainConfig])
def test_settings_are_frozen_and_take_keywords_alone(kind):
    """Nobody changes a setting half-way."""
    field = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), field, None)
    with pytest.raises(ValueError, match="positional"):
        kind("tiny")


def test_every_setting_says_its_meaning():
    """The text that `--help` shows."""
    modules = [ast.parse((PACKAGE / f"{name}.py").read_text()) for name in SETTINGS_FILES]
    bodies = [node for module in modules for node in module.body]
    for section in (node for node in bodies if isinstance(node, ast.ClassDef)):
        fields = [node for node in section.body if isinstance(node, ast.AnnAssign)]
        assert fields
        for field in fields:
            text = section.body[section.body.index(field) + 1]
            assert isinstance(text, ast.Expr)
            assert len(text.value.value) > 10


def test_unknown_keywords_are_refused_in_code():
    """Not accepted and dropped."""
    with pytest.raises(ValueError, match="rank"):
        ModelConfig(rank=4)
    with pytest.raises(ValueError, match="greater"):
        RunConfig(iterations=0)


@pytest.mark.parametrize(
    "words",
    [
        ["zigzag.steps=4"],
        ["zigzag.steps=0"],
        ["sampler.num_steps=1", "objective.train_last_action=true"],
        ["sampler.num_steps=1", "sampler.kind=ddim", "objective.train_last_action=true"],
        ["constraint.multiplier_init=5"],
        ["run.replay_objects_per_slice=24"],
        ["guard.every=2", "guard.diversity=true"],
        ["guard.every=2", "guard.joint=[hyperscore]", "guard.noises=1"],
        ["guard.every=2", "advantage.mode=per_view"],
        ["advantage.mode=weighted_sum", "advantage.joint_weight=1"],
        ["constraint.threshold_decay=0"],
    ],
)
def test_the_ends_of_a_range_are_valid(words):
    """Full-step zigzag, a single trained action, a fixed threshold."""
    load_config(overrides=words)
