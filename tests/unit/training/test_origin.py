"""`origin`: a new run begins with another one's parameters, and refuses what does not fit."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.lora_reading import PEFT_FILE
from mvczigal_ref.training.checkpoint import load_checkpoint, save_checkpoint
from mvczigal_ref.training.checkpoint_folder import latest_checkpoint
from mvczigal_ref.training.origin import ORIGIN, read_origin
from tests.unit.training.test_tensor_groups import cut, member
from tests.unit.training.test_trainer import config, go, record, saved  # noqa: F401

# -- laws --------------------------------------------------------------------------------


def test_a_new_run_begins_with_the_parameters_of_another(record, tmp_path):  # noqa: F811
    """Iterations begin anew, differences are told, and it goes on without the other run."""
    one, two = tmp_path / "one", tmp_path / "two"
    go(config(), one, record)
    record.measured.clear()
    lower = config(iterations=2, optim={"lr": 1e-5})
    lines = []
    record.note = lines.append
    go(lower, two, record, start=f"{one}@2")

    assert record.measured[0][0] == 2.0  # scored before training: what iteration 2 had reached
    assert record.iterations[-2][0] == 0
    assert "after 2 iterations" in lines[0]
    assert str(one) in lines[0]
    assert "  `optim.lr` is 0.002 there and 1e-05 here" in lines
    kept = json.loads((two / ORIGIN).read_text())
    assert (kept["place"], kept["iteration"]) == (str(one), 2)
    newest = load_checkpoint(latest_checkpoint(two / "checkpoints"))
    assert newest.state["origin"] == kept

    one.rename(tmp_path / "away")
    longer = replace(lower, run=replace(lower.run, iterations=3))
    lines.clear()
    go(longer, two, record)
    assert saved(two) == [0, 2, 3]
    assert lines == []


def test_the_newest_checkpoint_is_the_default(record, tmp_path):  # noqa: F811
    """And a checkpoint's own folder may be named."""
    go(config(), tmp_path / "one", record)
    newest = read_origin(tmp_path / "one", config())
    same = read_origin(tmp_path / "one" / "checkpoints" / "iteration_000004", config())

    assert newest.iteration == same.iteration == 4
    assert newest.sha256 == same.sha256
    assert newest.differences == ()
    assert newest.lines[1:] == ("no setting differs",)


def test_a_checkpoint_in_parts_is_a_beginning_too(record, tmp_path):  # noqa: F811
    """Its tensors are read one by one, and are the new run's first parameters, bit for bit."""
    go(config(), tmp_path / "one", record)
    whole = load_checkpoint(latest_checkpoint(tmp_path / "one" / "checkpoints"))
    policy = dict(whole.policy)
    with member(0, 1):
        values = {"state": whole.state, "config": whole.config}
        path = save_checkpoint(tmp_path, 4, tensors={"policy": cut(policy, 1)}, **values)
    go(config(), tmp_path / "two", record, start=path)

    begun = load_file(tmp_path / "two" / "origin.safetensors")
    assert begun.keys() == policy.keys()
    assert all(torch.equal(begun[name], value) for name, value in policy.items())
    go(config(), tmp_path / "two", record, start=path)  # the same origin still
    name, value = policy.popitem()
    with member(0, 1):
        parts = cut({**policy, name: value / 0}, 1)
        path = save_checkpoint(tmp_path, 5, tensors={"policy": parts}, **values)
    with pytest.raises(CheckpointError, match="got non-finite numbers in"):
        read_origin(path, config())


def test_an_exported_lora_is_a_beginning_too(record, tmp_path):  # noqa: F811
    """As a folder and as a file; its scores before training are the exporting run's after."""
    go(config(), tmp_path / "one", record)
    record.measured.clear()
    policy = tmp_path / "one" / "policy"
    go(config(), tmp_path / "two", record, start=policy)

    assert record.measured[0][0] == 4.0
    one, two = (load_file(p) for p in (policy / PEFT_FILE, tmp_path / "two" / "origin.safetensors"))
    assert sorted(map(torch.Tensor.sum, one.values())) == sorted(
        map(torch.Tensor.sum, two.values())
    )
    assert read_origin(policy / PEFT_FILE, config()).lora == policy / PEFT_FILE


# -- errors ------------------------------------------------------------------------------


@pytest.fixture
def one(record, tmp_path):  # noqa: F811
    """A run that has ended."""
    go(config(), tmp_path / "one", record)
    return tmp_path / "one"


def test_what_is_no_origin_is_refused(one, tmp_path):
    """By name, with the checkpoints that there are."""
    for start in (tmp_path / "absent", tmp_path, f"{tmp_path}@3"):
        with pytest.raises(CheckpointError, match=r"`--from` must name a run folder"):
            read_origin(start, config())
    with pytest.raises(CheckpointError, match=r"of the iterations \[0, 2, 4\]; got 3\."):
        read_origin(f"{one}@3", config())


@pytest.mark.parametrize(
    ("section", "words"), [("lora_rank", {"lora_rank": 4}), ("lora_alpha", {"lora_alpha": 2.0})]
)
def test_parameters_of_another_shape_are_refused(one, section, words):
    """Before any model loads."""
    other = config()
    other = replace(other, model=replace(other.model, **words))
    with pytest.raises(CheckpointError, match=rf"`model\.{section}` must be 8.*, that of '.*one'"):
        read_origin(one, other)
    with pytest.raises(
        CheckpointError, match=rf"`model\.{section}` must be 8.*, that of '.*policy'"
    ):
        read_origin(one / "policy", other)


def test_parameters_that_are_not_finite_are_refused(one):
    """With the way on: an earlier checkpoint."""
    path = one / "checkpoints" / "iteration_000004"
    checkpoint = load_checkpoint(path)
    next(iter(checkpoint.tensors["policy"].values())).view(-1)[0] = torch.nan
    save_checkpoint(
        path.parent, 4, tensors=checkpoint.tensors, state=checkpoint.state, config=checkpoint.config
    )
    with pytest.raises(CheckpointError, match=r"non-finite numbers in .*RUN@ITERATION"):
        read_origin(one, config())
    assert read_origin(f"{one}@2", config()).iteration == 2


def test_a_run_keeps_its_origin(one, record, tmp_path):  # noqa: F811
    """A run that began otherwise is no continuation, and the record must be whole."""
    with pytest.raises(CheckpointError, match="began with its base weights; got `--from`"):
        go(config(), one, record, start=one)
    two = tmp_path / "two"
    left = two / "origin" / "1.safetensors"  # by a start in parts that was cut short
    left.parent.mkdir(parents=True)
    left.touch()
    go(config(iterations=1), two, record, start=one)
    with pytest.raises(CheckpointError, match=r"began with '.*one'; got `--from` '.*one'"):
        go(config(iterations=2), two, record, start=f"{one}@2")
    go(config(iterations=2), two, record, start=one)
    tensors = load_file(two / "origin.safetensors")
    save_file({name: value + 1 for name, value in tensors.items()}, two / "origin.safetensors")
    with pytest.raises(CheckpointError, match=r"must hold the run's first parameters; it is dam"):
        go(config(iterations=3), two, record)
    (two / ORIGIN).unlink()
    with pytest.raises(CheckpointError, match=r"origin that the run's checkpoints tell; it is mis"):
        go(config(iterations=3), two, record)


def test_the_message_of_another_run_says_the_way_on(one, record):  # noqa: F811
    """With other settings a new run can begin from this one."""
    with pytest.raises(CheckpointError, match=r"`--from .*one` with another `--out` begins a new"):
        go(config(optim={"lr": 1e-3}), one, record)
