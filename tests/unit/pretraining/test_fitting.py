"""`world.fitting`: what is logged of a loop."""

import json

import pytest
import torch
from accelerate import Accelerator

from mvczigal_ref.pretraining.fitting import file_log, optimiser_steps


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(3, [(3, 1.0)]), (50, [(50, 24.5)]), (52, [(50, 24.5), (52, 50.5)])],
)
def test_means_are_logged_every_fifty_steps_and_at_the_end(steps, expected):
    """Each over the losses since the last one; a short stage is told too."""
    module, seen, made = torch.nn.Linear(1, 1), [], []

    def loss(generator):
        made.append(len(made))
        return 0.0 * module.weight.sum() + made[-1]

    for _ in optimiser_steps(
        Accelerator(cpu=True), module, loss, name="stage", steps=steps, lr=1e-3, seed=0,
        log=lambda *told: seen.append(told),
    ):  # fmt: skip
        pass

    assert seen == [("stage", step, steps, mean) for step, mean in expected]


def test_a_line_says_how_far_a_stage_is(tmp_path, capsys):
    """Steps of all, and once there is a pace, the time left; the file keeps numbers."""
    log = file_log(Accelerator(cpu=True), tmp_path / "log.jsonl")
    log("base", 50, 100, 0.5)
    log("base", 75, 100, 0.25)
    log("base", 100, 100, 0.125)

    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "base: step 50 of 100, loss 0.5"
    assert second == "base: step 75 of 100, loss 0.25, 0 min left of it"
    assert last == "base: step 100 of 100, loss 0.125"
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(50, 0.5), (75, 0.25), (100, 0.125)]
