"""`system`: laws, errors."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch

from mvczigal_ref.cameras import PAPER_RIG
from mvczigal_ref.config import from_dict
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.reward import registry
from mvczigal_ref.reward.world import WorldJointView, WorldPerView
from mvczigal_ref.scorers import build_scorers, no_scorers
from mvczigal_ref.system import build_system
from mvczigal_ref.tracking import StageTimer
from mvczigal_ref.world.scene import WORLD_RIG
from tests.analytic_system import joint_score, per_view_score
from tests.unit.models.small import fresh_components

CPU = torch.device("cpu")


def config_of(**sections):
    """Configure the smallest run; sections are given as dictionaries."""
    small = {
        "model": {"lora_rank": 2, "lora_alpha": 2.0},
        "sampler": {"num_steps": 2, "guidance_scale": 2.0},
        "optim": {"optimizer_steps_per_epoch": 1},
        "run": {"objects_per_iteration": 1, "objects_per_slice": 1},
    }
    names = {*small, *sections}
    return from_dict({name: {**small.get(name, {}), **sections.get(name, {})} for name in names})


@pytest.fixture(autouse=True)
def quick_scorers(monkeypatch):
    """Offer scorers that cost nothing, beside the world's."""
    monkeypatch.setitem(registry.PER_VIEW, "quick", lambda options: per_view_score)
    monkeypatch.setitem(registry.JOINT, "quick_joint", lambda options: joint_score)


def build(components=None, **sections):
    """Build a system of a small network, with scorers that cost nothing."""
    sections["reward"] = {"per_view": "quick", "joint": "quick_joint", **sections.get("reward", {})}
    config = config_of(**sections)
    return config, build_system(config, device=CPU, components=components or small_components())


@cache
def _originals():
    return fresh_components().to(dtype=torch.float32)


def small_components():
    """Give the smallest pipeline, its network a copy of its own."""
    return replace(_originals(), policy=deepcopy(_originals().policy))


@cache
def small_system():
    """Build one that no test changes."""
    return build()[1]


def learn(config, system, iterations=1, lr=1e-2):
    """Run some iterations; return the metrics of the last."""
    optimizer = torch.optim.AdamW(list(system.trained().values()), lr=lr)
    constraint = ConstraintState(multiplier=1.0, threshold=2.0, initialised=True)
    for index in range(iterations):
        result = run_iteration(
            system,
            optimizer,
            constraint,
            ["prompt 1"],
            iteration=index,
            config=config,
            world=World(),
            timer=StageTimer(),
        )
        constraint = result.constraint
    return result.metrics


# -- laws --------------------------------------------------------------------------------


