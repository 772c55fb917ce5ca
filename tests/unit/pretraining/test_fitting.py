"""`world.fitting`: what is logged of a loop."""

import pytest
import torch
from accelerate import Accelerator

from mvczigal_ref.pretraining.fitting import optimiser_steps


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

    assert seen == [("stage", step, mean) for step, mean in expected]
