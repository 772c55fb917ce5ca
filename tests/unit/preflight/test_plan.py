"""`planning`: laws, errors; `tests/integration` holds plans against real iterations."""

from functools import cache, partial

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mvczigal_ref.config import load_config
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.lora_form import lora_form_count
from mvczigal_ref.models.merged_linear import merged_linear
from mvczigal_ref.preflight import plan as estimate
from mvczigal_ref.preflight.footprints import Footprint, scorer_footprint
from mvczigal_ref.preflight.measure import fused_attention, measure_graph
from mvczigal_ref.preflight.meter import Meter
from mvczigal_ref.preflight.plan import plan
from mvczigal_ref.recipes import recipe
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.clip_score import ClipScore, PickScore
from mvczigal_ref.reward.hpsv2 import HpsV2
from mvczigal_ref.reward.hpsv3 import HpsV3
from mvczigal_ref.reward.image_reward import ImageReward
from mvczigal_ref.system import build_system
from mvczigal_ref.system.scorers import no_scorers
from tests.unit.preflight.small import config_of

META, CPU = torch.device("meta"), torch.device("cpu")
GB = 10**9
SIZES = {
    "world.per_view": Footprint(0, 3 * GB, 2 * GB),
    "world.joint": Footprint(0, 5 * GB, GB),
}
HEARD = {}
"""Measurements that each plan told of."""


@cache
def planned(config, **more):
    """Make each plan once."""
    heard = HEARD.setdefault(config, [])
    return plan(config, progress=lambda done, total: heard.append((done, total)), **more)


@pytest.fixture(autouse=True)
def sized_scorers(monkeypatch):
    """Of the world's rules, which have no networks, suppose some."""
    monkeypatch.setattr(estimate, "scorer_footprint", lambda name, options: SIZES[name])


# -- laws ---------------------------------------------------------------------------------


def test_a_meter_follows_what_lives():
    """By hand: 4x8 fp32 is 128 bytes; a view is free, a dropped tensor is given back."""
    present = torch.empty(4, 8, device=META)
    with Meter([present]) as meter:
        first = present + 1
        view = first.T
        assert meter.live == 128
        second = view @ first
        assert (meter.live, meter.flops) == (128 + 256, 2 * 8 * 4 * 8)
        del first, view
        assert meter.live == 256
        del second
    assert (meter.live, meter.peak) == (0, 384)


def test_a_graph_costs_what_it_keeps():
    """By hand: two 8x8 layers and a square; the backward pass of a layer is one product."""
    weight = torch.empty(8, 8, device=META, requires_grad=True)
    row = torch.empty(4, 8, device=META)
    weight.grad = torch.empty_like(weight)
    present = [weight, weight.grad, row]
    plain = measure_graph(lambda: (row @ weight).square(), present=present)
    checkpointed = measure_graph(
        lambda: checkpoint(lambda: (row @ weight).square() @ weight, use_reentrant=False),
        present=present,
    )

    product = 2 * 4 * 8 * 8
    assert (plain.forward, plain.recompute, plain.backward) == (product, 0, product)
    assert plain.saved == 2 * 4 * 8 * 4  # what is squared, and the output
    # What is recomputed stops before the last product, whose inputs are all that is missing.
    assert (checkpointed.forward, checkpointed.recompute) == (2 * product, product)
    assert checkpointed.backward == 3 * product
    assert checkpointed.saved == 4 * 8 * 4


def test_merged_weights_are_computed_again_too():
    """By hand: their own operation has no gradient within; the backward pass is one product."""
    weight = torch.empty(8, 8, device=META)
    row = torch.empty(4, 8, device=META, requires_grad=True)

    def two_layers():
        return merged_linear(merged_linear(row, weight, None).square(), weight, None)

    costs = [
        measure_graph(function, present=[weight, row])
        for function in (two_layers, partial(checkpoint, two_layers, use_reentrant=False))
    ]

    product = 2 * 4 * 8 * 8
    assert [cost.forward for cost in costs] == [2 * product, 2 * product]
    assert [cost.recompute for cost in costs] == [0, 2 * product]
    assert [cost.backward for cost in costs] == [2 * product, 2 * product]


def test_attention_stores_no_scores_on_the_meta_device_alone():
    """Real attention is torch's own, before, while and after."""
    plain = functional.scaled_dot_product_attention
    query = torch.empty(1, 1, 64, 8, device=META, dtype=torch.float16)
    with fused_attention():
        with Meter([query]) as meter:
            functional.scaled_dot_product_attention(query, query, query)
        real = torch.ones(1, 1, 2, 8)
        assert functional.scaled_dot_product_attention(real, real, real).shape == real.shape
    with pytest.raises(ZeroDivisionError), fused_attention():
        1 / 0  # noqa: B018

    assert meter.peak < 64 * 64
    assert functional.scaled_dot_product_attention is plain


@pytest.mark.slow
def test_two_processes_have_half_of_the_objects_each():
    """And each the plan of one that has as many alone."""
    one = planned(config_of())
    shared = plan(config_of(run={"objects_per_iteration": 4}), world_size=2)

    assert (shared.calls, shared.flops, shared.memory) == (one.calls, one.flops, one.memory)
    assert (shared.objects, shared.objects_per_process, shared.processes) == (4, 2, 2)


