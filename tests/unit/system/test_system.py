"""`system`: laws, errors."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from mvczigal_ref.cameras import PAPER_RIG
from mvczigal_ref.config import from_dict, load_config
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.models import placement
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.lora_weights import LoraWeights, write_peft_files
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.recipes import recipe
from mvczigal_ref.reward import registry
from mvczigal_ref.reward.tiny_world import WorldJointView, WorldPerView
from mvczigal_ref.system import build_system, with_sampling
from mvczigal_ref.system import system as system_module
from mvczigal_ref.system.networks import DTYPES
from mvczigal_ref.system.offloaded import Offloaded
from mvczigal_ref.system.preparation import place_parts
from mvczigal_ref.system.scorers import build_scorers, no_scorers
from mvczigal_ref.tiny_world.scene import WORLD_RIG
from mvczigal_ref.training.tracking import StageTimer
from tests.analytic_system import joint_score, per_view_score
from tests.unit.models.flow_small import fresh_sd3
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
    """Give the smallest pipeline, its network and autoencoder copies of their own."""
    whole = _originals()
    return replace(whole, policy=deepcopy(whole.policy), vae=deepcopy(whole.vae))


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


@pytest.mark.parametrize("free", [0, 2**40])
def test_memory_that_is_short_is_spared_by_itself(free, monkeypatch):
    """With the bits of a network that keeps all of its activations, or computes all again."""
    monkeypatch.setattr("mvczigal_ref.system.preparation.free_bytes", lambda device: free)
    learnt, calls = [], []
    for checkpointing in ("auto", free == 0):
        config, system = build(model={"gradient_checkpointing": checkpointing})
        seen: list[object] = []
        block = system.components.policy.unet.up_blocks[0].resnets[0]
        block.register_forward_pre_hook(lambda *call, seen=seen: seen.append(call[0]))
        assert learn(config, system)["replay_deviation"] == 0.0
        learnt.append(torch.cat([p.flatten() for p in system.trained().values()]))
        calls.append(len(seen))

    assert torch.equal(*learnt)
    assert calls[0] == calls[1] + 1  # once to measure


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
     {"finetune": "full"}, {"azimuths": [0.0, 30.0]}, {"elevation": 30.0}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_model_setting_changes_what_is_learnt(change):
    """One that does nothing would be a fault."""
    plain, changed = learnt_plainly(), learnt_with(**change)

    assert changed["loss"] != plain["loss"]
    assert changed["grad_norm"] != plain["grad_norm"]


@pytest.mark.parametrize("change", [
    {"offload_frozen": True}, {"storage_device": "cpu"}, {"views_per_decode": 4},
    {"channels_last": True}, {"tf32": True},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_where_and_how_networks_compute_changes_rounding_at_most(change):
    """The first ratio is exactly 1; only layouts and slices of convolutions round otherwise."""
    plain, changed = learnt_plainly(), learnt_with(**change)
    rounded = {"channels_last", "views_per_decode"} & change.keys()

    assert changed["replay_deviation"] == 0.0
    for name in plain:
        assert changed[name] == pytest.approx(plain[name], rel=1e-4 if rounded else 0), name


def test_the_network_that_trains_is_compiled():
    """And nothing where nothing is asked for; what compiling does is `placement`'s test."""
    for backend in ("none", "eager"):
        components = small_components()
        plain = components.policy.unet.forward
        build(components, model={"compile": backend})
        compiled = components.policy.unet.forward

        assert (getattr(compiled, "__wrapped__", None) == plain) == (backend != "none")


WORK = torch.device("cpu", 0)  # equal to no tensor's device, and yet one to compute on


@pytest.fixture
def where(monkeypatch):
    """Tell by what modules were last told in which of two places they are."""
    told = {}

    def tell(module, *given, **named):
        device = named.get("device", given[0] if given else None)
        if isinstance(device, str | torch.device):
            told.update(dict.fromkeys(module.modules(), torch.device(device)))
        return original(module, *given, **named)

    original = torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", tell)
    monkeypatch.setattr(placement, "_is_on", lambda part, device: told.get(part, CPU) == device)
    monkeypatch.setattr(system_module, "device_of", lambda network: told[network])
    monkeypatch.setattr(MultiViewUNet, "device", property(lambda policy: told[policy.unet]))
    return told


@pytest.mark.parametrize("offload", [False, True])
def test_frozen_parts_are_on_the_device_while_they_work(where, offload):
    """All others but the UNet wait on the CPU, before and after, where that is asked for."""
    at_work = []
    components = small_components()
    frozen = {
        "first": components.text_encoder, "second": components.text_encoder_2,
        "vae": components.vae.decoder, "cameras": components.policy.camera_encoder,
    }  # fmt: skip
    for name, part in frozen.items():
        part.register_forward_hook(lambda part, *_, name=name: at_work.append((name, where[part])))
    config = config_of(
        model={"offload_frozen": offload, "views_per_decode": 2},
        reward={"per_view": "quick", "joint": "quick_joint"},
    )
    system = build_system(config, device=WORK, components=components)
    home = CPU if offload else WORK

    def all_wait():
        return {where[part] for part in frozen.values()} == {home}

    assert all_wait()
    assert where[components.policy.unet] == WORK
    for _ in range(2):
        system.conditioning(["a red cube", "a can"])
        assert all_wait()
    system.images(torch.zeros(1, 6, 4, 8, 8))
    assert all_wait()
    assert at_work == [(name, WORK) for name in (
        "cameras", *["first", "second"] * 2, *["vae"] * 3,
    )]  # fmt: skip


