"""`reproduce.plans`: equal network calls, and settings that `mvczigal train` takes."""

import json
from dataclasses import replace

import pytest

from mvczigal_ref.config import load_config, to_dict
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.recipes import recipe
from mvczigal_ref.reproduce import COMPARISONS, planned_runs
from mvczigal_ref.reproduce.methods import ArmSet, MethodRow


@pytest.fixture
def counted(monkeypatch):
    """Methods that call the network so often an iteration, counted without a network."""
    monkeypatch.setattr(
        "mvczigal_ref.reproduce.plans.network_calls",
        lambda config: [300 if config.recipe == "tiny" else 400] * config.run.iterations,
    )


# -- laws --------------------------------------------------------------------------------


def test_methods_get_as_many_iterations_as_their_calls_allow(counted, tmp_path):
    """A learning rate that fell to 0 at the end still does; the set's own settings hold."""
    methods = replace(COMPARISONS["multiview"], methods=COMPARISONS["multiview"].methods[:2])
    runs = planned_runs(methods, tmp_path, seeds=[0, 3])
    told = [
        (run.folder.name, run.config.run.seed, run.config.run.iterations,
         run.config.optim.decay_iterations, run.config.run.evaluation_noises)
        for run in (*runs[0], *runs[1])
    ]  # fmt: skip
    short = ["run.evaluation_noises=2", "run.iterations=20"]
    (one,), _ = planned_runs(methods, tmp_path, seeds=[0], overrides=short)

    assert told == [
        ("tiny-0", 0, 40, 40, 16), ("tiny-3", 3, 40, 40, 16),
        ("tiny_mv_pg-0", 0, 30, 30, 16), ("tiny_mv_pg-3", 3, 30, 30, 16),
    ]  # fmt: skip
    assert one.config.run.evaluation_noises == 2
    assert (one.config.run.iterations, one.config.optim.decay_iterations) == (20, 20)


def test_runs_whose_steps_are_drawn_are_counted_seed_by_seed(monkeypatch, tmp_path):
    """Others are counted once, with the first seed."""
    counted = []

    def calls(config):
        counted.append((config.recipe, config.run.seed))
        seeded = 400 if config.recipe == "tiny_dance_grpo" and config.run.seed else 200
        return [seeded] * config.run.iterations

    monkeypatch.setattr("mvczigal_ref.reproduce.plans.network_calls", calls)
    chosen = [m for m in COMPARISONS["flow"].methods if "dance" in m.recipe or "nft" in m.recipe]
    methods = replace(COMPARISONS["flow"], methods=tuple(reversed(chosen)))
    runs = planned_runs(methods, tmp_path, seeds=[0, 3], overrides=["run.iterations=20"])

    assert counted == [
        ("tiny_diffusion_nft", 0), ("tiny_dance_grpo", 0), ("tiny_dance_grpo", 3),
    ]  # fmt: skip
    assert [[run.config.run.iterations for run in one] for one in runs] == [[20, 20], [20, 10]]


def test_the_plan_of_a_run_does_not_depend_on_the_others(monkeypatch, tmp_path):
    """Neither on seeds that are asked for beside its own, nor on arms."""

    def calls(config):
        return [100 + 50 * config.run.seed] * config.run.iterations

    monkeypatch.setattr("mvczigal_ref.reproduce.plans.network_calls", calls)
    methods = ArmSet(
        scores=("per_view",),
        methods=(MethodRow("first", "tiny_flow_grpo_fast"), MethodRow("other", "tiny_flow_grpo")),
    )
    whole = planned_runs(methods, tmp_path, seeds=[0, 2])
    alone = planned_runs(methods, tmp_path, seeds=[2], arms=["tiny_flow_grpo"])

    assert [run.config.run.iterations for run in whole[0]] == [40, 40]
    assert [[run.config.run.iterations for run in one] for one in alone] == [[40]]
    assert alone[0][0] == replace(whole[1][1], config=alone[0][0].config, words=alone[0][0].words)


def test_an_arm_is_its_recipe_with_other_settings(counted, tmp_path):
    """Named by itself; the words of a run make its configuration again."""
    row = MethodRow("other", "tiny", (), ("optim.lr=0.5",), "other_rate")
    methods = ArmSet(
        scores=("per_view",), settings=("optim.lr=0.25",), methods=(MethodRow("tiny", "tiny"), row)
    )
    (one,), (other,) = planned_runs(methods, tmp_path, seeds=[3], overrides=["run.iterations=20"])

    assert (one.folder.name, other.folder.name) == ("tiny-3", "other_rate-3")
    assert [run.config.optim.lr for run in (one, other)] == [0.25, 0.5]
    for run in (one, other):
        assert load_config(recipe("tiny"), overrides=run.words) == run.config
    assert other.words == (
        "optim.lr=0.5", "run.iterations=20", "run.seed=3", "optim.decay_iterations=20",
    )  # fmt: skip


# -- errors ------------------------------------------------------------------------------


def test_a_folder_of_another_run_is_refused_before_the_first_is_trained(counted, tmp_path):
    """The last of all, that would be met after hours."""
    methods = replace(COMPARISONS["multiview"], methods=COMPARISONS["multiview"].methods[:2])
    other = load_config(recipe("tiny_mv_pg"), overrides=["run.seed=3", "optim.lr=0.5"])
    (tmp_path / "tiny_mv_pg-3").mkdir()
    (tmp_path / "tiny_mv_pg-3" / "config.json").write_text(json.dumps(to_dict(other)))
    with pytest.raises(CheckpointError, match=r"tiny_mv_pg-3' holds another run.*`optim\.lr`"):
        planned_runs(methods, tmp_path, seeds=[0, 3])


@pytest.mark.parametrize(
    ("seeds", "word", "said"),
    [
        ([0, -1], "optim.lr=0.1", r"`run\.seed`"),
        ([0], "optim.lr=-1", r"`optim\.lr`"),
        ([0], "sampler.num_steps=1", r"`zigzag\.steps`|`sampler\.num_steps`"),
    ],
)
def test_a_setting_that_some_method_refuses_is_refused_before_any_is_counted(
    monkeypatch, tmp_path, seeds, word, said
):
    """Whichever it is."""
    monkeypatch.setattr(
        "mvczigal_ref.reproduce.plans.network_calls", lambda _: pytest.fail("counted")
    )
    with pytest.raises(ConfigError, match=said):
        planned_runs(COMPARISONS["multiview"], tmp_path, seeds=seeds, overrides=[word])
