"""`config.types`: laws."""

import pytest

from mvczigal_ref.config import load_config, scorer_weights
from mvczigal_ref.config.setting_docs import described_sections
from mvczigal_ref.errors import ConfigError

# Whole numbers that cost nothing however large they are: they pace something, cap what is made
# at once, name something, or count iterations, after each of which a run may stop.
FREE = {
    "condition.samples_per_question", "forward.old_decay_after", "guard.every",
    "optim.average_every", "optim.decay_iterations", "optim.loss_scale_growth_interval",
    "optim.steps_per_microbatch", "optim.warmup_iterations", "reward.images_per_chunk",
    "reward.images_per_question", "reward.texts_per_call", "rollout.nodes_per_call",
    "rollout.pruned_first", "rollout.pruned_interval", "rollout.pruned_steps",
    "rollout.split_steps", "rollout.strides", "rollout.window_decay_after",
    "rollout.window_interval", "rollout.window_last_start", "rollout.window_spacing",
    "rollout.window_start", "rollout.window_stride", "run.checkpoint_every", "run.evaluate_every",
    "run.iterations", "run.keep_checkpoints", "run.seed", "model.views_per_decode", "zigzag.steps",
}  # fmt: skip


@pytest.mark.parametrize(
    ("scorers", "weights"),
    [("a", {"a": 1.0}), ({"a": 2.0, "b": -1.0}, {"a": 2.0, "b": -1.0})],
)
def test_a_bare_name_has_the_weight_1(scorers, weights):
    """And others the weight that is written."""
    assert scorer_weights(scorers) == weights


def test_what_is_made_at_once_has_a_limit():
    """A new count is one of the free ones, or has the limit of those that take time or memory."""
    counts = {
        f"{section}.{setting.name}": setting.values
        for section, (_, settings) in described_sections().items()
        for setting in settings
        if "whole number" in setting.values
    }

    assert {path for path, values in counts.items() if "<= 10 ** 5" not in values} == FREE


@pytest.mark.parametrize(
    "path",
    ["constraint.threshold_objects", "zigzag.rounds", "optim.epochs_per_iteration"],
)
def test_more_than_that_is_refused_by_name(path):
    """It would be done before anyone could stop it."""
    with pytest.raises(ConfigError, match=rf"`{path}`: .* less than or equal to 100000; got 1000"):
        load_config(overrides=[f"{path}=1000000000"], training=False)
    load_config(overrides=[f"{path}=100000"], training=False)
