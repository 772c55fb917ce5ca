"""`training.met_prompts`: laws and errors."""

import pytest

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.training.checkpoint import load_checkpoint
from mvczigal_ref.training.met_prompts import met_prompts_digest, require_same_prompts
from mvczigal_ref.training.prompt_batch import prompt_batch
from mvczigal_ref.training.run_folder import find_checkpoint
from mvczigal_ref.training.state import begin
from tests.unit.training.test_state import PROMPTS, config, stepped, system

# -- laws --------------------------------------------------------------------------------


def test_other_prompts_are_refused(tmp_path):
    """Their order counts: it decides which prompt an iteration meets."""
    stepped(config(), tmp_path)
    found = find_checkpoint(tmp_path, config())
    with pytest.raises(CheckpointError, match=r"`run\.prompts` = 'world\.train' must hold"):
        require_same_prompts(PROMPTS[::-1], config(), found)


def test_prompts_that_were_not_met_yet_may_be_mended(tmp_path):
    """The run is then to the bit what it would have been with them from its beginning."""
    chosen, many = config(), [f"prompt {index}" for index in range(12)]
    state = begin(system(chosen), chosen, World(), many)
    state.finished = 2
    state.save(tmp_path)
    met = {p for i in (0, 1) for p in prompt_batch(many, seed=0, iteration=i, count=3)}
    saved = load_checkpoint(tmp_path / "checkpoints" / "iteration_000002")
    assert len(met) == 6
    for index, prompt in enumerate(many):
        others = [*many[:index], "mended", *many[index + 1 :]]
        if prompt in met:
            with pytest.raises(CheckpointError, match="those it has met"):
                require_same_prompts(others, chosen, saved)
        else:
            with pytest.warns(UserWarning, match="has not met yet"):
                require_same_prompts(others, chosen, saved)
    with pytest.raises(CheckpointError, match="those it has met"):
        require_same_prompts([*many, "one more"], chosen, saved)


def test_prompts_that_set_the_threshold_were_met(tmp_path):
    """Before the first iteration."""
    chosen, many = config({"threshold_objects": 5}), [f"prompt {index}" for index in range(12)]
    digests = []
    for count, mended in ((12, None), (12, 4), (12, 5), (13, None)):
        order = prompt_batch(many, seed=0, iteration=0, count=12)
        listed = [*many, "one more"][:count]
        if mended is not None:
            listed[many.index(order[mended])] = "mended"
        digests.append(met_prompts_digest(listed, chosen, 0))
    whole, met, later, longer = digests

    assert whole == later
    assert len({whole, met, longer}) == 3
