"""Plans against real iterations of their shapes, and at full size against what others counted."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mvczigal_ref.config import load_config
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.method import sample as sampling
from mvczigal_ref.models.components import load_components
from mvczigal_ref.preflight.costs import Costs, SampledCall
from mvczigal_ref.preflight.measure import storage_bytes
from mvczigal_ref.preflight.meta_networks import meta_components
from mvczigal_ref.preflight.plan import plan
from mvczigal_ref.recipes import recipe
from mvczigal_ref.records import Trajectory
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.system import build_system
from mvczigal_ref.system.scorers import no_scorers
from mvczigal_ref.training.tracking import StageTimer
from mvczigal_ref.update.replay import replay_log_prob
from tests.integration.runs import cases
from tests.unit.preflight.small import config_of

# Operations of one UNet forward of 6 views at 768 pixels [FLOP], and sizes [parameters].
COUNTED = 25.5e12
UNET, CAMERA_ENCODER, LORA = 2_977_228_804, 81_240_000, 33_873_920
TEXT_ENCODERS, VAE = 123_060_480 + 694_659_840, 83_653_863

planned = cache(plan)
"""Each plan is made once."""

# Cross-attention: layers by width. Text has 77 tokens of 2048 numbers, a LoRA rank 16.
CROSS = {1280: 60, 640: 10}


def mixture(name, scorer):
    """Let a scorer go by a name."""
    return Mixture(scorers={name: scorer}, weights={name: 1.0})


class Watched:
    """A system whose network and scorers note how they are used."""

    def __init__(self, config):
        components = load_components(config.model.weights)
        system = build_system(config, device=torch.device("cpu"), components=components)
        self.seen = Counter()
        scorers = {
            "per_view": mixture("world.per_view", self.scorer("per_view")),
            "joint": mixture("world.joint", self.scorer("joint")),
        }
        self.system = replace(system, **scorers)
        self.config, self.inside = config, False
        policy = system.components.policy
        policy.register_forward_pre_hook(self.enter)
        policy.register_forward_hook(self.leave)
        policy.unet.mid_block.resnets[1].register_forward_pre_hook(self.block)
        self.optimizer = torch.optim.AdamW(list(self.system.trained().values()), lr=1e-4)

    def scorer(self, name):
        """Score cheaply and count."""

        def score(images, prompts):
            self.seen[name] += 1
            self.seen["images"] += images.shape[0] * images.shape[1] if name == "joint" else 0
            table = images.mean((2, 3, 4))
            return table if name == "per_view" else table.mean(1)

        return score

    def enter(self, *_):
        self.inside = True
        self.seen["with gradient" if torch.is_grad_enabled() else "without"] += 1

    def leave(self, _module, _inputs, output):
        self.inside = False
        if output.requires_grad:
            output.register_hook(lambda _: self.seen.update(["backward"]))

    def block(self, *_):
        self.seen["recompute"] += not self.inside

    def iterate(self, index=0):
        """Run one real iteration."""
        prompts = ["a red cube"] * self.config.run.objects_per_iteration
        return run_iteration(
            self.system, self.optimizer, ConstraintState(), prompts, iteration=index,
            config=self.config, world=World(), timer=StageTimer(),
        )  # fmt: skip


# -- oracle: a real iteration -----------------------------------------------------------------

RUNS = {
    "checkpointed, last action too": {
        "model": {"gradient_checkpointing": True}, "objective": {"train_last_action": True},
    },
    "uneven pieces, two rounds": {
        "sampler": {"num_steps": 3},
        "zigzag": {"steps": 2, "rounds": 2},
        "objective": {"train_last_action": True},
        "optim": {"steps_per_microbatch": 2},
        "run": {
            "objects_per_iteration": 6, "objects_per_slice": 3, "replay_objects_per_slice": 2,
        },
    },
    "two standard arms, doubled batch, two epochs": {
        "guidance_width": None,
        "sampler": {"kind": "ddim"},
        "objective": {"pairing": "standard"},
        "optim": {"epochs_per_iteration": 2},
    },
}  # fmt: skip


@pytest.mark.parametrize("sections", cases(RUNS))
def test_counts_are_those_of_a_real_iteration(sections, monkeypatch):
    """Network, scorer and optimiser calls, images and stored bytes, exactly."""
    config = config_of(**sections)
    found, watched, pairs = planned(config), Watched(config), []
    original = sampling.paired_rollout

    def spy(*arguments, **named):
        pairs.append(original(*arguments, **named))
        return pairs[-1]

    monkeypatch.setattr(sampling, "paired_rollout", spy)
    changes = []
    watched.optimizer.register_step_post_hook(lambda *_: changes.append(1))
    watched.system.conditioning(["a red cube"])  # a run encodes a prompt once, not every iteration
    watched.iterate()
    seen, calls = watched.seen, found.calls

    assert (seen["without"], seen["with gradient"]) == (calls.rollout + calls.value, calls.replay)
    assert (seen["backward"], seen["recompute"]) == (calls.backward, calls.recompute)
    assert found.scorer_calls == {"world.per_view": seen["per_view"], "world.joint": seen["joint"]}
    assert (len(changes), seen["images"]) == (found.optimizer_steps, found.images)
    stored = [
        getattr(arm, part)
        for pair in pairs
        for arm in (pair.zigzag, pair.standard)
        for part in ("state", "action", "log_prob", "denoised")
    ]
    assert storage_bytes(stored) == found.memory.rollouts


EVEN = {name: sections for name, sections in RUNS.items() if "uneven" not in name}


@pytest.mark.parametrize("sections", cases(EVEN))
def test_operations_are_those_of_a_real_iteration(sections):
    """Within 1 %: on the CPU attention's scores are stored, so that no backward pass repeats them.

    Torch's own counter does not see its fused attention for CPUs.
    """
    config = config_of(**sections)
    found, watched = planned(config), Watched(config)
    watched.system.conditioning(["a red cube"])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        watched.iterate()

    assert counter.get_total_flops() == pytest.approx(found.flops.total, rel=0.01)


@pytest.mark.parametrize("finetune", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_weights_are_those_of_real_networks(finetune):
    """Parameters by part, their bytes, the gradients' and the optimiser's, exactly."""
    config = config_of(model={"finetune": finetune})
    found, watched = planned(config), Watched(config)
    parts, trained = watched.system.components, list(watched.system.trained().values())
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    watched.optimizer.step()

    def bytes_of(*modules):
        return storage_bytes([t for m in modules for t in (*m.parameters(), *m.buffers())])

    moments = [t for state in watched.optimizer.state.values() for t in state.values() if t.ndim]
    assert found.memory.optimizer == storage_bytes(moments)
    assert found.memory.trained == found.memory.gradients == storage_bytes(trained)
    assert found.memory.unet + found.memory.trained == bytes_of(parts.policy)
    assert found.memory.text_encoders == bytes_of(parts.text_encoder, parts.text_encoder_2)
    assert found.memory.vae == bytes_of(parts.vae)
    assert found.memory.features == storage_bytes(watched.system.camera_features)
    assert found.parameters.trained == sum(p.numel() for p in trained)
    counts = found.parameters
    assert counts.unet + counts.camera_encoder + counts.trained == sum(
        p.numel() for p in parts.policy.parameters()
    )


@contextmanager
def saved_bytes(known):
    """Measure what autograd keeps, by its own hooks: nothing of the plan's is used."""
    kept, own = {}, {t.untyped_storage()._cdata for t in known}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    total = []
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(storage.nbytes() for storage in kept.values()))


