"""Every recipe, each fine-tuning and each dtype runs, saves, and is found again."""

import json
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from safetensors.torch import load

from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.evaluate import evaluate
from mvczigal_ref.recipes import recipe
from mvczigal_ref.reproduce.calls import network_calls
from mvczigal_ref.training.run_policy import load_policy
from tests.integration.runs import (
    HELD_OUT,
    cases,
    checkpoints,
    evaluations,
    metrics,
    parameters,
    run,
    small_components,
    small_config,
    small_flow,
)

SHORT = {
    "run": {"iterations": 2, "objects_per_slice": 4},
    "optim": {"optimizer_steps_per_epoch": 1},
}
"""Two iterations of one slice: what is tried here shows in it."""

# Of recipes that differ in a number alone one is run: what each setting does is a unit test's.
TINY = (
    "tiny", "tiny_released", "tiny_mv_dpo", "tiny_mvc_zigpg", "tiny_full_zigzag",
    "tiny_flow_grpo_fast", "tiny_dance_grpo", "tiny_g2rpo", "tiny_diffusion_nft",
    "tiny_mv_grpo_llm",
)  # fmt: skip


def shrunken(name, prompts):
    """A recipe with everything it says but its size: two iterations of four objects."""
    config, small = recipe(name), small_config(prompts, **SHORT).run
    if config.model.network == "flow":
        rollout = config.rollout
        return replace(
            config,
            sampler=replace(config.sampler, num_steps=4),
            rollout=replace(
                rollout,
                members=2,
                window_size=min(rollout.window_size, 3 - (rollout.window == "sliding")),
                window_last_start=min(rollout.window_last_start, 1),
                window_interval=1,
                split_steps=(0, 1) if rollout.split_steps else (),
            ),
            condition=replace(config.condition, num_captions=1),
            run=small,
        )
    return replace(
        config,
        sampler=replace(config.sampler, num_steps=2),
        zigzag=replace(config.zigzag, steps=min(config.zigzag.steps, 2)),
        # From the first iteration on both rewards count, so that every mode is another run.
        constraint=replace(
            config.constraint,
            multiplier_init=1.0,
            # Just below what random weights score, so that both of its step sizes matter.
            threshold_init=-4.0,
        ),
        run=small,
    )


@pytest.fixture(scope="module")
def ran(prompts, tmp_path_factory):
    """The folder of each recipe's run, run once."""
    done = {}

    def folder(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name)
            config = shrunken(name, prompts)
            more = {"components": small_flow()} if config.model.network == "flow" else {}
            run(config, done[name], **more)
        return done[name]

    return folder


@pytest.mark.parametrize("name", TINY)
def test_a_recipe_trains_and_writes_its_files(ran, name):
    """Finite metrics, a parameter that moved, scores before and after, a summary."""
    folder = ran(name)

    captioned = recipe(name).condition.enhancer != "none"
    assert sorted(path.name for path in folder.iterdir()) == [
        *(["captions.jsonl"] if captioned else []),
        "checkpoints", "config.json", "evaluations", "metrics.jsonl", "policy", "starts.json",
        "summary.json",
    ]  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["recipe"] == name
    assert checkpoints(folder) == ["iteration_000001", "iteration_000002"]
    assert sorted(evaluations(folder)) == [0, 2]
    rows = metrics(folder)
    assert len(rows) == 2
    assert not [k for row in rows for k, v in row.items() if v is None]
    assert all(row.get("replay_deviation", 0) == 0 and row["grad_norm"] > 0 for row in rows)
    assert any(value.any() for k, value in parameters(folder).items() if "lora_B" in k or "up" in k)


@pytest.mark.parametrize("name", ["tiny", "tiny_flow_grpo_fast", "tiny_diffusion_nft"])
def test_a_run_counts_the_network_calls_that_were_foretold(ran, prompts, name):
    """Of every iteration, from a part of its objects."""
    own = {"components": small_flow()} if name != "tiny" else {"components": small_components()}
    told = network_calls(shrunken(name, prompts), **own)

    assert [row["network_calls"] for row in metrics(ran(name))] == told


