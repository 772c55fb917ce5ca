"""Every recipe of the tiny world trains where tensors of two devices do not meet."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mvczigal_ref.recipes import RECIPES
from tests.integration.runs import cases, parameters
from tests.pretend.runs import train_on

QUICK = ("tiny_branch_grpo", "tiny_tempflow_grpo", "tiny_mv_grpo_vlm")
EXACT = ("tiny", "tiny_flow_grpo", "tiny_diffusion_nft")
REST = {name: name for name in RECIPES if name.startswith("tiny") and name not in EXACT}


@pytest.mark.parametrize("name", EXACT)
def test_what_is_learnt_there_is_what_the_cpu_learns_to_the_bit(name, device, tmp_path):
    """Its arithmetic is the CPU's, so every number went the same way."""
    layout = "model.channels_last=false"  # which is another on a CPU if not said
    train_on(device, name, tmp_path / "there", layout)
    with sdpa_kernel(SDPBackend.MATH):  # attention of the CPU's own kind adds in another order
        train_on("cpu", name, tmp_path / "here", layout)
    there, here = (parameters(tmp_path / place / "run") for place in ("there", "here"))

    assert there.keys() == here.keys()
    assert [name for name in here if not torch.equal(there[name], here[name])] == []
    assert any(value.any() for name, value in there.items() if "lora_B" in name)


@pytest.mark.parametrize("name", cases(REST, *QUICK))
def test_every_tiny_recipe_trains_on_the_device(name, device, tmp_path):
    """From the first held-out scores to the last checkpoint, and a parameter has moved."""
    train_on(device, name, tmp_path)
    learnt = parameters(tmp_path / "run")

    assert all(value.isfinite().all() for value in learnt.values())
    assert any(value.any() for name, value in learnt.items() if "lora_B" in name)