@pytest.mark.slow
def test_checkpointing_trades_memory_for_operations():
    """What the graph keeps is the chosen one of both numbers."""
    plain = planned(config_of())
    checkpointed = planned(config_of(model={"gradient_checkpointing": True}))

    assert plain.memory.saved == plain.memory.saved_plain
    assert checkpointed.memory.saved == checkpointed.memory.saved_checkpointed
    assert checkpointed.memory.saved_checkpointed < 0.5 * plain.memory.saved_plain
    assert checkpointed.memory.replay < plain.memory.replay
    assert checkpointed.memory.saved_plain == plain.memory.saved_plain
    assert checkpointed.flops.replay == plain.flops.replay
    assert checkpointed.flops.backward == plain.flops.backward
    assert 0.5 < checkpointed.flops.recompute / plain.flops.replay <= 1.0
    assert checkpointed.memory.stages["update"] < plain.memory.stages["update"]


def flow_config(*words):
    """Configure the smallest run of a flow, whose plan takes a second."""
    small = ("rollout.members=2", "run.objects_per_slice=1", "sampler.num_steps=2")
    return load_config(
        recipe("tiny_flow_grpo"), overrides=[*small, "rollout.window_size=1", *words]
    )


def test_without_memory_every_block_computes_again_and_the_plan_names_them():
    """With the memory of a run whose setting is true."""
    none = planned(flow_config("model.gradient_checkpointing=auto"), memory=0)

    assert none.recomputed_blocks == none.blocks > 0
    assert none.calls.recompute == none.calls.replay > 0
    assert none.memory.saved == none.memory.saved_checkpointed < none.memory.saved_plain


@pytest.mark.slow
def test_memory_decides_on_blocks():
    """All of them with none; with some, less memory than without and fewer operations than all."""
    plain, config = planned(flow_config()), flow_config("model.gradient_checkpointing=auto")
    kept = plain.memory
    resident = kept.resident - kept.optimizer + kept.rollouts + 3 * kept.gradients
    half, none = (planned(config, memory=size) for size in (resident + kept.saved_plain, 0))

    assert plain.blocks is plain.recomputed_blocks is None
    assert 0 < half.recomputed_blocks < half.blocks == none.recomputed_blocks
    assert (plain.calls.recompute, none.calls.recompute) == (0, none.calls.replay)
    assert none.memory.saved == none.memory.saved_checkpointed
    assert none.memory.saved < half.memory.saved < plain.memory.saved == kept.saved_plain
    assert none.memory.replay < plain.memory.replay
    assert 0 < half.flops.recompute < none.flops.recompute


@pytest.mark.slow
def test_with_enough_memory_no_block_computes_again():
    """The plan is that of a run without the setting."""
    plain = planned(config_of())
    ample = planned(config_of(model={"gradient_checkpointing": "auto"}), memory=100 * GB)

    assert ample.recomputed_blocks == 0 < ample.blocks
    assert (ample.calls, ample.flops, ample.memory) == (plain.calls, plain.flops, plain.memory)


def test_the_plan_names_the_form_of_the_lora_that_the_run_takes():
    """On the meta device as on the real one: one function decides for both."""
    config = flow_config("run.device=cpu")
    named, system = planned(config), build_system(config, device=CPU, scorers=no_scorers())
    rows, forms = {"rollout": 2, "update": 1}, {}
    for stage, count in rows.items():
        state = torch.zeros(count, *system.latent_shape[1:])
        conditioning = system.conditioning(["a red ball"] * count)
        with lora_form_count("cuda") as counted:  # of another device than the network's own
            system.policy(state, torch.tensor(500), conditioning, guidance_scale=1.0)
        forms[stage] = {form: counted[form] for form in ("merged", "thin")}
    assert named.device == "cpu"
    assert named.lora_forms == forms
    assert min(forms["rollout"].values()) > 0 == forms["update"]["merged"]


@pytest.mark.slow
def test_two_iterations_of_samples_wait_where_one_is_sampled_ahead():
    """With the parameters that sampled each, and one call of every slice for its first ratio."""
    plain, ahead = (
        planned(flow_config("run.device=cpu", *w)) for w in ((), ("rollout.ahead=true",))
    )

    assert ahead.memory.rollouts == 2 * plain.memory.rollouts > 0
    assert ahead.memory.copies - plain.memory.copies == 2 * plain.memory.trained > 0
    assert ahead.calls.rollout == plain.calls.rollout + ahead.objects_per_process
    assert ahead.calls.replay == plain.calls.replay


@pytest.mark.slow
def test_second_arms_of_pairs_that_are_sampled_ahead_are_replayed_for_their_value():
    """In the first optimiser step too, where their stored densities are of another policy."""
    plain, ahead = (planned(config_of(**how)) for how in ({}, {"rollout": {"ahead": True}}))

    assert ahead.calls.replay == plain.calls.replay
    assert 2 * ahead.calls.value == ahead.calls.replay > 2 * plain.calls.value


