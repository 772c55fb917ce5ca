"""The recipes of single-view UNets run on networks of their wiring and a few thousand weights."""

import pytest
import torch

from mvczigal_ref.config import load_config
from mvczigal_ref.distributed import World
from mvczigal_ref.models.lora import add_lora, lora_parameters
from mvczigal_ref.models.lora_weights import LoraWeights, write_lora_file
from mvczigal_ref.models.unet.tiny import tiny_unet_components
from mvczigal_ref.recipes import recipe, single_view
from mvczigal_ref.training.trainer import train
from tests.integration.runs import HELD_OUT, cases, evaluations, metrics, parameters

QUICK = ("sdxl_turbo_grpo", "sd15_lcm_zigal")
RECIPES = cases({name: name for name in single_view.__all__}, *QUICK)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Save both narrow pipelines, a few-step UNet, and a distilled LoRA of each."""
    root = tmp_path_factory.mktemp("unets")
    for kind in ("sdxl", "sd15"):
        components = tiny_unet_components(kind, seed=0)
        components.save(root / kind)
        add_lora(components.policy.unet, rank=2, alpha=2.0, seed=1, targets=("to_q", "to_v"))
        with torch.no_grad():
            for value in lora_parameters(components.policy.unet).values():
                value.fill_(0.01)
        write_lora_file(LoraWeights.of(components.policy.unet), root / f"{kind}.safetensors")
    tiny_unet_components("sdxl", seed=0, time_cond_proj_dim=8).save(root / "few")
    return root


def narrow(name, places, prompts, *more):
    """Put a recipe on the narrow network; its sampler, method and kind of sources stay."""
    full = recipe(name)
    kind = "sd15" if "v1-5" in full.model.weights else "sdxl"
    parts = {"lora": places / f"{kind}.safetensors", "unet": places / "few"}
    sources = ", ".join(f"{part}: {parts[part]}" for part in full.model.sources)
    groups = [] if full.objective.compares_pairs else ["rollout.members=2"]
    return load_config(
        full,
        overrides=[
            f"model.weights={places / kind}", f"model.sources={{{sources}}}", "model.image_size=32",
            "model.dtype=fp32", f"sampler.num_steps={min(full.sampler.num_steps, 2)}",
            "reward.per_view=world.per_view", f"run.prompts={prompts}", "run.iterations=1",
            "run.objects_per_iteration=2", "run.device=cpu", *groups,
            *more,
        ],
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_a_single_view_unet_trains(name, places, prompts, tmp_path):
    """One iteration, every setting the recipe's but for the sizes, reward and dtype."""
    config = narrow(name, places, prompts)
    train(config, tmp_path, world=World(), held_out=HELD_OUT[:1])
    (row,) = metrics(tmp_path)

    assert row["grad_norm"] > 0.0
    assert len(evaluations(tmp_path)) == 2
    assert any(value.any() for key, value in parameters(tmp_path).items() if "lora_B" in key)
    assert all(torch.isfinite(value).all() for value in parameters(tmp_path).values())
    assert (tmp_path / "policy" / "pytorch_lora_weights.safetensors").is_file()
    assert not (tmp_path / "policy" / "lora.safetensors").exists()  # of the multi-view trainer


def test_every_weight_can_be_trained(places, prompts, tmp_path):
    """And is written as a UNet that diffusers reads."""
    config = narrow("sdxl_tcd_grpo", places, prompts, "model.finetune=full")
    train(config, tmp_path, world=World(), held_out=HELD_OUT[:1])
    unet = tiny_unet_components("sdxl", seed=0).policy.unet
    trained = type(unet).from_pretrained(tmp_path / "policy" / "unet", local_files_only=True)
    moved = [not torch.equal(a, b) for a, b in zip(unet.parameters(), trained.parameters())]  # noqa: B905

    assert len(moved) > 100
    assert all(moved)
