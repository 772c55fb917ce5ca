"""Break one line at a time and see whether the unit tests notice.

    python -m tests.mutants.run [--topic NAME ...] [--jobs N]

Every ``tests/mutants/<topic>.toml`` holds ``[[mutant]]`` tables: ``file``, ``old`` (part of one
line, found exactly once in the file, or in the function or class named ``inside``), ``new``, and
``tests``, the files of which at least one test must fail: the file's own tests if not given. The
work is done on copies in a temporary folder. Modules that do not change are imported once, the
package's are compiled once, and each mutant runs in a fork, so it costs its tests and little
more. Exits with 1 if the tests fail without a mutant, if a mutant survives, or if one is not a
mutant at all.
"""

import argparse
import ast
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import hypothesis
import pytest
import torch

from tests import conftest  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("mvczigal_ref", "tests", "bench", "pyproject.toml")
LINKED = ("fixtures",)
LIMIT_S = 300
"""A mutant that runs longer never ends, and is noticed by that."""
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One wrong line, and the tests that must notice it."""

    topic: str
    file: str
    old: str
    new: str
    inside: str = ""
    tests: tuple[str, ...] = ()

    @property
    def test_files(self) -> tuple[str, ...]:
        """Name the tests' files: `tests/unit/ROOM/test_X.py` for `ROOM/X.py`."""
        _, *room, name = Path(self.file).parts
        return self.tests or (Path("tests/unit", *room, f"test_{name}").as_posix(),)

    def places(self) -> list[int]:
        """Find where `old` begins in the file, within `inside`."""
        source = (ROOT / self.file).read_text("utf-8")
        first, last = lines_of(source, self.inside) if self.inside else (1, source.count("\n") + 1)
        places = [found.start() for found in re.finditer(re.escape(self.old), source)]
        skipped = len(self.old) - len(self.old.lstrip("\n"))
        return [p for p in places if first <= 1 + source.count("\n", 0, p + skipped) <= last]

    def source(self) -> str:
        """Write the file with the wrong line in it."""
        source, (place,) = (ROOT / self.file).read_text("utf-8"), self.places()
        return source[:place] + self.new + source[place + len(self.old) :]

    def fault(self) -> str:
        """Say why this cannot be tried, or return an empty string."""
        if self.old == self.new:
            return "`old` and `new` are equal"
        if any("\n" in text.strip() for text in (self.old, self.new)):
            return "`old` and `new` must be of one line"
        missing = [name for name in (self.file, *self.test_files) if not (ROOT / name).is_file()]
        if missing:
            return f"no such file: {', '.join(missing)}"
        count = len(self.places())
        return "" if count == 1 else f"`old` is found {count} times, not once"


def lines_of(source: str, name: str) -> tuple[int, int]:
    """Find the first and last line of a function or class; those inside one have dotted names."""
    node: ast.AST = ast.parse(source)
    for part in name.split("."):
        definitions = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        named = [definition for definition in definitions if definition.name == part]
        if not named:
            return 0, -1
        node = named[0]
    return min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of some tests ended."""

    word: str
    detail: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether the tests noticed."""
        return self.word == "killed"


def read_topics(folder: Path, wanted: list[str]) -> list[Mutant]:
    """Read the mutants of the wanted topics, or of all."""
    files = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    unknown = sorted(set(wanted) - set(files))
    if unknown or not files:
        msg = f"`--topic` must be one of {sorted(files)}; got {unknown}."
        raise ValueError(msg)
    mutants = []
    for topic in wanted or files:
        for table in tomllib.loads(files[topic].read_text("utf-8"))["mutant"]:
            mutants.append(Mutant(topic=topic, **{**table, "tests": tuple(table.get("tests", ()))}))
    return list(dict.fromkeys(mutants))


def copy_tree(target: Path) -> Path:
    """Copy what the tests read, and link what they only look up."""
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, target / name)
    for name in LINKED:
        (target / name).symlink_to(ROOT / name)
    return target


def run_tests(tree: Path, tests: tuple[str, ...], log: Path) -> None:
    """Run test files of a copied tree in this forked process and exit with pytest's code."""
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.setsid()
    os.chdir(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    for name in list(sys.modules):
        if name.split(".")[0] in ("mvczigal_ref", "tests", "bench"):
            del sys.modules[name]
    importlib.invalidate_caches()
    code = pytest.main(
        # The plugins' modules are imported already, which pytest would warn of.
        [
            *("-x", "-q", "--tb=line", "-p", "no:cacheprovider", f"--rootdir={tree}"),
            *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
            *tests,
        ]
    )
    module = sys.modules.get("mvczigal_ref")
    inside = module is not None and str(module.__file__).startswith(str(tree))
    Path(f"{log}.modules").write_text(json.dumps(sorted(sys.modules)))
    sys.stdout.flush()
    os._exit(int(code) if inside else 70)


def judge(code: int | None, log: Path, seconds: float) -> Outcome:
    """Turn an exit code into an outcome; only a failed test counts as noticing."""
    text = log.read_text("utf-8", "replace")
    if code == 0:
        return Outcome(word="SURVIVED", detail="every test passed", seconds=seconds)
    if code == -signal.SIGKILL and seconds >= LIMIT_S:
        return Outcome(word="killed", detail=f"by running over {LIMIT_S} s", seconds=seconds)
    failed = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py::\S+)", text, re.MULTILINE)
    if code == 1 and failed:
        return Outcome(word="killed", detail=failed[1], seconds=seconds)
    last = [line for line in text.splitlines() if line.strip()][-1:] or ["no output"]
    return Outcome(word="BROKEN", detail=f"exit {code}: {last[0]}", seconds=seconds)


