"""`reproduce`: oracle, laws, errors."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mvczigal_ref.config import load_config, to_dict
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.method.sample import stochastic_steps, trained_decisions
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.recipes import RECIPES, recipe
from mvczigal_ref.reproduce import (
    COMPARISONS,
    compare,
    gain_over_seeds,
    planned_runs,
)
from mvczigal_ref.reproduce.calls import network_calls
from mvczigal_ref.reproduce.comparison import run_gain
from mvczigal_ref.reproduce.summary import summarise
from mvczigal_ref.reproduce.tables import markdown
from mvczigal_ref.training.events import Events
from mvczigal_ref.training.tracking import MetricsLog
from tests.unit.reproduce.outcomes import made_up

FIRST = ("rollout.window_last_start=0",)
SMALL = (
    "run.iterations=1",
    "run.objects_per_iteration=2",
    "run.objects_per_slice=1",
    "run.evaluation_noises=1",
)


def calls(name, *words):
    """Count an iteration's rows with random weights."""
    config = load_config(recipe(name), overrides=[*SMALL, *words])
    components = (
        tiny_flow_components(seed=0, num_heads=1, num_layers=1, num_single_layers=1)
        if config.model.network == "flow"
        else tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))
    )
    return network_calls(config, components=components)[0]


# -- oracle ------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=1, max_size=4))
def test_the_error_counts_seeds_and_prompts(rows):
    """In plain floats: both variances of means, each over its number."""
    seeds, prompts = len(rows), 4
    mean = sum(map(sum, rows)) / (seeds * prompts)
    by_prompt = [sum(row[p] for row in rows) / seeds for p in range(prompts)]
    square = sum((m - mean) ** 2 for m in by_prompt) / (prompts - 1) / prompts
    if seeds > 1:
        by_seed = [sum(row) / prompts for row in rows]
        square += sum((m - mean) ** 2 for m in by_seed) / (seeds - 1) / seeds
    found, error = gain_over_seeds(torch.tensor(rows, dtype=torch.float64))

    assert found == pytest.approx(mean, abs=1e-12)
    assert error == pytest.approx(math.sqrt(square), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        # One shared start, then 3 steps of 8 members; replayed are the start and 2 of these.
        ("tiny_flow_grpo", (), (1 + 3 * 8) + (1 + 2 * 8)),
        # One trunk walks to the window, that begins here at the first step.
        ("tiny_flow_grpo_fast", FIRST, (1 + 3 * 8) + 1),
        # All steps, of which 60 % are trained, each from its own state but the first.
        ("tiny_dance_grpo", ("objective.train_share=1.0",), (1 + 3 * 8) + (1 + 2 * 8)),
        # A tree of 1, 2, 4 and 8 nodes, of whose 4 steps 3 are trained.
        ("tiny_branch_grpo", (), (1 + 2 + 4 + 8) + (1 + 2 + 4)),
        # 2 trunks walk 3 steps; at each 6 branches finish what is left; 3 replayed trunks.
        ("tiny_tempflow_grpo", (), 2 * 3 + 6 * (3 + 2 + 1) + 2 * 3),
        # The shared state under each of 4 captions: once to score, once to learn.
        ("tiny_mv_grpo_llm", FIRST, (1 + 3 * 8) + (4 + 5) * 1),
        # 4 steps of 8 members; at one level the old policy, the reference and the policy.
        ("tiny_diffusion_nft", (), 4 * 8 + 3 * 8),
    ],
)
def test_calls_are_those_of_the_method(name, words, expected):
    """Latents a prompt that the network sees in one iteration, counted by hand."""
    assert calls(name, *words) == 2 * expected


def test_every_window_is_counted_as_it_is():
    """A shared start costs one call a step before the window, so where it begins matters."""
    words = [*SMALL, "run.iterations=6"]
    config = load_config(recipe("tiny_flow_grpo_fast"), overrides=words)
    small = tiny_flow_components(seed=0, num_heads=1, num_layers=1, num_single_layers=1)
    found = network_calls(config, components=small)
    begins = [stochastic_steps(config, most=3, iteration=i)[0] for i in range(6)]

    assert len(set(begins)) > 1
    # The trunk's calls, up to the window, then those of 8 members; one replayed state.
    expected = {0: (1 + 3 * 8) + 1, 1: (2 + 2 * 8) + 1}
    assert found == [2 * expected[begin] for begin in begins]


def test_calls_of_pairs_are_counted_view_by_view():
    """4 + 4 + 2 sampling calls less the shared one, and 3 replayed steps of either arm."""
    assert calls("tiny") == 2 * 6 * ((4 + 4 + 2 - 1) + 2 * 3)


# -- laws --------------------------------------------------------------------------------


def test_every_method_has_a_recipe_and_as_many_published_numbers_as_its_table():
    """And the paired test is between two of its methods."""
    for methods in COMPARISONS.values():
        names = [method.recipe for method in methods.methods]

        assert set(names) <= RECIPES.keys()
        assert len(names) == len(set(names))
        assert set(methods.pair) <= set(names)
        for method in methods.methods:
            assert len(method.published) in (0, len(methods.published))


