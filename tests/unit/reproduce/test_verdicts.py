"""`reproduce.verdicts`: what is met, missed and open."""

from dataclasses import replace

import pytest
import torch

from mvczigal_ref.reproduce.claims import CLAIMS, Claim, Requirement
from mvczigal_ref.reproduce.verdicts import judge
from tests.unit.reproduce.made_arms import made_arm


def claim(*requirements):
    """Make a claim of some requirements."""
    return Claim(letter="x", sentence="S.", rule="r", requirements=requirements)


def found(requirement, arms):
    """Judge one requirement."""
    (one,) = judge(claim(requirement), arms).findings
    return one


ARMS = {
    "good": made_arm(per_view=1.0, joint=0.5),
    "bad": made_arm(per_view=0.7, joint=-0.5),
}

# -- oracle ------------------------------------------------------------------------------


def test_a_difference_is_paired_by_seed():
    """Seeds that lift both arms alike do not widen it."""
    one = found(Requirement(measure="difference", arms=("good", "bad")), ARMS)
    alone = found(Requirement(measure="gain", arms=("good",)), ARMS)

    assert one.interval.estimate == pytest.approx(0.3, abs=1e-6)
    assert one.interval.high - one.interval.low < 1e-5
    assert alone.interval.high - alone.interval.low > 0.05
    assert one.improvement.estimate == 1.0


def test_a_factor_is_on_the_second_arm():
    """1.0 minus 0.8 times 0.7; no probability of improvement is given."""
    one = found(Requirement(measure="difference", arms=("good", "bad"), factor=0.8), ARMS)

    assert one.interval.estimate == pytest.approx(1.0 - 0.8 * 0.7, abs=1e-6)
    assert one.improvement is None


def test_a_front_is_passed_by_the_lead_over_the_best_mixture():
    """Halfway between (0, 1) and (1, 0) is (0.5, 0.5), which (0.7, 0.6) leads by 0.1 and 0.2."""
    arms = {
        "full": made_arm(per_view=0.7, joint=0.6),
        "one": made_arm(per_view=0.0, joint=1.0),
        "other": made_arm(per_view=1.0, joint=0.0),
        "inside": made_arm(per_view=0.3, joint=0.3),
    }
    front = Requirement(measure="front", arms=("full", "one", "other"))
    inside = replace(front, arms=("inside", "one", "other"))

    assert found(front, arms).interval.estimate == pytest.approx(0.15, abs=1e-6)
    assert found(inside, arms).interval.estimate == pytest.approx(-0.2, abs=1e-6)


def test_measures_of_training_are_of_the_quarters_they_name():
    """The first two and the last two of eight iterations."""
    counts = [90] + [0] * 20 + [10] + [0] * 16
    arms = {"arm": made_arm(slack=0.2, gaps=(0.4, 0.1), counts=counts)}
    slack, zigzag, change, drift = (
        found(Requirement(measure=measure, arms=("arm",), score="sum"), arms).interval
        for measure in ("slack", "zigzag", "zigzag_change", "small_drift")
    )

    assert slack.estimate == pytest.approx(0.2)
    assert zigzag.estimate == pytest.approx(0.4)
    assert change.estimate == pytest.approx(-0.3)
    assert drift.estimate == pytest.approx(0.9)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "side", "verdict"),
    [
        (0.0, "above", "holds"), (0.0, "below", "does not"), (2.0, "above", "does not"),
        (2.0, "below", "holds"), (1.0, "above", "open"), (1.0, "below", "open"),
    ],
)  # fmt: skip
def test_the_whole_interval_decides(bound, side, verdict):
    """On the required side, on the other, or on both."""
    requirement = Requirement(measure="gain", arms=("good",), bound=bound, side=side)

    assert found(requirement, ARMS).verdict == verdict


def test_a_claim_holds_if_all_is_met_and_does_not_if_one_is_missed():
    """Otherwise it is open."""
    met = Requirement(measure="gain", arms=("good",))
    missed = replace(met, side="below")
    neither = replace(met, bound=1.0)

    assert judge(claim(met, met), ARMS).verdict == "holds"
    assert judge(claim(met, neither), ARMS).verdict == "open"
    assert judge(claim(met, neither, missed), ARMS).verdict == "does not"


def test_four_seeds_leave_a_claim_open():
    """Seeds that all its arms have count; the estimate is given all the same."""
    arms = {"good": ARMS["good"], "bad": made_arm(seeds=(0, 1, 2, 4), per_view=0.7, joint=-0.5)}
    one = found(Requirement(measure="difference", arms=("good", "bad")), arms)

    assert (one.seeds, one.verdict) == (4, "open")
    assert one.interval.estimate == pytest.approx(0.3, abs=1e-6)


def test_an_arm_without_runs_leaves_a_claim_open():
    """With no number at all."""
    one = found(Requirement(measure="difference", arms=("good", "absent")), ARMS)

    assert (one.seeds, one.verdict, one.interval) == (0, "open", None)


def test_every_claim_can_be_judged():
    """Of all arms alike: nothing that asks for a difference is met."""
    arm = made_arm(counts=[1] * 38)
    judged = [judge(one, {name: arm for name in one.arms}) for one in CLAIMS]

    assert [one.letter for one in judged] == [one.letter for one in CLAIMS]
    for one in judged:
        for finding in one.findings:
            assert finding.seeds == 5
            assert finding.interval is not None
            assert torch.isfinite(torch.tensor(finding.interval.estimate))
    assert {one.letter: one.verdict for one in judged}["k"] == "open"
