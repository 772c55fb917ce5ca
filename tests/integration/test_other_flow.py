"""The recipes of other flow models run on networks of their wiring and a few thousand weights."""

import pytest
import torch

from mvczigal_ref.config import load_config
from mvczigal_ref.distributed import World
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.flow.tiny_z_image import tiny_z_image_components
from mvczigal_ref.recipes import other_flow, recipe
from mvczigal_ref.training.trainer import train
from tests.integration.runs import HELD_OUT, cases, evaluations, metrics, parameters
from tests.unit.models.flow_small import fresh_sd3

NARROW = {
    "flux_schnell_grpo": lambda: tiny_flow_components(
        seed=0, num_heads=1, num_layers=1, num_single_layers=1
    ),
    "sd35_large_grpo": fresh_sd3,
    "z_image_turbo_grpo": lambda: tiny_z_image_components(seed=0),
}


# The wirings of the other two are trained by `test_sd3.py` and by the tiny recipes.
@pytest.mark.parametrize(
    "name", cases({name: name for name in other_flow.__all__}, "z_image_turbo_grpo")
)
def test_a_recipe_of_another_flow_trains(name, prompts, tmp_path):
    """One iteration, every setting the recipe's but for the sizes, the reward and the dtype."""
    components = NARROW[name]()
    components.save(tmp_path / "weights")
    length = min(components.max_tokens, 32)
    config = load_config(
        recipe(name),
        overrides=[
            f"model.weights={tmp_path / 'weights'}", "model.image_size=32", "model.dtype=fp32",
            f"flow.text_length={length}", "sampler.evaluation_steps=1", "rollout.members=2",
            "reward.per_view=world.per_view", f"run.prompts={prompts}", "run.iterations=1",
            "run.objects_per_iteration=2", "run.device=cpu", "optim.average_every=1",
        ],
    )  # fmt: skip
    train(config, tmp_path / "run", world=World(), held_out=HELD_OUT[:1])
    (row,) = metrics(tmp_path / "run")
    trained = parameters(tmp_path / "run")

    assert row["grad_norm"] > 0.0
    assert len(evaluations(tmp_path / "run")) == 2
    assert any(value.any() for key, value in trained.items() if "lora_B" in key)
    assert all(torch.isfinite(value).all() for value in trained.values())