def test_activations_are_those_that_autograd_keeps():
    """Of one microbatch on the CPU, within 3 %: the graph's own output and scalars differ."""
    config = config_of()
    found, system = planned(config), Watched(config).system
    told = system.conditioning(["a red cube"])
    state = torch.zeros(2, 1, *system.latent_shape)
    trajectory = Trajectory(
        state=state, action=state, log_prob=state[..., 0, 0, 0], denoised=state[0]
    )
    policy = system.components.policy
    with saved_bytes([*policy.parameters(), *policy.buffers(), state]) as total:
        kept = replay_log_prob(policy, system.sampler, trajectory, [0], told, guidance_scale=2.0)
    del kept

    assert total[0] == pytest.approx(found.memory.saved_plain, rel=0.03)


# -- the published size -----------------------------------------------------------------


@pytest.mark.slow
def test_one_object_costs_what_was_counted():
    """Within 0.3 %, once text is projected for each of 6 views as in the count, not once."""
    config = load_config(recipe("lcm_sdxl_mate3d"))
    components, source = meta_components(config)
    meta = torch.device("meta")
    system = build_system(config, device=meta, components=components, scorers=no_scorers())
    flops, peak = Costs(system=system, config=config).sampled(SampledCall(1, 7.0))
    text = sum(
        layers * 2 * 2 * 77 * (2048 * width + 16 * (2048 + width))
        for width, layers in CROSS.items()
    )
    trained = sum(p.numel() for p in system.trained().values())
    policy = components.policy

    assert source == "the published lcm_sdxl"
    assert abs(flops + 5 * text - COUNTED) < 0.003 * COUNTED
    assert 0.3e9 < peak < 1.0e9
    assert trained == LORA
    assert sum(p.numel() for p in policy.unet.parameters()) == UNET + LORA
    assert sum(p.numel() for p in policy.camera_encoder.parameters()) == CAMERA_ENCODER
    encoders = (components.text_encoder, components.text_encoder_2)
    assert sum(p.numel() for m in encoders for p in m.parameters()) == TEXT_ENCODERS
    assert sum(p.numel() for p in components.vae.parameters()) == VAE
