"""`checkpoint`: whole or absent, bit for bit, and refused by name and reason otherwise."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mvczigal_ref import files
from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import atomic_write
from mvczigal_ref.training import checkpoint, checkpoint_folder, tensor_groups
from mvczigal_ref.training.checkpoint import (
    clean_leftovers,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from mvczigal_ref.training.checkpoint_folder import latest_checkpoint
from mvczigal_ref.training.optimizer_state import join_optimizer_state, split_optimizer_state

CONFIG = TrainConfig()
STATE = {"multiplier": 0.1 + 0.2, "threshold": None, "seen": [1, 2], "name": "naïve"}


class Killed(BaseException):
    """Stands for a kill: no handler catches it."""


def tensors(value=0.0):
    """Every kind of tensor that a run keeps."""
    shared = torch.arange(6.0).reshape(2, 3) + value
    return {
        "policy": {
            "fp32": shared,
            "view": shared[1],
            "transposed": shared.T,
            "bf16": torch.tensor([1.1, -0.0, float("inf")], dtype=torch.bfloat16),
            "trained": torch.nn.Parameter(torch.tensor([float("nan"), value])),
        },
        "optimizer": {"0.step": torch.tensor(3.0 + value), "empty": torch.empty(0, 2)},
        "generators": {"noise": torch.Generator().manual_seed(5).get_state()},
        "nothing": {},
    }


def save(folder, iteration, value=0.0, config=CONFIG):
    """Save with a state that tells the iteration."""
    state = {**STATE, "iteration": iteration}
    return save_checkpoint(folder, iteration, tensors=tensors(value), state=state, config=config)


def bits(tensor):
    """A tensor as bytes, so that NaN equals NaN and -0 does not equal 0."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def refusal(path, config=None):
    """The sentence with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, config=config)
    assert str(path) in str(caught.value)
    return str(caught.value)


def names(folder):
    """What a listing of the folder shows, hidden names too."""
    return sorted(path.name for path in folder.iterdir())


# -- oracle: what was saved is what is loaded --------------------------------------------


def test_everything_comes_back_bit_for_bit(tmp_path):
    """Shared, transposed, half-precision, trained, scalar, empty and generator tensors."""
    path = save(tmp_path, 10)
    back = load_checkpoint(path, config=CONFIG)

    assert path == tmp_path / "iteration_000010"
    assert back.iteration == 10
    assert back.state == {**STATE, "iteration": 10}
    assert back.config == CONFIG
    for group, named in tensors().items():
        assert set(back.tensors[group]) == set(named)
        for name, tensor in named.items():
            found = back.tensors[group][name]
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert bits(found) == bits(tensor)


def test_a_generator_goes_on_where_it_stopped(tmp_path):
    """Its state is a tensor like any other."""
    generator = torch.Generator().manual_seed(1)
    torch.randn(7, generator=generator)
    state = {"policy": {"noise": generator.get_state()}}
    expected = torch.randn(5, generator=generator)
    path = save_checkpoint(tmp_path, 0, tensors=state, state={}, config=CONFIG)
    restored = torch.Generator()
    restored.set_state(load_checkpoint(path).tensors["policy"]["noise"])

    assert torch.equal(torch.randn(5, generator=restored), expected)


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=10)
def test_floats_of_the_state_come_back_bit_for_bit(tmp_path_factory, value):
    """A multiplier is no rounder after a resume."""
    folder = tmp_path_factory.mktemp("state")
    path = save_checkpoint(folder, 1, tensors={"policy": {}}, state={"x": value}, config=CONFIG)

    assert load_checkpoint(path).state["x"].hex() == value.hex()


# -- the optimiser's state --------------------------------------------------------------


def trained(steps, *, optimizer=None, parameters=None, kind=torch.optim.AdamW):
    """A network after some steps on fixed gradients."""
    if parameters is None:
        generator = torch.Generator().manual_seed(0)
        parameters = [nn.Parameter(torch.randn(n, generator=generator)) for n in (3, 5, 2)]
        optimizer = kind(
            [{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:]}], lr=0.01
        )
    for step in range(steps):
        for parameter in parameters[:2]:
            parameter.grad = torch.sin(parameter.detach() + step)
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adam])
def test_a_restored_optimiser_goes_on_with_the_same_bits(kind):
    """Two steps, a way through JSON, two steps equal four; the third parameter is never trained."""
    half, optimizer = trained(2, kind=kind)
    tensors, rest = split_optimizer_state(optimizer.state_dict())
    fresh = [nn.Parameter(p.detach().clone()) for p in half]
    restored = kind([{"params": fresh[:1]}, {"params": fresh[1:]}], lr=9.0)
    restored.load_state_dict(join_optimizer_state(tensors, json.loads(json.dumps(rest))))
    trained(2, optimizer=restored, parameters=fresh)
    whole, whole_optimizer = trained(2, kind=kind)
    trained(2, optimizer=whole_optimizer, parameters=whole)

    assert all(torch.equal(a, b) for a, b in zip(fresh, whole, strict=True))


def test_join_inverts_split_exactly():
    """State, numbers that are no tensors, groups, and AdamW's pair of betas."""
    _, optimizer = trained(1)
    state = optimizer.state_dict()
    state["state"][1]["count"] = 3
    tensors, rest = split_optimizer_state(state)
    back = join_optimizer_state(tensors, json.loads(json.dumps(rest)))

    assert back["param_groups"] == state["param_groups"]
    assert rest["numbers"] == {"1.count": 3}
    assert {k: set(v) for k, v in back["state"].items()} == {
        k: set(v) for k, v in state["state"].items()
    }
    assert back["state"][1]["count"] == 3
    assert all(
        back["state"][p][e] is state["state"][p][e] for p, e in [(0, "step"), (1, "exp_avg")]
    )


