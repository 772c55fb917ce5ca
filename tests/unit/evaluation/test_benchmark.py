"""`evaluation.benchmark`: the table's numbers, its layout, errors."""

from dataclasses import replace

import pytest
import torch

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.evaluation.benchmark import COLUMNS, PUBLISHED, benchmark
from mvczigal_ref.evaluation.evaluate import evaluate
from mvczigal_ref.recipes import recipe
from mvczigal_ref.reward.builders import PER_VIEW
from mvczigal_ref.reward.mixture import Mixture
from tests.analytic_system import PROMPTS as ALL
from tests.analytic_system import analytic_system

PROMPTS = ALL[:3]


def scorer(factor):
    """Score each image by its mean, times a factor."""

    def score(images, prompts):
        assert len(images) == len(prompts)
        return factor * images.mean(dim=(-3, -2, -1))

    return score


def test_every_scorer_judges_the_images_that_evaluate_makes():
    """Noise by noise through the prompts, each image made once for all columns."""
    config, system = recipe("tiny_flow_grpo"), analytic_system(recipe("tiny_flow_grpo"))
    system = replace(system, per_view=Mixture(scorers={"a": scorer(1.0)}, weights={"a": 1.0}))
    expected = evaluate(system, PROMPTS, config=config, world=World(), num_noises=2, seed=3)
    both = {"a": scorer(1.0), "b": scorer(-2.0)}
    system = replace(system, per_view=Mixture(scorers=both, weights={"a": 1.0, "b": 1.0}))
    found = benchmark(system, PROMPTS, config=config, world=World(), num_noises=2, seed=3)

    assert list(found) == ["a", "b"]
    assert found["a"].shape == (2, 3)
    torch.testing.assert_close(found["a"], expected.per_view)
    torch.testing.assert_close(found["b"], -2.0 * expected.per_view)


def test_a_score_that_is_not_finite_is_named():
    """By its column's scorer, the prompt and the view."""
    config, system = recipe("tiny_flow_grpo"), analytic_system(recipe("tiny_flow_grpo"))
    both = {"a": scorer(1.0), "b": scorer(float("nan"))}
    system = replace(system, per_view=Mixture(scorers=both, weights={"a": 1.0, "b": 1.0}))
    with pytest.raises(NonFiniteError, match=r"`reward/b of '.*', noise 0` must .* nan at object"):
        benchmark(system, PROMPTS, config=config, world=World())


def test_the_layout_is_the_papers():
    """Eight measures; every published row has a number for each, the full method's the best."""
    assert list(COLUMNS) == [
        "HPS-v3", "UR-v2-A", "UR-v2-C", "UR-v2-S", "HPS-v2", "CLIP", "IR", "UR-v1",
    ]  # fmt: skip
    assert {len(row) for row in PUBLISHED.values()} == {len(COLUMNS)}
    assert {*COLUMNS.values()} - {"unified_reward_v1"} <= {*PER_VIEW}
    assert max(PUBLISHED, key=lambda name: PUBLISHED[name][0]) == "MV-GRPO (VLM)"