class Run:
    """One forked test run over one copy of the tree, its mutant applied."""

    def __init__(self, tree: Path, tests: tuple[str, ...], mutant: Mutant | None = None) -> None:
        self.tree, self.mutant, self.log = tree, mutant, tree / "log"
        if mutant:
            path = tree / mutant.file
            path.write_text(mutant.source(), "utf-8")
            # Compiled code is recognised by its source's time and size: this is another time.
            os.utime(path, (0, 0))
        self.started = time.monotonic()
        self.process = FORK.Process(target=run_tests, args=(tree, tests, self.log))
        self.process.start()

    def late(self) -> bool:
        """Whether the run is over its limit."""
        return time.monotonic() - self.started > LIMIT_S

    def end(self) -> Outcome:
        """Wait for the process, stop it if it is late, and undo the mutant."""
        if self.process.is_alive():
            # The run has a session of its own: what it started goes with it.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        if self.mutant:
            shutil.copy2(ROOT / self.mutant.file, self.tree / self.mutant.file)
        return judge(self.process.exitcode, self.log, time.monotonic() - self.started)


def import_once(log: Path) -> None:
    """Import here what the tests imported there, so that forks find it done."""
    for name in json.loads(Path(f"{log}.modules").read_text()):
        if name.split(".")[0] not in ("mvczigal_ref", "tests", "bench", "__main__", "__mp_main__"):
            with suppress(Exception):
                importlib.import_module(name)


def run_all(mutants: list[Mutant], trees: list[Path]) -> dict[Mutant, Outcome]:
    """Try every mutant, as many at once as there are trees; a tree holds one at a time."""
    waiting, free, running = deque(mutants), list(trees), []
    outcomes: dict[Mutant, Outcome] = {}
    try:
        while waiting or running:
            while waiting and free:
                mutant = waiting.popleft()
                running.append(Run(free.pop(), mutant.test_files, mutant))
            wait([run.process.sentinel for run in running], timeout=1.0)
            for run in [run for run in running if run.late() or not run.process.is_alive()]:
                running.remove(run)
                free.append(run.tree)
                outcomes[run.mutant] = outcome = run.end()
                print(line(run.mutant, outcome), flush=True)
    finally:
        for run in running:
            run.end()
    return outcomes


def line(mutant: Mutant, outcome: Outcome) -> str:
    """Write one row of the table."""
    wrong = " ".join(mutant.new.split()) or "(nothing)"
    wrong = wrong if len(wrong) <= 60 else f"{wrong[:57]}..."
    file = mutant.file.removeprefix("mvczigal_ref/")
    return f"{outcome.word:9}{outcome.seconds:5.1f} s  {file:32} {wrong:60}  {outcome.detail}"


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topic", action="append", default=[], help="only this TOML's mutants")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    mutants = read_topics(Path(__file__).parent, options.topic)
    # The same examples as in the unit tests, every time; a found failure is not shrunk.
    hypothesis.settings.register_profile(
        "mutants",
        parent=hypothesis.settings(),  # What `tests.conftest` loads.
        derandomize=True,
        database=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    torch.set_num_threads(1)
    faults = {mutant: mutant.fault() for mutant in mutants}
    valid = [mutant for mutant in mutants if not faults[mutant]]
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        trees = [(Path(name) / str(job)).resolve() for job in range(max(1, options.jobs))]
        every = tuple(sorted({test for mutant in valid for test in mutant.test_files}))
        trees[0].mkdir()
        copy_tree(trees[0])
        if every:
            # This run writes the bytecode that all others read.
            sys.dont_write_bytecode = False
            first = Run(trees[0], every)
            first.process.join(10 * LIMIT_S)
            outcome = first.end()
            sys.dont_write_bytecode = True  # A mutant's bytecode must not outlive it.
            if outcome.word != "SURVIVED":
                print(first.log.read_text("utf-8", "replace"))
                print(f"The tests fail without a mutant: {outcome.detail}")
                return 1
            print(
                f"without  {outcome.seconds:5.1f} s  {len(every)} test files pass without a mutant",
                flush=True,
            )
            import_once(first.log)
        for tree in trees[1:]:
            shutil.copytree(trees[0], tree, symlinks=True)
        outcomes = run_all(valid, trees)
    for mutant in set(mutants) - set(valid):
        print(line(mutant, Outcome(word="INVALID", detail=faults[mutant], seconds=0.0)))
    passed = sum(outcome.killed for outcome in outcomes.values())
    print(f"{passed} passed, {len(mutants) - passed} failed")
    return 0 if passed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
