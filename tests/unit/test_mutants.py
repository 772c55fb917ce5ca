"""The mutation runner: it must be able to fail, in each of the ways it promises."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import run

MATHEMATICS = (
    "advantage", "cameras", "constraint", "diffusion", "objective", "reproduce", "rollout",
    "update",
)  # fmt: skip
TOPIC = """
[[mutant]]
file = "mvczigal_ref/__init__.py"
old = "a + b"
new = "{new}"
tests = ["tests/test_sum.py"]
"""


@pytest.fixture
def project(tmp_path):
    """Return a function that makes a project of one function and one test, and runs on it."""

    def make(*, test, topic):
        for name in ("mvczigal_ref", "tests/mutants"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
        (tmp_path / "mvczigal_ref/__init__.py").write_text("def add(a, b):\n    return a + b\n")
        for name in ("tests/__init__.py", "tests/conftest.py", "tests/mutants/__init__.py"):
            (tmp_path / name).touch()
        shutil.copy(run.__file__, tmp_path / "tests/mutants/run.py")
        (tmp_path / "tests/mutants/sums.toml").write_text(topic)
        source = f"from mvczigal_ref import add\n\n\ndef test_sum():\n    {test}\n"
        (tmp_path / "tests/test_sum.py").write_text(source)
        return subprocess.run(
            [sys.executable, "-m", "tests.mutants.run", "--jobs", "1"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return make


def test_a_run_tells_the_killed_from_the_rest(project):
    """A wrong line, one that nobody sees, one that is no code, one that is not there."""
    lines = (TOPIC.format(new=new) for new in ("a - b", "b + a", "a +", "a + b"))
    result = project(test="assert add(1, 2) == 3", topic="".join(lines))
    words = [row.split()[0] for row in result.stdout.splitlines()]

    assert result.returncode == 1, result.stderr
    assert words == ["without", "killed", "SURVIVED", "BROKEN", "INVALID", "1"]
    assert result.stdout.splitlines()[-1] == "1 passed, 3 failed"


def test_tests_that_fail_by_themselves_kill_nothing(project):
    """Otherwise a broken test would notice every mutant."""
    result = project(test="assert add(1, 2) == 4", topic=TOPIC.format(new="a - b"))

    assert result.returncode == 1
    assert "The tests fail without a mutant" in result.stdout
    assert "passed, " not in result.stdout.splitlines()[-1]


BESIDE = pytest.mark.skipif(
    not (run.ROOT / "mvczigal_ref").is_dir(), reason="the package is not beside its tests"
)


@BESIDE
def test_every_mutant_still_fits_its_file():
    """A line that was rewritten takes its mutants with it."""
    mutants = run.read_topics(Path(run.__file__).parent, [])

    assert len(mutants) >= 400
    assert {m: m.fault() for m in mutants if m.fault()} == {}


@BESIDE
def test_a_topic_holds_the_mutants_of_one_room_of_the_mathematics():
    """And is named after it."""
    mutants = run.read_topics(Path(run.__file__).parent, [])
    rooms = {(m.topic, Path(m.file).with_suffix("").parts[1]) for m in mutants}

    assert rooms == {(room, room) for room in MATHEMATICS}


SOURCE = """class A:
    def same(self):
        return a + b

    def other(self):
        return a + b
"""
FAULTS = {
    "": "`old` is found 2 times, not once",
    "A": "`old` is found 2 times, not once",
    "A.same": "",
    "other": "",
    "A.absent": "`old` is found 0 times, not once",
}


@pytest.mark.parametrize("inside", FAULTS)
def test_a_line_may_be_sought_in_one_function(inside, tmp_path, monkeypatch):
    """The rest of the file may hold it too."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    for name, text in {
        "mvczigal_ref/room/sums.py": SOURCE,
        "tests/unit/room/test_sums.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    mutant = run.Mutant(
        topic="room", file="mvczigal_ref/room/sums.py", old="a + b", new="a - b", inside=inside
    )

    assert mutant.test_files == ("tests/unit/room/test_sums.py",)
    assert mutant.fault() == FAULTS[inside]
    if not mutant.fault():
        lines = zip(SOURCE.splitlines(), mutant.source().splitlines(), strict=True)
        changed = [number for number, (a, b) in enumerate(lines, 1) if a != b]
        assert changed == ([3] if inside == "A.same" else [6])


def test_a_mutant_is_one_line():
    """Two would be two faults."""
    mutant = run.Mutant(topic="room", file="a.py", old="a = 1\nb = 2", new="b = 2")

    assert mutant.fault() == "`old` and `new` must be of one line"


def test_refuses_an_unknown_topic():
    """Rather than trying nothing and passing."""
    with pytest.raises(ValueError, match="`--topic` must be one of"):
        run.read_topics(Path(run.__file__).parent, ["nothing"])


@pytest.mark.parametrize(
    ("code", "text", "word"),
    [
        (0, "3 passed", "SURVIVED"),
        (1, "FAILED tests/unit/test_a.py::test_b - AssertionError", "killed"),
        (1, "ERROR tests/unit/test_a.py::test_b - ValueError in its fixture", "killed"),
        (1, "something else", "BROKEN"),
        (2, "ERROR tests/unit/test_a.py - SyntaxError", "BROKEN"),
        (5, "no tests ran", "BROKEN"),
        (70, "3 passed", "BROKEN"),
        (-11, "", "BROKEN"),
    ],
)
def test_only_a_test_that_fails_has_noticed(tmp_path, code, text, word):
    """A mutant that cannot be imported, or tests that were not run, show nothing."""
    log = tmp_path / "log"
    log.write_text(text + "\n")

    assert run.judge(code, log, 1.0).word == word


def test_a_mutant_that_never_ends_has_been_noticed(tmp_path):
    """It is stopped at the limit; a process that was killed earlier shows nothing."""
    log = tmp_path / "log"
    log.touch()

    assert run.judge(-9, log, run.LIMIT_S + 1.0).killed
    assert not run.judge(-9, log, 1.0).killed
