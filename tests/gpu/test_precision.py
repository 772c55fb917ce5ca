"""Half precision at full width: a replay's ratio is 1, and log-densities are near fp32's."""

import pytest
import torch

from tests.gpu.checks import CUDA, PARITY, configured, replay_deviation, rescored, sampled, widen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SHORT = ("run.objects_per_slice=1", "run.objects_per_iteration=1")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_first_ratio_is_exactly_one(dtype, record_property):
    """Every step of both arms, with gradient and checkpointing, bit for bit."""
    config = configured(*SHORT, f"model.dtype={dtype}", f"model.storage_dtype={dtype}")
    trial, pair = sampled(config, CUDA)
    deviation = replay_deviation(trial, pair)
    record_property(f"{dtype} replay deviation", f"{deviation:g}")

    assert deviation == 0.0


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_scores_the_same_actions_as_fp32(dtype, record_property):
    """The same weights and actions; the network alone computes otherwise."""
    config = configured(*SHORT, f"model.dtype={dtype}", f"model.storage_dtype={dtype}")
    trial, pair = sampled(config, CUDA)
    half = rescored(trial, pair)
    widen(trial.system)
    difference = float((rescored(trial, pair) - half).abs().max())
    record_property(f"{dtype} minus fp32 nats/element", f"{difference:.2e}")
    print(f"\n{dtype} minus fp32: at most {difference:.2e} nats/element")

    assert 0.0 < difference < PARITY