def test_no_two_recipes_do_the_same(ran):
    """Their parameters differ after two iterations."""
    trained = {name: parameters(ran(name)) for name in TINY}
    same = [
        (one, other)
        for one, other in combinations(TINY, 2)
        if trained[one].keys() == trained[other].keys()
        and all(torch.equal(trained[one][k], trained[other][k]) for k in trained[one])
    ]
    assert same == []


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with the small network's weights."""
    folder = tmp_path_factory.mktemp("weights")
    small_components().save(folder)
    return str(folder)


MODELS = {
    "LoRA": {"finetune": "lora"},
    "every weight": {"finetune": "full"},
    "LoRA on bf16": {"finetune": "lora", "dtype": "bf16", "storage_dtype": "bf16"},
}


@pytest.mark.parametrize("model", cases(MODELS, "every weight", "LoRA on bf16"))
def test_a_trained_policy_is_found_again_bit_for_bit(prompts, weights, tmp_path, model):
    """Its held-out scores and images are those at the end of training."""
    more = {"weights": weights, **model}
    config = small_config(prompts, model=more, **SHORT)
    run(config, tmp_path, components=None)
    system, found = load_policy(tmp_path, device=torch.device("cpu"))
    scores = evaluate(system, HELD_OUT, config=found, world=World(), num_noises=1)

    assert found == config
    kept = load(evaluations(tmp_path)[2])
    assert kept.keys() == {"per_view", "joint", "images", "errors"}
    del kept["errors"]  # made for the report when they are written
    assert all(torch.equal(kept[name], getattr(scores, name)) for name in kept)
    assert evaluations(tmp_path)[2] != evaluations(tmp_path)[0]


DTYPES = {
    "fp32": {},
    "bf16 stored": {"model": {"storage_dtype": "bf16"}},
    "fp16 stored": {"model": {"storage_dtype": "fp16"}},
    "bf16 network": {"model": {"dtype": "bf16", "storage_dtype": "bf16"}},
    "fp16 network": {"model": {"dtype": "fp16", "storage_dtype": "fp16"}},
    "DDIM in bf16": {"sampler": {"kind": "ddim"}, "model": {"storage_dtype": "bf16"}},
    "every step zigzagged": {"zigzag": {"steps": 2, "rounds": 2}},
    "last action trained": {"objective": {"train_last_action": True}},
    "two arms per call": {
        "run": {**SHORT["run"], "arms_per_call": 2}, "sampler": {"num_steps": 3},
    },
}  # fmt: skip


QUICK = ("fp32", "bf16 network", "fp16 network", "two arms per call")


@pytest.mark.parametrize("sections", cases(DTYPES, *QUICK))
def test_the_first_ratio_is_exactly_one(undisturbed, sections):
    """In every iteration, in every dtype; and the dtype does something."""
    rows = metrics(undisturbed(**{**SHORT, **sections}))

    assert [row["replay_deviation"] for row in rows] == [0.0, 0.0]
    assert all(row["grad_norm"] > 0 for row in rows)
    assert (rows == metrics(undisturbed(**SHORT))) == (not sections)


def test_recomputed_activations_change_no_bit(undisturbed):
    """Less memory is all they are for."""
    spared = undisturbed(**SHORT, model={"gradient_checkpointing": True})

    assert metrics(spared) == metrics(undisturbed(**SHORT))
    plain = parameters(undisturbed(**SHORT))
    assert all(torch.equal(value, plain[name]) for name, value in parameters(spared).items())


def test_unequal_slices_are_reported_and_not_refused(undisturbed):
    """As a share of the clip range, small; in one slice the deviation is exactly 0."""
    cut = undisturbed(**{**SHORT, "run": {**SHORT["run"], "replay_objects_per_slice": 1}})

    assert all(0 <= row["replay_deviation"] < 1e-2 for row in metrics(cut))