class Judge:
    """A scorer with a network, which notes where that is."""

    def __init__(self, device):
        self.seen = [str(device)]

    def to(self, device):
        """Go there."""
        self.seen.append(str(device))

    def __call__(self, images, prompts):
        """Score nothing."""
        self.seen.append("scores")
        return images.mean((2, 3, 4))

    def image_features(self, images):
        """Describe nothing."""
        self.seen.append("describes")
        return images.mean((3, 4))


def test_scorers_with_networks_are_on_their_device_while_they_judge(monkeypatch):
    """Built on the CPU, the watched ones too; a scorer without a network is left as it is."""
    monkeypatch.setitem(registry.PER_VIEW, "judge", lambda options: Judge(options.device))
    sections = {
        "reward": {"per_view": "judge", "joint": "quick_joint", "device": "meta"},
        "guard": {"every": 1, "per_view": ["quick"]},
    }
    images = torch.rand(1, 6, 3, 8, 8)
    plain = build_scorers(config_of(**sections), device=CPU)["per_view"]
    moved = build_scorers(config_of(**sections, model={"offload_frozen": True}), device=CPU)
    judges = [mixture.scorers["judge"] for mixture in (plain, moved["per_view"])]

    assert torch.equal(*(mixture(images, ["a"]) for mixture in (plain, moved["per_view"])))
    assert torch.equal(*(judge.image_features(images) for judge in judges))
    assert judges[0].seen == ["meta", "scores", "describes"]
    assert judges[1].scorer.seen == ["cpu", "meta", "scores", "cpu", "meta", "describes", "cpu"]
    assert moved["watched_per_view"]["quick"] is per_view_score
    assert not hasattr(Offloaded(print, CPU), "image_features")


def test_latents_wait_on_the_cpu(where):
    """Noise and grids are made there, and the network is called through hooks that fetch them."""
    reward = {"per_view": "quick", "joint": "quick_joint"}
    for storage, expected in (("device", WORK), ("cpu", CPU)):
        components = small_components()
        config = config_of(model={"storage_device": storage}, reward=reward)
        system = build_system(config, device=WORK, components=components)

        assert system.device == expected
        assert system.network_device == WORK
        assert bool(components.policy._forward_pre_hooks) == (storage == "cpu")


@pytest.mark.parametrize("size", [1, 4, 5, 12, 99])
def test_slices_of_decoding_change_no_image(size):
    """The last may be smaller. Convolutions of other batches may round otherwise."""
    latent = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    system, calls = small_system(), []
    hook = system.components.vae.decoder.register_forward_hook(
        lambda _module, given, _output: calls.append(len(given[0]))
    )
    whole = system.images(latent)
    cut = replace(system, views_per_decode=size).images(latent)
    hook.remove()

    assert calls == [12, *[min(size, 12 - first) for first in range(0, 12, size)]]
    assert torch.equal(whole, cut) or (whole - cut).abs().max() <= 4e-6
    assert not cut.requires_grad


@pytest.mark.parametrize(
    ("layout", "last"), [(True, True), ("auto", True), (False, False)], ids=str
)
def test_a_layout_reaches_the_convolutions(layout, last):
    """Of the network and of the autoencoder; "auto" means channels last on a CPU."""
    _, system = build(model={"channels_last": layout})
    parts = system.components
    for weight in (parts.policy.unet.conv_in.weight, parts.vae.decoder.conv_in.weight):
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        assert weight.is_contiguous() != last


@pytest.mark.parametrize(("device", "cut"), [("meta", False), ("cpu", True)])
def test_an_automatic_layout_is_the_usual_one_elsewhere(device, cut):
    """On an accelerator nothing was measured, and cut weights have no other layout."""
    config = from_dict({"model": {"channels_last": "auto"}})
    parts = place_parts(config, fresh_components(), torch.device(device), cut=cut)

    assert parts.policy.unet.conv_in.weight.is_contiguous()


def test_cameras_stand_where_the_settings_say():
    """As many as there are angles, in the rig's frame; the tiny world's judges refuse them."""
    placed = {"azimuths": [0.0, 45.0, 90.0], "elevation": 20.0}
    _, system = build(model=placed)
    rig = system.backbone.rig

    assert (rig.azimuth_deg, rig.elevation_deg) == ((0.0, 45.0, 90.0), (20.0,) * 3)
    assert (rig.half_width, rig.distance) == (WORLD_RIG.half_width, WORLD_RIG.distance[:3])
    assert system.latent_shape[0] == system.conditioning(["a can"]).num_views == 3
    for wrong in ({"per_view": "world.per_view"}, {"joint": "world.joint"}):
        with pytest.raises(ConfigError, match=r"scorer 'world\..*' knows only the cameras"):
            build(model=placed, reward=wrong)
    build(model={"azimuths": list(WORLD_RIG.azimuth_deg)}, reward={"joint": "world.joint"})


