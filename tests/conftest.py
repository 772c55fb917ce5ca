"""What every test runs under: one thread, and examples that are the same every time."""

import os
import sys
from collections.abc import Iterator

# No test may reach a hub, whatever it loads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=15,
    # The first call of a shape-checked function is slow; that is no fault of the test.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore", parent=settings.get_profile("ci"), derandomize=False, max_examples=1000
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _own_processes() -> Iterator[None]:
    """Forget the processes that a test joined; accelerate keeps them in a global."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None and state.PartialState._shared_state:
        state.PartialState._reset_state()