# -- laws: whenever the writer dies ------------------------------------------------------


def test_the_latest_is_the_newest_by_number(tmp_path):
    """Not by date and not by the alphabet."""
    for iteration in (2, 10_000_000, 2_000_000):
        save(tmp_path, iteration)

    assert latest_checkpoint(tmp_path).name == "iteration_10000000"
    assert latest_checkpoint(tmp_path / "absent") is None


def steps_of_saving(monkeypatch, fatal):
    """Die at the given one of the calls that change the disk; count them."""
    count = [0]

    def wrap(function):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == fatal:
                raise Killed
            return function(*args, **kwargs)

        return call

    sync = wrap(files.sync)
    for place in (checkpoint, files):
        monkeypatch.setattr(place, "sync", sync)
    monkeypatch.setattr(tensor_groups, "save_file", wrap(tensor_groups.save_file))
    monkeypatch.setattr(checkpoint, "discard", wrap(checkpoint.discard))
    for name in ("mkdir", "rename", "write_text"):
        monkeypatch.setattr(checkpoint.Path, name, wrap(getattr(Path, name)))
    return count


@pytest.mark.parametrize("again", [False, True], ids=["new", "same iteration again"])
def test_wherever_the_writer_dies_a_whole_checkpoint_is_found(tmp_path, again):
    """Every step of saving is the last one once; what is found is the old one or the new."""
    fatal = 0
    while True:
        fatal += 1
        folder = tmp_path / str(fatal)
        save(folder, 2, value=1.0)
        with pytest.MonkeyPatch.context() as patch:
            count = steps_of_saving(patch, fatal)
            with contextlib.suppress(Killed):
                save(folder, 2 if again else 3, value=2.0)
            finished = count[0] < fatal
        found = load_checkpoint(latest_checkpoint(folder), config=CONFIG)
        value = found.tensors["optimizer"]["0.step"].item() - 3.0
        assert (found.iteration, value) in {(2, 1.0), (2 if again else 3, 2.0)}
        # The next save goes through, and clears what the dead writer left.
        save(folder, 4)
        left = {"iteration_000002", "iteration_000003", "iteration_000004"}
        assert set(names(folder)) <= left
        assert latest_checkpoint(folder).name == "iteration_000004"
        if finished:
            break

    assert fatal > 15


