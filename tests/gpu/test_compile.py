"""A compiled network scores and learns as the plain one."""

import pytest
import torch
from jaxtyping import config as checked
from torch._dynamo.utils import counters

from tests.gpu.checks import (
    CUDA,
    PARITY,
    TRACING,
    configured,
    replay_deviation,
    rescored,
    sampled,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SHORT = ("run.objects_per_slice=1", "run.objects_per_iteration=1")


@pytest.fixture
def unchecked():
    """Leave the tests' type checks out of what is traced: they would cut it into many programs."""
    before = checked.jaxtyping_disable
    checked.update("jaxtyping_disable", True)
    counters.clear()
    yield
    checked.update("jaxtyping_disable", before)


@pytest.mark.filterwarnings(TRACING)
@pytest.mark.usefixtures("unchecked")
def test_a_compiled_network_scores_the_same_actions_alike(record_property):
    """At full width in bf16, by the same weights; one program, whose first ratio is exactly 1."""
    half = ("model.dtype=bf16", "model.storage_dtype=bf16")
    trial, pair = sampled(configured(*SHORT, *half), CUDA)
    plain = rescored(trial, pair).cpu()
    del trial
    torch.cuda.empty_cache()
    compiled, own = sampled(configured(*SHORT, *half, "model.compile=inductor"), CUDA)
    difference = float((rescored(compiled, pair).cpu() - plain).abs().max())
    record_property("compiled minus plain nats/element", f"{difference:.2e}")
    print(f"\ncompiled minus plain: at most {difference:.2e} nats/element")

    assert not counters["graph_break"]
    assert difference < PARITY
    assert replay_deviation(compiled, own) == 0.0
