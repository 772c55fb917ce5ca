"""`reproduce.arms`: gains by seed and prompt, and curves."""

import pytest
import torch

from mvczigal_ref.reproduce.arms import curves
from tests.unit.reproduce.made_arms import made_arm

# -- laws --------------------------------------------------------------------------------


def test_gains_are_paired_and_averaged_over_noises():
    """One row per seed, and the sum of both scores."""
    arm = made_arm(per_view=1.0, joint=0.5)

    assert arm.gains["joint"].shape == (5, 6)
    assert arm.gains["joint"][2].mean().item() == pytest.approx(0.5, abs=1e-6)
    assert torch.equal(arm.gains["sum"], arm.gains["per_view"] + arm.gains["joint"])
    assert arm.before("per_view") == 10.0
    assert (arm.mean("calls"), arm.mean("iterations")) == (102.0, 8.0)


def test_curves_are_means_over_seeds_with_their_errors():
    """Of both arms of a pair: 12 and 10, and 0 to 4 for the seeds."""
    found = curves(made_arm())

    assert found["per_view"][0] == [13.0] * 8
    assert found["per_view"][1] == [round((2.5 / 5) ** 0.5, 4)] * 8
    assert found["multiplier"][0][3] == 0.3
    assert curves(made_arm(seeds=[0]))["per_view"] == ([11.0] * 8, [0.0] * 8)


def test_a_metric_that_the_runs_lack_has_no_curve():
    """Flow runs have neither multiplier nor threshold."""
    arm = made_arm()
    for run in arm.runs:
        for row in run["metrics"]:
            del row["threshold"]

    assert "threshold" not in curves(arm)
    assert "joint" in curves(arm)