WRITER = """
import sys, torch
from pathlib import Path
from mvczigal_ref.training.checkpoint import save_checkpoint, prune_checkpoints
from mvczigal_ref.config import TrainConfig
for i in range(10**6):
    x, y = (torch.full((size,), float(i)) for size in (2**16, 9))
    tensors = {"policy": {"x": x}, "b": {"y": y}}
    save_checkpoint(Path(sys.argv[1]), i, tensors=tensors, state={"i": i}, config=TrainConfig())
    prune_checkpoints(Path(sys.argv[1]), keep=2)
    print(i, flush=True)
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_writer_killed_at_a_random_moment_leaves_its_last_checkpoint(tmp_path, seed):
    """SIGKILL, which no process can handle; what it reported as saved is there."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        first = writer.stdout.readline()
        time.sleep(random.Random(seed).uniform(0.0, 0.2))
    finally:
        writer.send_signal(signal.SIGKILL)
        reported = [first, *writer.stdout.readlines()]
        writer.stdout.close()
        writer.wait()
    last = int([line for line in reported if line.endswith("\n")][-1])
    found = load_checkpoint(latest_checkpoint(tmp_path))

    assert writer.returncode == -signal.SIGKILL
    assert found.iteration in {last, last + 1}
    assert found.state == {"i": found.iteration}
    assert set(found.tensors["policy"]["x"].tolist()) == {float(found.iteration)}
    assert found.tensors["b"]["y"].tolist() == [float(found.iteration)] * 9
    clean_leftovers(tmp_path)
    assert all(name.startswith("iteration_") for name in names(tmp_path))
    assert len(names(tmp_path)) <= 3


@pytest.fixture
def unreadable():
    """A folder of a checkpoint that this process may not read, though it be root's."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    save(root / "checkpoints", 1)
    (root / "checkpoints").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield root / "checkpoints"
    os.seteuid(user)
    (root / "checkpoints").chmod(0o755)
    shutil.rmtree(root)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_folder_that_may_not_be_read_is_not_empty(unreadable):
    """Else a run would begin anew beside its checkpoints."""
    with pytest.raises(PermissionError, match="checkpoints"):
        latest_checkpoint(unreadable)


def test_a_file_in_a_checkpoints_place_is_not_passed_over(tmp_path):
    """Else a run would go on from an older one, or anew."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "iteration_000003").write_text("")
    newest = latest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    with pytest.raises((CheckpointError, NotADirectoryError), match="iteration_000003"):
        load_checkpoint(newest)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        latest_checkpoint(tmp_path / "file")


def test_looking_for_the_latest_changes_nothing(tmp_path):
    """A report may be made while the run is saving."""
    save(tmp_path, 1)
    (tmp_path / ".iteration_000002.123.tmp").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    before = names(tmp_path)

    assert latest_checkpoint(tmp_path).name == "iteration_000001"
    assert names(tmp_path) == before
    clean_leftovers(tmp_path)
    assert names(tmp_path) == ["iteration_000001", "notes.txt"]


def test_pruning_keeps_the_newest(tmp_path):
    """As many as asked, and files that are none of ours."""
    for iteration in range(5):
        save(tmp_path, iteration)
    (tmp_path / "notes.txt").write_text("mine")
    prune_checkpoints(tmp_path, keep=2)

    assert names(tmp_path) == ["iteration_000003", "iteration_000004", "notes.txt"]


def test_a_read_only_checkpoint_ends_no_run(tmp_path):
    """It is pruned, and replaced, as any other."""
    for iteration in range(3):
        save(tmp_path, iteration).chmod(0o500)
    prune_checkpoints(tmp_path, keep=1)
    save(tmp_path, 2)

    assert names(tmp_path) == ["iteration_000002"]


def test_pruning_never_removes_the_newest_whole_one(tmp_path):
    """Even where newer ones are damaged and fewer are to be kept."""
    for iteration in range(5):
        save(tmp_path, iteration)
    for iteration in (3, 4):
        (tmp_path / f"iteration_00000{iteration}" / "state.json").write_text("{}")
    prune_checkpoints(tmp_path, keep=1)

    assert names(tmp_path) == ["iteration_000002", "iteration_000004"]