def test_a_lora_is_all_that_trains():
    """Under its published names, in fp32, of the rank that was asked for, drawn by the seed."""
    components = small_components()
    frozen = sum(1 for _ in components.policy.parameters())
    _, system = build(components, model={"lora_rank": 3, "lora_alpha": 6.0})
    trained = system.trained()
    learnt = {p for p in components.policy.parameters() if p.requires_grad}

    assert learnt == set(trained.values())
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert {p.dtype for p in learnt} == {torch.float32}
    assert {min(p.shape) for p in learnt} == {3}
    assert len(list(components.policy.parameters())) == frozen + len(learnt)
    scales = [m.scaling["default"] for m in components.policy.modules() if hasattr(m, "scaling")]
    assert set(scales) == {2.0}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_draws_the_lora(seed):
    """The same seed the same values."""
    values = [
        torch.cat([p.flatten() for p in build(run={"seed": wanted})[1].trained().values()])
        for wanted in (0, seed)
    ]

    assert torch.equal(*values) == (seed == 0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_network_computes_in_its_dtype(dtype):
    """What is frozen, camera features included; a LoRA stays fp32."""
    _, system = build(model={"dtype": dtype})
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    frozen = {p.dtype for p in system.policy.parameters() if not p.requires_grad}

    assert frozen == {wanted}
    assert {feature.dtype for feature in system.camera_features} == {wanted}
    assert {p.dtype for p in system.trained().values()} == {torch.float32}


def test_full_finetuning_trains_the_whole_unet():
    """Row attention included, and nothing else; one iteration moves all that takes part."""
    components = small_components()
    before = {n: p.detach().clone() for n, p in components.policy.named_parameters()}
    config, system = build(components, model={"finetune": "full"})
    trained = system.trained()
    learn(config, system)
    after = dict(components.policy.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}

    assert set(trained) == {name for name in before if name.startswith("unet.")}
    assert moved <= set(trained)
    assert any("to_q_mv" in name for name in moved)
    # What stays has no gradient here: nothing that is multiplied by it differs from zero.
    assert len(moved) > 0.9 * len(trained)
    assert all(p.grad is None for p in components.vae.parameters())


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_an_iteration_runs_on_the_real_wiring(dtype):
    """The first ratio is exactly 1, or it would stop; recomputing activations changes no bit."""
    learnt, calls = [], []
    for checkpointing in (False, True):
        told = {"dtype": dtype, "storage_dtype": dtype, "gradient_checkpointing": checkpointing}
        config, system = build(model=told)
        seen: list[object] = []
        block = system.components.policy.unet.up_blocks[0].resnets[0]
        block.register_forward_pre_hook(lambda *call, seen=seen: seen.append(call[0]))
        metrics = learn(config, system)
        calls.append(len(seen))
        learnt.append(torch.cat([p.flatten() for p in system.trained().values()]))

        assert not system.policy.training
        assert metrics["replay_deviation"] == 0.0
        assert metrics["grad_norm"] > 0.0
        # B starts at zero, and is the first to learn.
        assert any(p.abs().max() > 0 for n, p in system.trained().items() if ".lora_B." in n)
    assert torch.equal(*learnt)
    # Five calls sample a pair of two steps; one step of either arm is replayed.
    assert calls == [5 + 2, 5 + 2 + 2]


def learnt_with(**told):
    """Give the metrics of an iteration under some settings of the model, a LoRA's B not zero."""
    config, system = build(model=told)
    with torch.no_grad():
        for name, parameter in system.trained().items():
            if ".lora_B." in name:
                parameter.fill_(0.1)
    return learn(config, system)


@cache
def learnt_plainly():
    """Learn once under the settings that each change is compared with."""
    return learnt_with()


# The two rigs differ in the size of their frame alone, of which camera maps know nothing.
@pytest.mark.parametrize(
    "change",
    [{"image_size": 16}, {"lora_rank": 3}, {"lora_alpha": 4.0}, {"dtype": "bf16"},
     {"finetune": "full"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_model_setting_changes_what_is_learnt(change):
    """One that does nothing would be a fault."""
    plain, changed = learnt_plainly(), learnt_with(**change)

    assert changed["loss"] != plain["loss"]
    assert changed["grad_norm"] != plain["grad_norm"]


def test_weights_come_from_their_folder(tmp_path):
    """What was saved is what is built."""
    components = small_components()
    components.save(tmp_path / "weights")
    config = config_of(
        model={"weights": str(tmp_path / "weights")},
        reward={"per_view": "quick", "joint": "quick_joint"},
    )
    system = build_system(config, device=CPU)

    saved = components.policy.unet.state_dict()
    built = {
        name.replace(".base_layer", ""): value
        for name, value in system.components.policy.unet.state_dict().items()
        if "lora" not in name
    }
    assert saved.keys() == built.keys()
    assert all(torch.equal(value, built[name]) for name, value in saved.items())


def test_scorers_are_those_of_their_names(monkeypatch):
    """Each looked up under its own setting, on its own device, with its own weight."""
    asked = []
    monkeypatch.setitem(registry.PER_VIEW, "other", lambda options: asked.append(options) or print)
    system = small_system()
    assert system.per_view.scorers == {"quick": per_view_score}
    assert system.joint.scorers == {"quick_joint": joint_score}
    assert (system.watched_per_view, system.watched_joint) == ({}, {})
    _, system = build(
        reward={"per_view": {"other": 2.0, "quick": -1.0}, "weights": {"other": "a/b"}},
        guard={"every": 1, "per_view": ["world.per_view"], "joint": ["world.joint"]},
    )

    assert system.per_view.scorers == {"other": print, "quick": per_view_score}
    assert system.per_view.weights == {"other": 2.0, "quick": -1.0}
    assert [(o.weights, o.device, o.num_views) for o in asked] == [("a/b", CPU, 6)]
    assert isinstance(system.watched_per_view["world.per_view"], WorldPerView)
    assert isinstance(system.watched_joint["world.joint"], WorldJointView)


def test_a_system_that_only_samples_needs_no_scorer(monkeypatch):
    """None is built, and nothing can be asked."""
    monkeypatch.setitem(registry.PER_VIEW, "quick", lambda options: pytest.fail("it was built"))
    config = config_of(reward={"per_view": "quick", "joint": "quick_joint"})
    system = build_system(config, device=CPU, components=small_components(), scorers=no_scorers())

    with pytest.raises(ValueError, match="`tables` must hold at least one reward table"):
        system.joint(torch.rand(1, 6, 3, 8, 8), ["a cube"])


def test_what_is_watched_is_built_for_the_guard_alone():
    """Neither without one, nor where nobody will look."""
    for every, watched, names in ((0, True, []), (1, False, []), (1, True, ["quick_joint"])):
        config = config_of(guard={"every": every, "joint": ["quick_joint"]})
        assert [*build_scorers(config, device=CPU, watched=watched)["watched_joint"]] == names


def test_cameras_are_the_rigs():
    """Encoded once, at the images' size."""
    for name, rig in (("world", WORLD_RIG), ("paper", PAPER_RIG)):
        _, system = build(model={"rig": name})
        expected = system.components.encode_rig(rig, image_size=32)

        assert system.backbone.rig == rig
        assert all(torch.equal(a, b) for a, b in zip(system.camera_features, expected, strict=True))


@pytest.mark.parametrize("size", [16, 32])
def test_latents_are_as_large_as_the_autoencoder_makes_them(size):
    """Six views of four channels; two halvings of the image."""
    _, system = build(model={"image_size": size})
    encoded = system.components.encode(torch.zeros(1, 3, size, size))

    assert system.latent_shape == (6, 4, size // 4, size // 4)
    assert system.latent_shape[1:] == tuple(encoded.shape[1:])


def test_conditioning_is_that_of_the_components():
    """Text, sizes and cameras as built from scratch, but each prompt encoded once."""
    system = small_system()
    prompts = ["a red cube", "a blue ball", "a red cube"]
    conditioning = system.conditioning(prompts)
    expected = system.components.build_conditioning(prompts, WORLD_RIG, image_size=32)

    # A prompt's features may differ by rounding with its company.
    torch.testing.assert_close(conditioning.prompt_embeds, expected.prompt_embeds)
    torch.testing.assert_close(conditioning.pooled_prompt_embeds, expected.pooled_prompt_embeds)
    assert torch.equal(conditioning.time_ids, expected.time_ids.float())
    assert conditioning.num_views == 6
    assert conditioning.camera_features is system.camera_features


def test_a_prompts_features_do_not_depend_on_its_company():
    """Bit for bit, in any order, and without encoding it again."""
    _, system = build()
    alone = system.conditioning(["a blue ball"])
    together = system.conditioning(["a can", "a blue ball", "a can"])

    assert torch.equal(together.prompt_embeds[1], alone.prompt_embeds[0])
    assert torch.equal(together.pooled_prompt_embeds[1], alone.pooled_prompt_embeds[0])
    assert set(system.prompt_cache) == {"a blue ball", "a can"}
    known = system.prompt_cache["a can"][0]
    assert system.conditioning(["a can"]).prompt_embeds is not None
    assert system.prompt_cache["a can"][0] is known


def test_images_are_decoded_latents():
    """fp32 in [0, 1], without a graph."""
    system = small_system()
    latent = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = system.images(latent.requires_grad_())

    assert images.shape == (2, 6, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert not images.requires_grad
    torch.testing.assert_close(images, system.components.decode(latent).detach())


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rejects_training_half_precision_weights(dtype):
    """Before the network is touched."""
    message = f'`model.dtype` must be "fp32" where `model.finetune` is "full"; got {dtype!r}'
    with pytest.raises(ConfigError, match=message):
        build(model={"finetune": "full", "dtype": dtype})


def test_rejects_unknown_scorers_and_missing_weights(tmp_path):
    """By name."""
    with pytest.raises(ConfigError, match=r"`reward\.joint` names the unknown scorer 'smoothness'"):
        build(reward={"joint": "smoothness"})
    config = config_of(model={"weights": str(tmp_path)})
    with pytest.raises(CheckpointError, match="must hold every part of a pipeline"):
        build_system(config, device=CPU)


def test_rejects_no_prompts():
    """There is nothing to condition on."""
    with pytest.raises(ValueError, match="`prompts` must hold at least one prompt; got none"):
        small_system().conditioning([])