@pytest.mark.slow
def test_what_waits_elsewhere_is_counted_while_it_works():
    """Every stage by hand, from the parts of the plan that keeps everything in place.

    The scorers have 3 and 5 GB and need 2 and 1; they are asked one after the other.
    """
    told = {"views_per_decode": 1, "storage_device": "cpu", "compile": "inductor"}
    here = planned(config_of()).memory
    away = plan(config_of(model={"offload_frozen": True, **told})).memory
    base = here.trained + here.optimizer + here.features + away.network

    assert (here.offloaded, away.offloaded) == (False, True)
    assert 0 < here.network - away.network < 0.5 * here.network  # the camera encoder
    assert here.resident == (
        base - away.network + here.network + here.text_encoders + here.vae + 8 * GB
    )
    assert here.rollouts > 0 == away.rollouts
    # A compiled network samples with its graph.
    assert away.sampling > here.saved_plain > here.sampling
    assert away.decoding - away.vae < 0.6 * here.decoding
    assert here.scoring % GB == away.scoring % GB
    assert (here.scoring // GB, away.scoring // GB) == (2, 6)
    assert away.stages == {
        "prompts": base + here.text_encoders,
        "rollout": base + away.sampling,
        "reward": base + away.scoring,
        "update": base + here.gradients + here.replay,
    }
    assert here.stages.keys() == {"rollout", "reward", "update"}


def test_a_scorer_elsewhere_takes_nothing_here():
    """A served scorer has its network where it is served, and a rule has none."""
    remote = scorer_footprint("pickscore", ScorerOptions(url="http://there"))
    rule = scorer_footprint("world.per_view", ScorerOptions())

    assert (remote.parameters, remote.weights, remote.working) == (0, 0, 0)
    assert remote == rule


def test_a_scorer_here_takes_its_published_size():
    """HyperScore's ViT-B/16 has 150 million parameters; halves are half."""
    full = scorer_footprint("hyperscore.overall", ScorerOptions(images_per_chunk=2))
    half = scorer_footprint(
        "hyperscore.overall", ScorerOptions(images_per_chunk=2, dtype=torch.bfloat16)
    )

    assert 150e6 < full.parameters < 160e6
    assert full.weights - half.weights == pytest.approx(2 * full.parameters, rel=1e-3)
    assert half.working < full.working
    assert full.weights == pytest.approx(613e6, rel=0.01)  # what the download is said to take


@pytest.mark.parametrize(
    ("name", "head", "scorers"),
    [
        ("clip_score", 0, {ClipScore: 4}),
        ("pickscore", 0, {PickScore: 4, HpsV2: 2}),
        ("image_reward", 0, {ImageReward: 4}),
        ("hpsv3", 152_064 * 3584, {HpsV3: 2}),
    ],
)
def test_a_scorer_s_download_has_the_size_of_its_shapes(name, head, scorers):
    """At the bytes per number in which each is published, HPSv3 with Qwen2-VL's head for words."""
    numbers = scorer_footprint(name, ScorerOptions(images_per_chunk=1)).parameters

    assert (name == "pickscore") == (numbers == 986109441)
    for scorer, width in scorers.items():
        number, unit = scorer.weights.size.split()
        assert unit == "GB"
        assert float(number) * 1e9 == pytest.approx(width * (numbers + head), rel=0.01)


def test_whoever_listens_hears_each_measurement():
    """In order, to the end."""
    planned(config_of())
    heard = HEARD[config_of()]

    assert heard == [(done, len(heard)) for done in range(1, len(heard) + 1)]
    assert len(heard) > 1


# -- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"image_size": 36}}, r"multiple of 8,.* got 36\..* is 32"),
        ({"run": {"objects_per_iteration": 3}}, r"nearest valid value .* is 4"),
        ({"reward": {"per_view": "pikscore"}}, r"no scorer 'pikscore'; .*'pickscore'"),
        ({"model": {"finetune": "full", "dtype": "fp16"}}, r'must be "fp32"'),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(sections, message):
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match=message):
        plan(config_of(**sections))


def test_a_folder_of_something_else_is_refused(tmp_path):
    """A UNet's folder without its configuration."""
    (tmp_path / "unet").mkdir()
    with pytest.raises(ConfigError, match=r"`model.weights` must be one of .* or a folder: "):
        plan(config_of(model={"weights": str(tmp_path)}))


def test_a_tree_that_does_not_fit_its_grid_is_refused():
    """As training would refuse it."""
    config = config_of(
        rollout={"kind": "tree", "split_steps": (7,)},
        objective={"kind": "policy_gradient"},
        sampler={"kind": "ddim"},
    )
    with pytest.raises(ConfigError, match=r"`rollout` does not fit `sampler`"):
        plan(config)


def test_a_pipeline_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    """The published ones, and folders of either family."""
    config = load_config(recipe("tiny_flow_grpo"), overrides=[f"model.weights={tmp_path}"])
    with pytest.raises(ConfigError, match=r"one of \['black-forest-labs/FLUX.1-dev', .* folder"):
        plan(config)
