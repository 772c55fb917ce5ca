"""What stops a run leaves a checkpoint from which it goes on to the same bits."""

import os
import signal

import pytest

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.training.checkpoint import load_checkpoint
from mvczigal_ref.training.events import Events
from tests.integration import faults
from tests.integration.runs import (
    HELD_OUT,
    assert_same_run,
    cases,
    checkpoints,
    metrics,
    run,
    small_config,
)

NAN = float("nan")
REWARD = {"what": "reward/world.per_view of sample 1", "object": 1, "view": 4}
FAULTS = {
    "reward": (
        faults.scorer_fault,
        REWARD,
    ),
    "infinite reward": (
        lambda switch: faults.scorer_fault(switch, value=-float("inf")),
        REWARD,
    ),
    "parameter": (faults.parameter_fault, {"object": 0, "view": 0}),
    "loss": (
        faults.loss_fault,
        {"what": "log_ratio_zigzag", "object": 1, "view": 2, "step": 0},
    ),
    "gradient": (faults.gradient_fault, {"object": None, "view": None, "step": None}),
}


@pytest.mark.parametrize("how", cases(FAULTS, "reward", "gradient"))
def test_a_number_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(
    undisturbed, prompts, tmp_path, how
):
    """Its place is named, and without the fault the run goes on to the same bits."""
    fault, place = how
    switch = faults.Switch(after=2)
    with pytest.raises(NonFiniteError) as caught, fault(switch):
        run(small_config(prompts), tmp_path, events=switch)

    assert {name: getattr(caught.value, name) for name in place} == place
    assert checkpoints(tmp_path) == ["iteration_000001", "iteration_000002"]
    assert load_checkpoint(tmp_path / "checkpoints" / "iteration_000002").iteration == 2
    assert [row["iteration"] for row in metrics(tmp_path)] == [0, 1]
    run(small_config(prompts), tmp_path)
    assert_same_run(undisturbed(), tmp_path)


def test_held_out_scores_that_are_not_finite_end_the_run(undisturbed, prompts, tmp_path):
    """Rather than being kept as the run's scores."""
    switch = faults.Switch(after=4)
    message = rf"`reward/world\.per_view of '{HELD_OUT[1]}', noise 0` must .* at object 1, view 4"
    with pytest.raises(NonFiniteError, match=message), faults.scorer_fault(switch):
        run(small_config(prompts), tmp_path, events=switch)
    assert checkpoints(tmp_path)[-1] == "iteration_000004"
    run(small_config(prompts), tmp_path)

    assert_same_run(undisturbed(), tmp_path)


class Ask(Events):
    """Sends a signal to this process, so often, after the second iteration."""

    def __init__(self, number, times):
        self.number, self.times = number, times

    def iteration(self, finished, total, metrics):
        for _ in range(self.times if finished == 2 else 0):
            os.kill(os.getpid(), self.number)


STOPS = {
    "SIGTERM": (signal.SIGTERM, 1, 2),
    "SIGTERM twice": (signal.SIGTERM, 2, 2),
    "Ctrl-C": (signal.SIGINT, 1, 2),
    "Ctrl-C twice": (signal.SIGINT, 2, 0),
}
"""Signal, how often it is sent, and the iteration that is saved."""


@pytest.mark.parametrize("how", cases(STOPS, "SIGTERM", "Ctrl-C twice"))
def test_a_stop_that_is_asked_for_saves_first(undisturbed, prompts, tmp_path, how):
    """Only a second Ctrl-C does not wait; either way the run goes on to the same bits."""
    number, times, saved = how
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    rarely = small_config(prompts, run={"checkpoint_every": 10})
    with pytest.raises(KeyboardInterrupt):
        run(rarely, tmp_path, events=Ask(number, times))

    assert checkpoints(tmp_path)[-1] == f"iteration_00000{saved}"
    assert not (tmp_path / "summary.json").exists()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    run(small_config(prompts), tmp_path)
    assert_same_run(undisturbed(), tmp_path)
