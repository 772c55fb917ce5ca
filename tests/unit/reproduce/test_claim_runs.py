"""`reproduce.claim_runs`: missing runs are made once, however many commands share a folder."""

import json
from contextlib import nullcontext

import pytest

from mvczigal_ref.config import to_dict
from mvczigal_ref.files import owned
from mvczigal_ref.reproduce import claim_runs as module
from mvczigal_ref.reproduce.claim_runs import arms_of, claim_runs, finished_arms, train_missing
from mvczigal_ref.reproduce.claims import CLAIMS
from mvczigal_ref.training.events import Events
from tests.unit.reproduce.made_arms import made_arm


@pytest.fixture
def counted(monkeypatch):
    """Count calls without a network."""
    seen = []

    def calls(config):
        seen.append(config.recipe)
        return [10] * config.run.iterations

    monkeypatch.setattr("mvczigal_ref.reproduce.plans.network_calls", calls)
    return seen


@pytest.fixture
def trained(monkeypatch):
    """Finish runs without training."""
    seen = []

    def train(config, folder, *, world, events):
        with owned(folder):
            seen.append(folder.name)
            (folder / "config.json").write_text(json.dumps(to_dict(config)))
            (folder / "summary.json").write_text("{}")

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "sleep", lambda _: None)
    return seen


def planned(folder, *, seeds=(0, 1)):
    """Plan claim b."""
    return claim_runs(folder, arms=arms_of("b"), seeds=seeds)


def tell(run):
    """Listen to nothing."""
    return nullcontext(Events())


# -- laws --------------------------------------------------------------------------------


def test_a_claim_needs_its_own_arms_alone():
    """And no letter means all of them."""
    assert arms_of("k") == {"tiny_mv_grpo_vlm", "tiny_flow_grpo_fast"}
    assert arms_of("") == {arm for claim in CLAIMS for arm in claim.arms}


def test_every_arm_gets_its_first_seed_first(counted, tmp_path):
    """So that a claim can be judged early; both sets lie in one folder."""
    runs = claim_runs(tmp_path, arms={"tiny", "tiny_per_view", "best_base"}, seeds=[3, 4])

    assert [run.folder.name for run in runs] == [
        "tiny-3", "tiny_per_view-3", "best_base-3", "tiny-4", "tiny_per_view-4", "best_base-4",
    ]  # fmt: skip


def test_calls_are_counted_once_for_all_commands(counted, tmp_path):
    """They are kept in the folder."""
    planned(tmp_path)
    first = len(counted)
    planned(tmp_path)

    assert first == 2
    assert len(counted) == first


def test_finished_runs_are_not_made_again(counted, trained, tmp_path):
    """The same command goes on."""
    runs, done = planned(tmp_path), []
    train_missing(runs[:1], tell=tell)
    train_missing(runs, tell=tell, done=done.append)

    assert trained == [run.folder.name for run in runs]
    assert done[-1] == len(runs)


def test_a_run_of_another_process_is_left_to_it(counted, trained, monkeypatch, tmp_path):
    """The others are made first; then it is looked at again, and taken over if it ended early."""
    runs = planned(tmp_path)
    other, waits = owned(runs[1].folder), []
    other.__enter__()

    def end(_):
        waits.append(list(trained))
        other.__exit__(None, None, None)

    monkeypatch.setattr(module, "sleep", end)
    train_missing(runs[1:], tell=tell)

    assert waits == [[run.folder.name for run in runs[2:]]]
    assert trained == [run.folder.name for run in (*runs[2:], runs[1])]


def test_runs_that_have_not_finished_are_not_read(counted, monkeypatch, trained, tmp_path):
    """An arm without any is left out."""
    monkeypatch.setattr(module, "read_arm", lambda folders: made_arm(sorted(folders)))
    runs = planned(tmp_path)
    train_missing(runs[:1], tell=tell)

    runs[1].folder.mkdir()
    (runs[1].folder / "config.json").write_text(json.dumps(to_dict(runs[1].config)))
    arms = finished_arms(tmp_path, seeds=[0, 1])

    assert {name: arm.seeds for name, arm in arms.items()} == {"tiny": (0,)}