# -- errors: damaged or foreign ----------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small whole checkpoint, to be copied and damaged."""
    return save_checkpoint(
        tmp_path_factory.mktemp("whole"),
        7,
        tensors={"policy": {"w": torch.tensor([1.0, 2.0])}},
        state={"multiplier": 0.5},
        config=CONFIG,
    )


FILES = ["config.json", "manifest.json", "policy.safetensors", "state.json"]


def test_a_checkpoint_has_the_files_that_are_damaged_below(whole):
    """One file a group, and three of JSON."""
    assert names(whole) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(whole, tmp_path, name):
    """By its name."""
    path = shutil.copytree(whole, tmp_path / "iteration_000007")
    (path / name).unlink()

    assert name in refusal(path)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(whole, tmp_path, name):
    """By its name, at half its length and at none."""
    path = shutil.copytree(whole, tmp_path / "iteration_000007")
    content = (path / name).read_bytes()
    for length in (len(content) - 1, len(content) // 2, 0):
        (path / name).write_bytes(content[:length])
        assert name in refusal(path)


@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@settings(max_examples=100)
def test_any_flipped_bit_is_refused(whole, tmp_path_factory, name, where, bit):
    """In any file, the manifest too; the file is named."""
    path = shutil.copytree(whole, tmp_path_factory.mktemp("flip") / "iteration_000007")
    content = bytearray((path / name).read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    (path / name).write_bytes(content)

    assert name in refusal(path)


def test_a_damaged_newest_is_refused_with_a_remedy_and_not_passed_over(tmp_path):
    """No kill leaves one, so its owner should know; the one before it is still good."""
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    (newest / "state.json").write_text("{}")

    assert latest_checkpoint(tmp_path) == newest
    assert "'state.json'" in refusal(newest)
    assert refusal(newest).endswith("Remove it to go on from the one before, or name another.")
    shutil.rmtree(newest)
    assert load_checkpoint(latest_checkpoint(tmp_path)).iteration == 1


def reseal(path, **changes):
    """Change a manifest as another program would write it, with a valid seal."""
    manifest = {**json.loads((path / "manifest.json").read_text()), **changes}
    manifest = {key: value for key, value in manifest.items() if value is not None}
    manifest["sha256"] = checkpoint_folder.seal(manifest)
    (path / "manifest.json").write_text(checkpoint.to_json(manifest))


def files_of(path, **changes):
    """Measure the files that a manifest lists, some otherwise; None leaves one out."""
    here = {file.name: checkpoint_folder.measure(file) for file in path.iterdir()}
    files = {name: value for name, value in here.items() if name != "manifest.json"} | changes
    return {name: value for name, value in files.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"version": 2}, "it is of version 2, and this one reads 1"),
        ({"version": None}, "it is of version None, and this one reads 1"),
        ({"parts": 4}, "its key 'parts' is unknown"),
        ({"iteration": None}, "its key 'iteration' is missing"),
        ({"fingerprint": None}, "its key 'fingerprint' is missing"),
        ({"files": None}, "its key 'files' is missing"),
        ({"files": ["state.json"]}, "its key 'files' is of another kind"),
        ({"iteration": "7"}, "its key 'iteration' is of another kind"),
        ({"files": {"a.json": {"bytes": 3}}}, "its key 'files.a.json.sha256' is missing"),
        (
            {"files": {"a.json": {"bytes": 3, "sha256": "b", "parts": 2}}},
            "its key 'files.a.json.parts' is unknown",
        ),
    ],
)
def test_a_manifest_of_a_newer_version_is_refused(whole, tmp_path, changes, fault):
    """In one line that says so: a key that is unknown, missing or of another kind, a version."""
    path = shutil.copytree(whole, tmp_path / "iteration_000007")
    reseal(path, **changes)
    newer = "a newer version of this package wrote its file 'manifest.json': "
    for read in (load_checkpoint, checkpoint_folder.load_state):
        with pytest.raises(
            CheckpointError, match=re.escape(f"{newer}{fault}; an update")
        ) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("state.json", "its key 'files.state.json' is missing"),
        ("config.json", "its key 'files.config.json' is missing"),
        ("policy.safetensors", "it lists no file with the parameters of a 'policy'"),
    ],
)
def test_a_manifest_without_a_file_of_every_run_is_refused(whole, tmp_path, name, fault):
    """Where a newer version keeps its content in another one."""
    path = shutil.copytree(whole, tmp_path / "iteration_000007")
    reseal(path, files=files_of(path, **{name: None}))

    newer = "a newer version of this package wrote its file 'manifest.json': "
    assert newer + fault in refusal(path)


