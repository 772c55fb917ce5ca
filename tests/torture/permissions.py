"""Permissions of every command: unreadable files, folders that take none, one for the other."""

import ctypes
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from tests.integration.faults import patched
from tests.integration.runs import HELD_OUT, PROMPTS, contents, run
from tests.torture.folders import config_of
from tests.torture.tally import Tally, command, require_line

_VERSION = 0x20080522  # of the system call's header
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
_PROMPT = HELD_OUT[0]
_SCORE = ("score", "a.png", "--prompt", _PROMPT, "--reward", "world.per_view")
_EVALUATE = ("evaluate", "--run", "run", "--noises", "1", "--prompts", "p.txt")
_BENCHMARK = (
    "benchmark", "--run", "run", "--prompts", "p.txt", "--columns", "mine:world.per_view",
)  # fmt: skip
_ENHANCE = ("enhance", "p.txt", "--model", "m", "--url", "http://127.0.0.1:9/v1", "--out")
_NEWEST = "run/checkpoints/iteration_000003"

# Commands with files that they read; a name ends in "/" where a folder is meant.
_READ: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (_SCORE, ("a.png",)),
    (("score", "a.png", "--prompt", "p", "--reward", "image_reward", "--weights", "w.pt"),
     ("w.pt",)),
    (_EVALUATE, ("p.txt", "run/config.json", "run/checkpoints/", f"{_NEWEST}/",
                 f"{_NEWEST}/state.json", f"{_NEWEST}/policy.safetensors")),
    (_BENCHMARK, ("p.txt", "run/config.json", f"{_NEWEST}/manifest.json")),
    ((*_ENHANCE, "caps.jsonl"), ("p.txt", "caps.jsonl")),
    (("convert-reward", "w.pt", "new.safetensors"), ("w.pt",)),
    (("report", "run"), ("run/config.json", "run/metrics.jsonl", "run/evaluations/",
                         "run/evaluations/before_000000.safetensors",
                         "run/evaluations/prompts.json", "run/summary.json", "run/checkpoints/")),
    (("push", "run", "me/mine", "--dry-run", "new"),
     ("run/config.json", f"{_NEWEST}/policy.safetensors", "run/checkpoints/")),
    (("export", "run", "--out", "new"), ("run/config.json", "run/checkpoints/")),
    (("sample", _PROMPT, "--run", "run", "--out", "new"),
     ("run/config.json", f"{_NEWEST}/policy.safetensors")),
    (("sample", _PROMPT, "--lora", "run/policy", "--out", "new"),
     ("run/policy/adapter_model.safetensors", "run/policy/adapter_config.json",
      "run/policy/SHA256SUMS")),
    (("plan", "tiny", "--config", "c.yaml"), ("c.yaml",)),
    (("check", "tiny", "--config", "c.yaml"), ("c.yaml",)),
    (("check", "tiny", "run.prompts=p.txt"), ("p.txt",)),
    (("train", "tiny", "--config", "c.yaml", "--out", "new"), ("c.yaml",)),
    (("train", "tiny", "--from", "run", "--out", "new"), (f"{_NEWEST}/manifest.json",)),
    (("train", "tiny", "--from", "run/policy/lora.safetensors", "--out", "new"),
     ("run/policy/lora.safetensors",)),
    (("play", "run"), ("run/config.json",)),
    (("serve-reward", "image_reward", "--weights", "w.pt", "--port", "0"), ("w.pt",)),
    (("reproduce", "claims", "--read-only", "--out", "runs"), ("runs/",)),
)  # fmt: skip

# Commands that write into a folder `outbox`, beside the name that they write there.
_WRITTEN: tuple[tuple[tuple[str, ...], str], ...] = (
    *(((*words, "--json", "outbox/x.json"), "x.json") for words in (
        _SCORE, _EVALUATE, _BENCHMARK, ("plan", "tiny"), ("check", "tiny"), ("recipes", "tiny"),
        ("settings", "optim"), ("reproduce", "claims", "--list"))),
    ((*_ENHANCE, "outbox/caps.jsonl"), "caps.jsonl"),
    (("convert-reward", "w.pt", "outbox/new.safetensors"), "new.safetensors"),
    (("push", "run", "me/mine", "--dry-run", "outbox/new"), ""),
    (("export", "run", "--out", "outbox/new"), ""),
    (("sample", _PROMPT, "--out", "outbox/new"), ""),
    (("sample", _PROMPT, "--out", "outbox"), ""),
    (("train", "tiny", "--out", "outbox/new"), ""),
    (("pretrain", "--out", "outbox/new"), ""),
    (("reproduce", "--out", "outbox/new"), ""),
    (("report", "outbox"), "report.html"),
)  # fmt: skip


