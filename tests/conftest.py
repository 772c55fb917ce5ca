"""What every test runs under: one thread, and examples that are the same every time."""

import inspect
import os
import signal
import sys
from collections.abc import Iterator
from types import FunctionType

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

# What is started in the background ignores these, and what it starts does too: a test that asks a
# run to stop would wait for ever.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (getattr(signal, "SIGHUP", None), signal.SIG_DFL),
):
    if _number is not None and signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


LONGEST = (
    "test_two_processes.py", "test_sharding.py", "test_pretend_device.py", "test_cli.py",
    "test_processes.py", "test_reward_service.py", "test_resume.py", "test_pretrain.py",
    "test_modes.py", "test_golden_runs.py", "test_claims.py", "test_check.py",
    "test_combinations.py", "test_fit.py", "test_kill.py", "test_checking.py", "test_evaluate.py",
    "test_planning.py", "test_compile.py",
)  # fmt: skip
"""Files that take longest, in that order: two workers that take file after file then end
together."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; all others keep their order."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


LAYERS = (
    "frozen_layers", "lora_form", "memo", "merged_linear", "projections", "quick_blocks",
    "row_attention", "sharding",
)  # fmt: skip
"""Modules of `models` whose functions run in every layer: nine tenths of all checked calls."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check shapes inside layers for the tests of networks alone; other tests check around them.

    The tests of resuming take 0.7 of the CPU time so.
    """
    inside = "models" in item.path.parts
    for function in _layer_functions():
        function.__no_type_check__ = not inside  # the mark of `typing.no_type_check`


def _layer_functions() -> Iterator[FunctionType]:
    """List functions and methods of those layers that are loaded, under any decorator."""
    for name in sys.modules.keys() & {f"mvczigal_ref.models.{layer}" for layer in LAYERS}:
        own = [v for v in vars(sys.modules[name]).values() if getattr(v, "__module__", "") == name]
        for value in own:
            for found in vars(value).values() if inspect.isclass(value) else (value,):
                while found is not None:
                    if isinstance(found, FunctionType):
                        yield found
                    found = getattr(found, "__wrapped__", None)


@pytest.fixture(autouse=True)
def _own_processes() -> Iterator[None]:
    """Forget the processes that a test joined; accelerate keeps them in a global."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None and state.PartialState._shared_state:
        state.PartialState._reset_state()
