"""Pretraining from the command line: in which processes it runs, and who owns its folder."""

import os
from contextlib import contextmanager

import pytest

from mvczigal_ref import files
from mvczigal_ref.cli import pretraining
from mvczigal_ref.cli.pretraining import Pretrain, pretrain_weights
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError, RunFolderInUseError
from mvczigal_ref.files import owned
from mvczigal_ref.pretraining import flow, multiview
from mvczigal_ref.pretraining import ship as shipped


@pytest.fixture
def called(monkeypatch):
    """What is started, joined, trained and shipped, in order, instead of being done."""
    called = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(pretraining, "launch", lambda *given: called.append(given) or 3)
    monkeypatch.setattr(pretraining, "join", lambda device: called.append(device) or World())
    for module, name in (
        (multiview, "pretrain"), (flow, "pretrain_flow"),
        (shipped, "ship"), (shipped, "ship_flow"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_, name=name: called.append(name))
    return called


def test_several_processes_are_started_with_the_same_words(called, tmp_path):
    """And it ends as they do."""
    command = Pretrain(settings=("base_steps=3",), out=tmp_path, processes=2)
    with pytest.raises(SystemExit) as ended:
        pretrain_weights(command)

    words = ["pretrain", "base_steps=3", "--model", "multiview", "--out", str(tmp_path)]
    assert called == [(2, [*words, "--processes", "2"])]
    assert ended.value.code == 3


@pytest.mark.parametrize("model", ["multiview", "flow"])
def test_each_of_them_joins_the_others_before_it_trains(called, tmp_path, monkeypatch, model):
    """Otherwise they would meet at an address of their own choice."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    pretrain_weights(Pretrain(model=model, out=tmp_path, processes=2))

    suffix = "_flow" if model == "flow" else ""
    assert called == ["cpu", f"pretrain{suffix}", f"ship{suffix}"]


def test_the_others_ship_nothing(called, tmp_path, monkeypatch):
    """One process writes, and it alone owns the folder."""
    monkeypatch.setattr(pretraining, "join", lambda _: World(rank=1, size=2))
    monkeypatch.setattr(World, "barrier", lambda _: None)
    with owned(tmp_path):
        pretrain_weights(Pretrain(out=tmp_path))

    assert called == ["pretrain"]


def test_a_folder_in_which_another_pretrains_is_refused(called, tmp_path, monkeypatch):
    """Its stages would be mixed; afterwards the folder is free."""
    monkeypatch.setattr(files, "_WAIT", 0.0)
    with owned(tmp_path), pytest.raises(RunFolderInUseError, match=f"process {os.getpid()} "):
        pretrain_weights(Pretrain(out=tmp_path))
    assert called == ["cpu"]

    pretrain_weights(Pretrain(out=tmp_path))
    assert called == ["cpu", "cpu", "pretrain", "ship"]


def test_the_folder_is_owned_until_the_weights_are_shipped(called, tmp_path, monkeypatch):
    """Shipping reads and writes there, too."""
    for module, name in ((multiview, "pretrain"), (shipped, "ship")):
        monkeypatch.setattr(module, name, lambda *_: called.append((tmp_path / ".lock").is_file()))
    pretrain_weights(Pretrain(out=tmp_path))

    assert called == ["cpu", True, True]
    assert list(tmp_path.iterdir()) == []


def test_one_process_speaks_of_a_refusal(called, tmp_path, monkeypatch):
    """All meet it; the others end in silence, with its status."""

    @contextmanager
    def together(_):
        raise RunFolderInUseError("in use")
        yield

    monkeypatch.setattr(pretraining, "join", lambda _: World(rank=1, size=2))
    monkeypatch.setattr(World, "together", together)
    monkeypatch.setattr(pretraining, "_LAST_WORD", 0.0)
    with pytest.raises(SystemExit) as ended:
        pretrain_weights(Pretrain(out=tmp_path))
    assert (ended.value.code, called) == (2, [])


def test_a_wrong_setting_is_refused_before_a_process_is_started(called, tmp_path):
    """Once, not by each of them."""
    with pytest.raises(ConfigError, match="`base_step`"):
        pretrain_weights(Pretrain(settings=("base_step=3",), out=tmp_path, processes=2))
    assert called == []
