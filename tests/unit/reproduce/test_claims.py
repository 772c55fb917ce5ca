"""`reproduce.claims`: arms that recipes can run, and claims over them."""

import pytest

from mvczigal_ref.reproduce import planned_runs
from mvczigal_ref.reproduce.claims import ARM_SETS, CLAIMS, LEAST_SEEDS, PILOT_SEEDS, SEEDS

# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARM_SETS)
def test_every_arm_is_a_run_of_its_own(name, monkeypatch, tmp_path):
    """No two of a set have equal settings, and all take those of the set."""
    monkeypatch.setattr(
        "mvczigal_ref.reproduce.plans.network_calls", lambda config: [10] * config.run.iterations
    )
    runs = [run for (run,) in planned_runs(ARM_SETS[name], tmp_path, seeds=[0])]

    assert len({run.folder for run in runs}) == len({repr(run.config) for run in runs}) == len(runs)


def test_arms_of_all_sets_have_names_of_their_own():
    """Their run folders lie side by side."""
    arms = [row.arm for arms in ARM_SETS.values() for row in arms.methods]

    assert len(set(arms)) == len(arms)


def test_claims_are_a_to_n_over_arms_that_exist():
    """And every arm but the first of its set serves one."""
    arms = {row.arm for arms in ARM_SETS.values() for row in arms.methods}

    assert "".join(claim.letter for claim in CLAIMS) == "abcdefghijklmn"
    assert {arm for claim in CLAIMS for arm in claim.arms} == arms
    for claim in CLAIMS:
        assert claim.sentence.endswith(".")
        assert claim.requirements


def test_pilot_seeds_are_not_reported():
    """Settings are chosen with others, and a claim needs all that are reported."""
    assert max(SEEDS) < PILOT_SEEDS
    assert len(set(SEEDS)) >= LEAST_SEEDS
