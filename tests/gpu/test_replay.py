"""On a GPU: the first ratio is 1 on equal slices; a rollout is the CPU's to rounding."""

import pytest
import torch

from mvczigal_ref.config import load_config
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.pair import paired_rollout
from mvczigal_ref.system import build_system
from mvczigal_ref.training.tracking import StageTimer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
PROMPTS = ["a red ball with a white nose", "a blue ball with a yellow nose"]


def tiny_system(device, *words):
    """Build the tiny random network on a device."""
    config = load_config(
        overrides=[
            "run.objects_per_iteration=2",
            "run.objects_per_slice=1",
            "sampler.guidance_scale=2.0",
            *words,
        ]
    )
    components = tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))
    return build_system(config, device=torch.device(device), components=components), config


@pytest.mark.parametrize("model", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("storage", ["fp32", "bf16", "fp16"])
def test_first_ratio_is_exactly_one(model, storage):
    """`run_iteration` itself refuses anything else; one iteration changes the parameters."""
    system, config = tiny_system("cuda", f"model.dtype={model}", f"model.storage_dtype={storage}")
    trained = list(system.trained().values())
    before = [p.detach().clone() for p in trained]
    result = run_iteration(
        system,
        torch.optim.AdamW(trained, lr=1e-3),
        ConstraintState(),
        PROMPTS,
        iteration=0,
        config=config,
        world=World(device=torch.device("cuda")),
        timer=StageTimer(torch.device("cuda")),
    )

    assert result.metrics["replay_deviation"] == 0.0
    assert any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))


def test_a_rollout_has_the_noise_of_the_cpu():
    """Noise is drawn on the CPU, so both devices sample the same trajectories to fp32 rounding."""
    actions = []
    for device in ("cpu", "cuda"):
        system, _ = tiny_system(device)
        noise = SeededNoise(
            seed=0, iteration=0, objects=[0, 1], shape=system.latent_shape, device=device
        )
        pair = paired_rollout(
            system.policy,
            system.sampler,
            noise.initial(),
            system.conditioning(PROMPTS),
            noise,
            guidance_scale=2.0,
        )
        actions.append(pair.standard.action.cpu())

    # Sums in another order; TF32, which rounds to 1e-3, is off unless a run asks for it.
    assert (actions[0] - actions[1]).abs().max() < 1e-3 * actions[0].abs().max()