@pytest.mark.parametrize("words", [(), ("flow.shift=5.0",)])
def test_stable_diffusion_3_is_sampled_on_the_grid_of_its_scheduler(words):
    """Whose lowest level is shifted with the others; another shift is asked of it alike."""
    config = load_config(
        overrides=[
            "model.network=flow", "sampler.kind=flow", "reward.joint=per_view",
            "advantage.mode=per_view", "objective.kind=policy_gradient", "rollout.kind=group",
            "sampler.num_steps=5", "sampler.evaluation_steps=7", *words,
        ]
    )  # fmt: skip
    system = build_system(config, device=CPU, components=fresh_sd3().to(dtype=torch.float32))
    for steps, sampler in ((5, system.sampler), (7, system.evaluation_sampler)):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0 if words else 3.0)
        scheduler.set_timesteps(steps)

        torch.testing.assert_close(sampler.sigma_t, scheduler.sigmas[:-1], rtol=1e-5, atol=0.0)


def test_a_system_is_sampled_with_other_cameras_and_grids():
    """Of the same networks, with cameras encoded anew."""
    system, config = (
        small_system(),
        config_of(model={"azimuths": [10.0], "views_per_decode": 2}, sampler={"num_steps": 3}),
    )
    other = with_sampling(system, config)

    assert (other.num_views, other.views_per_decode, other.sampler.num_steps) == (1, 2, 3)
    assert other.camera_features[0].shape[0] == 1
    assert other.policy is system.policy
    same = with_sampling(system, config_of())
    assert same.camera_features is system.camera_features


def test_a_system_is_sampled_with_another_guidance():
    """Where that doubles the batch it brings its own negative prompt."""
    doubling = tiny_components(
        seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1), time_cond_proj_dim=None
    )
    _, system = build(doubling, sampler={"guidance_scale": 1.0})
    guided = {"guidance_scale": 2.0, "negative_prompt": "a can"}
    other = with_sampling(system, config_of(sampler=guided))

    assert (system.negative_prompt, other.negative_prompt) == (None, "a can")
    assert other.conditioning(["a red cube"]).negative_prompt_embeds is not None


def test_a_trained_lora_takes_the_place_of_a_new_one(tmp_path):
    """Of its own rank and scale; one that does not fit is refused by name."""
    _, trained = build(model={"lora_rank": 3, "lora_alpha": 6.0})
    with torch.no_grad():
        for parameter in trained.trained().values():
            parameter.add_(0.1)
    write_peft_files(LoraWeights.of(trained.components.policy.unet), tmp_path / "lora")
    config, reward = config_of(), no_scorers()
    loaded = build_system(
        config, device=CPU, components=small_components(), scorers=reward, lora=tmp_path / "lora"
    )
    kept = {name: p.detach() for name, p in loaded.trained().items()}

    assert kept.keys() == trained.trained().keys()
    assert all(torch.equal(kept[name], p) for name, p in trained.trained().items())
    with pytest.raises(CheckpointError, match="`source` must be a LoRA's file, or a folder"):
        build_system(
            config, device=CPU, components=small_components(), scorers=reward, lora=tmp_path
        )


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


def test_the_last_prompts_are_remembered(monkeypatch):
    """As many as allowed, so that a long list of prompts does not fill the memory."""
    monkeypatch.setattr(system_module, "REMEMBERED", 3)
    system = replace(small_system(), prompt_cache={})
    every = system.conditioning(["a", "b", "c", "d", "e"])
    assert list(system.prompt_cache) == ["c", "d", "e"]

    again = system.conditioning(["a", "e"])
    assert torch.equal(again.prompt_embeds, every.prompt_embeds[[0, 4]])
    assert list(system.prompt_cache) == ["d", "e", "a"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_flow_s_parts_are_loaded_in_its_dtype(tmp_path, dtype):
    """Text encoders too, the largest of them; the autoencoder stays exact."""
    tiny_flow_components(seed=0, num_heads=1, num_layers=1, num_single_layers=1).save(tmp_path)
    config = load_config(recipe("tiny_flow_grpo"), overrides=[
        f"model.dtype={dtype}", f"model.weights={tmp_path}", "sampler.num_steps=2",
    ])  # fmt: skip
    system = build_system(config, device=CPU)
    encoders = {p.dtype for e in system.components.text_encoders for p in e.parameters()}

    assert encoders == {DTYPES[dtype]}
    assert next(system.components.vae.parameters()).dtype == torch.float32
    conditioning = system.conditioning(["a red cube"])
    latent = torch.zeros(system.latent_shape)
    output = system.policy(latent, torch.tensor(500.0), conditioning, guidance_scale=1.0)
    assert output.dtype == torch.float32
    assert output.isfinite().all()


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