@dataclass(frozen=True)
class _Case:
    """A command and what is wrong with one of its files."""

    words: tuple[str, ...]
    name: str
    harm: str


def torture(tally: Tally, _: random.Random, count: int, folder: Path) -> None:
    """Try every command against each of its files, in an order of the seed's."""
    tally.limit = 120.0
    whole = folder / "whole"
    _prepare(whole)
    cases = list(_cases())
    random.Random(f"permissions {tally.seed}").shuffle(cases)
    for place, _chance in tally.places(min(count, len(cases))):
        case, here = cases[place], folder / "here"
        shutil.copytree(whole, here)
        if case.words[:2] == ("report", "outbox"):
            shutil.rmtree(here / "outbox")
            shutil.copytree(here / "run", here / "outbox")
        with tally.attempt(f"{' '.join(case.words)}: {case.name} {case.harm}"):
            _attempt(tally, case, here)
        for path in (here, *here.rglob("*")):
            path.chmod(0o700)
        shutil.rmtree(here)


def _attempt(tally: Tally, case: _Case, here: Path) -> None:
    """Harm the file, run the command, and compare what is left with what was there."""
    path = here / case.name.rstrip("/")
    if case.harm in ("a folder", "a file"):
        _exchange(path, folder=case.harm == "a folder")
    before = contents(here)
    if case.harm == "unreadable":
        path.chmod(0)
    elif case.harm == "read-only":
        path.chmod(0o500)
    with _at(here), permissions_that_bind():
        answer = command(*case.words)
    path.chmod(0o700)
    assert answer.status == 2, f"status {answer.status}: {answer.output[-200:]}"
    lines = [line for line in answer.errors.splitlines() if ": warning: " not in line]
    require_line("\n".join(lines), path.name)
    after = contents(here)
    assert after == before, f"changed: {sorted(set(after) ^ set(before)) or 'contents'}"
    assert not [p for p in here.rglob(".*")], "hidden files are left"
    tally.note("refused")


def _cases() -> Iterator[_Case]:
    for words, names in _READ:
        for name in names:
            yield _Case(words, name, "unreadable")
            yield _Case(words, name, "a file" if name.endswith("/") else "a folder")
    for words, name in _WRITTEN:
        yield _Case(words, "outbox", "read-only")
        yield _Case(words, f"outbox/{name}" if name else "outbox", "a folder" if name else "a file")


def _prepare(folder: Path) -> None:
    """Make a run and one file of each kind that commands read."""
    (folder / "outbox").mkdir(parents=True)
    (folder / "runs").mkdir()
    prompts = folder / "p.txt"
    prompts.write_text("\n".join(PROMPTS), "utf-8")
    run(config_of(folder), folder / "run")
    (folder / "prompts.txt").unlink()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(folder / "a.png")
    torch.save({"a": torch.ones(2)}, folder / "w.pt")
    (folder / "c.yaml").write_text("optim: {lr: 0.001}\n", "utf-8")
    (folder / "caps.jsonl").write_text("", "utf-8")


def _exchange(path: Path, *, folder: bool) -> None:
    """Put a folder where a file is, or the other way round."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if folder:
        path.mkdir()
        (path / "kept").write_text("kept", "utf-8")
    else:
        path.write_text("kept", "utf-8")


@contextmanager
def _at(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def permissions_that_bind() -> Iterator[None]:
    """Let permissions hold for this thread even if it is root's, on Linux."""
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if library.capget(header, before) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    fewer = (ctypes.c_uint32 * 6)(*before)
    fewer[0] &= ~_OVERRIDES
    if library.capset(header, fewer) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    # The real user, whom `os.access` asks about by default, is root still.
    effective = partial(os.access, effective_ids=True)
    try:
        with patched(os, "access", effective):
            yield
    finally:
        library.capset(header, before)
