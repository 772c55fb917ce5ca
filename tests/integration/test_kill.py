"""SIGKILL at any moment costs time and no bits."""

import random

import pytest

from tests.integration.killable import kill_after, start
from tests.integration.runs import assert_same_run, checkpoints, small_config

LONG = {
    "run": {"iterations": 24, "objects_per_slice": 4},
    "optim": {"optimizer_steps_per_epoch": 1},
}


def leftovers(folder):
    """Name the half-written checkpoints of dead writers."""
    return [path.name for path in (folder / "checkpoints").glob(".*.tmp")]


@pytest.mark.parametrize("wanted", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_no_bit(undisturbed, prompts, tmp_path, wanted):
    """Between stages, inside one, and half of them around the writing of a checkpoint."""
    config, chance = small_config(prompts, **LONG), random.Random(20)
    kills, torn, ended = 0, 0, 0
    while kills < wanted and ended < wanted:
        if kills % 2:
            process, pipe = start(config, tmp_path, slow=0.01)
            moment = ("save", chance.choice([1, 2, 3]), chance.uniform(0, 0.2))
        else:
            process, pipe = start(config, tmp_path)
            moment = ("stage", chance.choice([1, 2]), chance.uniform(0, 1.5))
        killed = kill_after(process, pipe, *moment)
        kills, ended = kills + killed, ended + (not killed)
        torn += bool(leftovers(tmp_path))
    process, pipe = start(config, tmp_path)
    process.join()

    assert kills == wanted
    assert process.exitcode == 0
    assert_same_run(undisturbed(**LONG), tmp_path)
    # Of many kills some met a writer half-way, and the next one cleaned up after it.
    assert torn or wanted < 20
    assert leftovers(tmp_path) == []
    assert len(checkpoints(tmp_path)) == config.run.keep_checkpoints
