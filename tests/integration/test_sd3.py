"""The recipes of Stable Diffusion 3.5 run on a network of its wiring and a few thousand weights."""

import pytest
import torch

from mvczigal_ref.config import load_config
from mvczigal_ref.distributed import World
from mvczigal_ref.recipes import recipe, sd3
from mvczigal_ref.training.trainer import train
from tests.integration.runs import HELD_OUT, evaluations, metrics, parameters
from tests.unit.models.flow_small import fresh_sd3


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Save the narrow pipeline."""
    folder = tmp_path_factory.mktemp("sd3")
    fresh_sd3().save(folder)
    return folder


@pytest.mark.parametrize("name", sd3.__all__)
def test_a_recipe_of_stable_diffusion_runs(name, weights, prompts, tmp_path):
    """Every setting is the recipe's but for the sizes, the reward and the accelerator's dtype."""
    config = load_config(
        recipe(name),
        overrides=[
            f"model.weights={weights}", "model.image_size=32", "model.dtype=fp32",
            "flow.text_length=5", "sampler.evaluation_steps=2", "rollout.members=2",
            "reward.per_view=world.per_view", f"run.prompts={prompts}",
            "run.iterations=1", "run.objects_per_iteration=2", "run.device=cpu",
            *(["optim.average_every=1"] if recipe(name).optim.average_decay else []),
        ],
    )  # fmt: skip
    train(config, tmp_path, world=World(), held_out=HELD_OUT)
    (row,) = metrics(tmp_path)

    assert row["grad_norm"] > 0.0
    assert len(evaluations(tmp_path)) == 2
    assert any(value.any() for key, value in parameters(tmp_path).items() if "lora_B" in key)
    assert all(torch.isfinite(value).all() for value in parameters(tmp_path).values())