def test_a_file_of_tensors_that_is_unknown_is_refused(whole, tmp_path):
    """And not passed over, as if the run had no such tensors."""
    path = shutil.copytree(whole, tmp_path / "iteration_000007")
    name = "shard-00001.policy.tensors"
    (path / "policy.safetensors").rename(path / name)
    reseal(path, files=files_of(path))

    assert f"a newer version of this package wrote its file {name!r}: its name is" in refusal(path)


def test_another_format_is_refused(whole, tmp_path):
    """It is no checkpoint of this package."""
    path = shutil.copytree(whole, tmp_path / "iteration_000007")
    reseal(path, format="another")
    assert "is not one of a mvczigal-ref checkpoint" in refusal(path)
    (path / "manifest.json").write_text("[]\n")
    assert "is not one of a mvczigal-ref checkpoint" in refusal(path)


def test_settings_that_this_package_does_not_know_are_refused(whole, tmp_path):
    """A checkpoint of a later package says which setting it is."""
    path = shutil.copytree(whole, tmp_path / "iteration_000007")
    text = checkpoint.to_json({"optim": {"momentum": 1}})
    (path / "config.json").write_text(text)
    manifest = json.loads((path / "manifest.json").read_text())
    reseal(
        path,
        files={**manifest["files"], "config.json": checkpoint_folder.measure(path / "config.json")},
    )

    assert "unknown setting `optim.momentum`" in refusal(path)


def test_a_checkpoint_of_another_configuration_is_refused(whole):
    """Each differing setting is named, with both values; a longer run may go on."""
    other = load_config(overrides=["optim.lr=1e-5", "run.seed=3", "run.iterations=999"])
    longer = load_config(overrides=["run.iterations=999", "run.device=cpu"])

    assert (
        "it belongs to another configuration: `optim.lr` is 0.002 there and 1e-05 here; "
        "`run.seed` is 0 there and 3 here."
    ) in refusal(whole, other)
    assert load_checkpoint(whole, config=longer).iteration == 7


def test_something_else_is_refused(tmp_path):
    """A folder that is none, and a path that leads nowhere."""
    assert "manifest.json" in refusal(tmp_path)
    assert "manifest.json" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("state", [{"x": (1, 2)}, {"x": {1: 2}}])
def test_a_state_that_would_come_back_different_is_refused(tmp_path, state):
    """JSON has no tuples and no numbers as keys."""
    with pytest.raises(ValueError, match="`state` must be JSON that reads back equal"):
        save_checkpoint(tmp_path, 0, tensors={}, state=state, config=CONFIG)
    assert names(tmp_path) == []


def test_a_non_finite_state_is_refused(tmp_path):
    """JSON has no word for it."""
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 0, tensors={}, state={"x": float("nan")}, config=CONFIG)


@pytest.mark.parametrize("group", ["../up", "", "A", "a.b"])
def test_a_group_that_cannot_name_a_file_is_refused(tmp_path, group):
    """With the name got."""
    with pytest.raises(ValueError, match="`tensors` must be grouped under lower-case names; got"):
        save_checkpoint(tmp_path, 0, tensors={group: {}}, state={}, config=CONFIG)


def test_keeping_none_is_refused(tmp_path):
    """A run must be able to go on."""
    with pytest.raises(ValueError, match="`keep` must be at least 1; got 0"):
        prune_checkpoints(tmp_path, keep=0)


def test_atomic_write_is_offered_here_too(tmp_path):
    """For every other file that a run needs later."""
    atomic_write(tmp_path / "x", "y")

    assert (tmp_path / "x").read_text() == "y"
