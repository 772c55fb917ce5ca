"""`saved_state`: what a sealed checkpoint says is what a run has written, or it is refused."""

import json
from dataclasses import replace

import pytest

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.training.checkpoint import load_checkpoint, save_checkpoint
from mvczigal_ref.training.checkpoint_folder import load_state
from mvczigal_ref.training.run_folder import find_checkpoint
from mvczigal_ref.training.saved_state import require_state
from mvczigal_ref.training.state import resume
from tests.unit.training.test_state import PROMPTS, config, stepped, system


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of two iterations, and its configuration."""
    folder, chosen = tmp_path_factory.mktemp("run"), config()
    stepped(chosen, folder)
    return find_checkpoint(folder, chosen), chosen


# -- laws --------------------------------------------------------------------------------


def test_what_a_run_writes_is_taken(saved):
    """With every value, and with those alone that old versions wrote."""
    checkpoint, chosen = saved
    text = json.dumps(checkpoint.state)
    assert require_state(text) == checkpoint.state
    old = {n: checkpoint.state[n] for n in ("constraint", "optimizer", "prompts")}
    resume(
        system(chosen),
        chosen,
        PROMPTS,
        replace(checkpoint, state=require_state(json.dumps(old))),
    )


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("constraint", [[1]]),
        ("constraint", {"multiplier": "1", "threshold": 0.0, "initialised": True}),
        ("optimizer", 1e308),
        ("optimizer", {"numbers": {}, "param_groups": 3}),
        ("records", -1),
        ("records", {"metrics.jsonl": {"rows": -1, "sha256": ""}}),
        ("rewards", 3),
        ("rewards", {"my.py:score": {"place": "my.py"}}),
        ("guard", []),
        ("pending", "x"),
        ("weights", {"place": 1}),
        ("origin", {"place": "x"}),
        ("loss_scale", {"scale": None, "good_steps": 0}),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(saved, tmp_path, name, value):
    """Though the manifest fits: by the readers of a checkpoint and of its values alone."""
    checkpoint, chosen = saved
    state = {**checkpoint.state, name: value}
    path = save_checkpoint(tmp_path, 2, tensors=checkpoint.tensors, state=state, config=chosen)
    for read in (load_checkpoint, load_state):
        with pytest.raises(CheckpointError, match=rf"checkpoint .*its `{name}.*a run has written"):
            read(path)


def without(name, checkpoint):
    return replace(checkpoint, state={k: v for k, v in checkpoint.state.items() if k != name})


def moments(change, checkpoint):
    optimizer = dict(checkpoint.tensors["optimizer"])
    name = next(n for n in optimizer if n.endswith(".exp_avg"))
    optimizer[name] = change(optimizer[name])
    return replace(checkpoint, tensors={**checkpoint.tensors, "optimizer": optimizer})


def group(checkpoint, **change):
    rest = checkpoint.state["optimizer"]
    groups = [{**rest["param_groups"][0], **change}]
    state = {**checkpoint.state, "optimizer": {**rest, "param_groups": groups}}
    return replace(checkpoint, state=state)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda c: without("optimizer", c), "optimizer"),
        (lambda c: without("constraint", c), "constraint"),
        (lambda c: without("prompts", c), "prompts"),
        (lambda c: moments(lambda v: v.flatten()[:1], c), "optimizer"),
        (lambda c: moments(lambda v: v[None], c), "optimizer"),
        (lambda c: group(c, params=[0]), "optimizer"),
        (lambda c: group(c, lr="x"), "optimizer"),
        (lambda c: replace(c, state={**c.state, "guard": {"best": 3}}), "guard"),
        (lambda c: replace(c, state={**c.state, "loss_scale": {"scale": 3.0}}), "loss_scale"),
    ],
)
def test_what_does_not_fit_this_run_is_refused_by_name(saved, change, name):
    """Value by value; the last of them after the parameters are loaded."""
    checkpoint, chosen = saved
    with pytest.raises(CheckpointError, match=rf"the checkpoint's `{name}` must be .*; got"):
        resume(system(chosen), chosen, PROMPTS, change(checkpoint))