def test_a_pair_of_which_one_was_not_run_is_not_compared():
    """The table is there all the same."""
    whole = made_up()
    half = replace(whole, outcomes=whole.outcomes[:1])

    assert half.paired("per_view") is None
    assert "paired" not in markdown(summarise(half))


def save_scores(path, table):
    """Write a table as both scores."""
    images = torch.zeros(1, 1, 3, 2, 2)
    save_file({"per_view": table, "joint": table.clone(), "images": images}, path)


def finished(folder, config):
    """Write what a run leaves that has ended: its metrics and scores."""
    log = MetricsLog(folder / "metrics.jsonl")
    for iteration in range(config.run.iterations):
        log.append(
            iteration,
            {"network_calls": 10 + iteration, "seconds/rollout": 1.5, "seconds/update": 0.25},
        )
    last = f"after_{config.run.iterations:06d}"
    tables = {"before_000000": torch.zeros(1, 2), last: torch.ones(1, 2)}
    (folder / "evaluations").mkdir()
    for name, table in tables.items():
        save_scores(folder / "evaluations" / f"{name}.safetensors", table)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "summary.json").write_text("{}")
    (folder / "captions.jsonl").write_text('{"iteration": 0, "drift_counts": [4]}\n')


def test_a_finished_run_is_read_and_not_repeated(tmp_path):
    """Its scores before and after, and the calls and seconds of its iterations."""
    config = load_config(recipe("tiny_flow_grpo"), overrides=["run.iterations=2"])
    finished(tmp_path, config)
    found = run_gain(config, tmp_path)

    assert (found["calls"], found["seconds"]) == (21, 3.5)
    assert [row["drift_counts"] for row in found["captions"]] == [[4]]
    assert (found["after"]["per_view"] - found["before"]["per_view"]).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), Path.unlink])
def test_scores_that_are_damaged_or_gone_are_named(tmp_path, damage):
    """In one line."""
    config = load_config(recipe("tiny_flow_grpo"), overrides=["run.iterations=2"])
    finished(tmp_path, config)
    damage(tmp_path / "evaluations" / "before_000000.safetensors")
    with pytest.raises(CheckpointError, match="before"):
        run_gain(config, tmp_path)


@pytest.mark.parametrize("word", ["run.iterations=3", "run.evaluation_noises=7"])
def test_a_finished_run_of_which_more_is_asked_goes_on(monkeypatch, tmp_path, word):
    """Its own trainer sees to what is missing; the last scores count."""
    name = recipe("tiny_flow_grpo")
    finished(tmp_path, load_config(name, overrides=["run.iterations=2"]))
    asked = load_config(name, overrides=["run.iterations=2", word])
    told = []

    def train(config, folder, *, world, events):
        told.append((config, folder, world.size, events))
        save_scores(tmp_path / "evaluations/after_000003.safetensors", torch.full((1, 2), 5.0))

    monkeypatch.setattr("mvczigal_ref.reproduce.comparison.train", train)
    found = run_gain(asked, tmp_path)

    assert told == [(asked, tmp_path, 1, None)]
    assert found["after"]["per_view"].tolist() == [[5.0, 5.0]]


def test_every_run_is_told_of_and_counted(monkeypatch, tmp_path):
    """Gains by method and seed; calls are the mean of what the runs say."""
    seen, told = [], []

    def run_gain(config, folder, events=None):
        seen.append(folder.name)
        before = {"per_view": torch.zeros(1, 2), "joint": torch.zeros(1, 2)}
        after = {name: table + config.run.seed for name, table in before.items()}
        calls = 100 * (1 + config.run.seed)
        return {"before": before, "after": after, "seconds": 1.0, "calls": calls, "captions": []}

    def tell(run):
        told.append(run.folder.name)
        return nullcontext(Events())

    monkeypatch.setattr("mvczigal_ref.reproduce.plans.network_calls", lambda _: [1] * 40)
    monkeypatch.setattr("mvczigal_ref.reproduce.comparison.run_gain", run_gain)
    methods = replace(COMPARISONS["multiview"], methods=COMPARISONS["multiview"].methods[:2])
    found = compare(methods, planned_runs(methods, tmp_path, seeds=[0, 3]), tell=tell)

    assert seen == told == ["tiny-0", "tiny-3", "tiny_mv_pg-0", "tiny_mv_pg-3"]
    assert [o.calls for o in found.outcomes] == [250, 250]
    assert found.outcomes[1].gains["joint"].tolist() == [[0.0, 0.0], [3.0, 3.0]]


def test_which_steps_are_trained_changes_the_calls():
    """The shared first state costs one call where a later one costs one a member."""
    config = load_config(recipe("tiny_dance_grpo"), overrides=[*SMALL, "run.iterations=12"])
    small = tiny_flow_components(seed=0, num_heads=1, num_layers=1, num_single_layers=1)
    found = network_calls(config, components=small)
    expected = []
    for iteration in range(12):
        trained = trained_decisions(config, steps=(0, 1, 2), iteration=iteration)
        expected.append(2 * (1 + 3 * 8 + sum(1 if step == 0 else 8 for step in trained)))

    assert found == expected
    assert len(set(found)) == 2
