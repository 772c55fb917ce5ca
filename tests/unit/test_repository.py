"""Files of the repository hold together: workflow, container, versions of Python."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import LONGEST

ROOT = Path(__file__).parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT, TOOLS = DECLARED["project"], DECLARED["tool"]
WORKFLOW = ROOT / ".github" / "workflows" / "checks.yml"
CLASSIFIER = re.compile(r"Programming Language :: Python :: (3\.\d+)")
HOSTS = ("pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "conda" + ".org")

pytestmark = pytest.mark.skipif(
    not WORKFLOW.is_file(), reason="the repository is not beside its tests"
)


def nox_text():
    """Read the sessions' file."""
    return (ROOT / "noxfile.py").read_text("utf-8")


def test_the_versions_of_python_are_the_same_everywhere():
    """In the classifiers, in nox, and in the workflow."""
    declared = [m[1] for text in PROJECT["classifiers"] if (m := CLASSIFIER.fullmatch(text))]
    tested = re.search(r"^PYTHONS = \((.*)\)$", nox_text(), re.MULTILINE)[1]
    jobs = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]

    assert PROJECT["requires-python"] == f">={declared[0]}"
    assert re.findall(r'"(.*?)"', tested) == declared
    assert jobs["python"]["strategy"]["matrix"]["python"] == declared


def test_the_workflow_runs_sessions_that_there_are():
    """All that a change must pass, and the documentation."""
    jobs = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    sessions = jobs["session"]["strategy"]["matrix"]["session"]
    needed = re.findall(r"^nox -s (\w+)", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)

    assert set(needed) <= set(sessions)
    for name in (*sessions, "pythons"):
        assert f"\ndef {name}(session" in nox_text()


def test_the_tests_of_the_wheel_have_the_documents_that_they_read():
    """The session `build` lays them beside the tests; pages in Markdown it takes all."""
    laid = set(
        re.findall(r'"([\w.]+)"', nox_text().partition("    wanted = {\n")[2].partition("}")[0])
    )
    read = re.findall(
        r'text_of\("([^"/]+)', (ROOT / "tests/unit/test_documents.py").read_text("utf-8")
    )

    assert {"README.md", "docs"} < set(read)
    assert {name for name in read if not name.endswith(".md")} <= laid


def test_what_ci_installs_is_pinned():
    """In the workflow's jobs, under every Python, and in what a change must pass."""
    texts = [path.read_text("utf-8") for path in (WORKFLOW, ROOT / ".ci" / "run")]
    installs = [re.findall(r"pip install .*", text) for text in texts]

    assert [len(lines) for lines in installs] == [2, 1]
    assert [line for lines in installs for line in lines if "-c constraints.txt" not in line] == []


FAKE_PYTHON = """#!/bin/sh
[ "$2" = venv ] || exit 0
mkdir -p "$3/bin"
printf '#!/bin/sh\\n[ "$3" != "$FAILING" ]\\n' >"$3/bin/nox"
cp "$0" "$3/bin/python"
chmod +x "$3/bin/nox"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a script of a shell")
@pytest.mark.parametrize("failing", ["", "lint", "types", "integration", "unit"])
def test_what_a_change_must_pass_fails_with_any_of_its_sessions(failing, tmp_path):
    """With programs in place of the real ones, of which one session fails."""
    program = tmp_path / "python3"
    program.write_text(FAKE_PYTHON, "utf-8")
    program.chmod(0o755)
    paths = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    ended = subprocess.run(
        ["bash", ROOT / ".ci" / "run"], env={**os.environ, "PATH": paths, "FAILING": failing},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (ended.returncode != 0) == bool(failing), ended.stdout + ended.stderr


def test_the_longest_test_files_are_there():
    """Those that come first, so that two workers end together."""
    assert {*LONGEST} <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def test_the_container_copies_what_there_is():
    """And the package's own version of torch, for either device."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY")]

    assert [name for names in copied for name in names if not (ROOT / name).exists()] == []
    assert "ARG DEVICE=cpu" in text
    assert re.search(r'ENTRYPOINT \["(.*)"\]', text)[1] in PROJECT["scripts"]
    assert f"Python :: {re.search('ARG PYTHON=(.*)', text)[1]}" in str(PROJECT["classifiers"])
    for extra in re.search(r"ARG EXTRAS=(\w+)", text).groups():
        assert extra in PROJECT["optional-dependencies"]


def test_the_container_builds_from_what_it_copies():
    """All that the build reads is copied, and `.dockerignore` keeps none of it back."""
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    hatch = TOOLS["hatch"]
    read = {PROJECT["readme"], *PROJECT["license-files"], hatch["version"]["path"], "fixtures"}
    read |= {"pyproject.toml", "constraints.txt", *hatch["build"]["targets"]["wheel"]["packages"]}
    read |= {hatch["build"]["targets"]["wheel"]["hooks"]["custom"]["path"]}
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()

    assert {name.partition("/")[0] for name in read} <= copied
    assert copied.isdisjoint(ignored)


def test_the_space_asks_for_what_the_package_needs():
    """A Python that it declares, the page's library as it is tested, a file that compiles."""
    folder = ROOT / "examples" / "space"
    text = (folder / "README.md").read_text("utf-8")
    settings = yaml.safe_load(text.split("---")[1])
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()

    assert (
        f"Programming Language :: Python :: {settings['python_version']}"
        in (PROJECT["classifiers"])
    )
    assert f"gradio=={settings['sdk_version']}" in pins
    source = (folder / settings["app_file"]).read_text("utf-8")
    compile(source, settings["app_file"], "exec")
    assert (folder / "requirements.txt").read_text("utf-8").startswith(PROJECT["name"])


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="files are listed by git")
def test_no_file_names_a_package_index():
    """Whoever installs chooses it."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = [
        name
        for name in done.stdout.splitlines()
        if (path := ROOT / name).is_file()
        and path.stat().st_size < 10**6
        and any(host.encode() in path.read_bytes() for host in HOSTS)
    ]

    assert named == []
