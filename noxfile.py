"""Every check of the project, one session each; `nox -l` lists them."""

import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import nox
from filelock import FileLock  # virtualenv's

nox.needs_version = ">=2026.10.20"
nox.options.sessions = ["lint", "types", "unit", "integration"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
DECLARING = ("pyproject.toml", "constraints.txt")
# Tests read no hub and no network, and run on one thread unless told otherwise.
TEST_ENV = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
}
# Two workers: tests of one file stay together, for the fixtures that they share. The longest
# files come first, by `tests/conftest.py`, so that no worker ends with one.
WORKERS = ("--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder")
UNIT = ("-m", "not slow", "--doctest-modules", "mvczigal_ref", "tests/unit")


def _python(session: nox.Session) -> str:
    """Give the Python of the one environment that most sessions share.

    torch takes more than a gigabyte and a minute to install, so it is installed once, and again
    when what is declared or pinned has changed.
    """
    folder = ROOT / ".nox" / "shared"
    python, stamp = str(folder / "bin" / "python"), folder / "installed"
    declared = "".join((ROOT / name).read_text("utf-8") for name in DECLARING)
    # Sessions that run at the same time wait for the first to install.
    with FileLock(ROOT / ".nox" / "shared.lock"):
        if not stamp.exists() or stamp.read_text("utf-8") != declared:
            session.run(sys.executable, "-m", "virtualenv", "--clear", str(folder), external=True)
            install = (python, "-m", "pip", "install", "--quiet", *CONSTRAINTS, "-e", ".[dev]")
            session.run(*install, external=True)
            stamp.write_text(declared, "utf-8")
    return python


def _shared(session: nox.Session, *module_and_arguments: str) -> None:
    python = _python(session)
    session.run(python, "-m", *module_and_arguments, env=TEST_ENV, external=True)


def _pytest(session: nox.Session, *arguments: str) -> None:
    session.run("python", "-m", "pytest", *arguments, env=TEST_ENV)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, docstrings, the layers' import contract and plain English."""
    # Of these only import-linter reads the package, and it does not import it. pydoclint cannot
    # share an environment with tyro: both install a module named docstring_parser.
    session.install(*CONSTRAINTS, "ruff", "pydoclint", "import-linter")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pydoclint", "--quiet", "mvczigal_ref")
    session.run("lint-imports", "--no-cache")
    session.run("python", "-m", "tests.english")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check types strictly."""
    _shared(session, "mypy", *session.posargs)


@nox.session(venv_backend="none")
def unit(session: nox.Session) -> None:
    """Run the unit tests and every docstring's example."""
    _shared(session, "pytest", *(session.posargs or (*WORKERS, *UNIT)))


@nox.session(venv_backend="none")
def integration(session: nox.Session) -> None:
    """Run the tests of whole runs: learning, saving, resuming, two processes."""
    wanted = (*WORKERS, "-m", "not slow", "tests/integration")
    _shared(session, "pytest", *(session.posargs or wanted))


@nox.session(venv_backend="none")
def slow(session: nox.Session) -> None:
    """Run the cases that `unit` and `integration` leave out, as they take long."""
    _shared(
        session, "pytest", *(session.posargs or ("-m", "slow", "tests/unit", "tests/integration"))
    )


@nox.session(venv_backend="none")
def torture(session: nox.Session) -> None:
    """Try damaged files, odd settings, kills and hostile peers; `-- --scale 0.1` for a part."""
    _shared(session, "tests.torture", *session.posargs)


@nox.session(venv_backend="none")
def mutants(session: nox.Session) -> None:
    """Break one line at a time and show that the unit tests notice."""
    _shared(session, "tests.mutants.run", *session.posargs)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Measure cost at small shapes; `-- budget` what an object costs on a GPU, `-- --compare` all
    primitives against the time before.
    """
    if "--compare" not in session.posargs:
        _shared(session, "bench", *session.posargs)
        return
    _shared(session, "pip", "install", "--quiet", *CONSTRAINTS, "-e", ".[bench]")
    # The option takes what follows it for the run to compare with; the first has none, and warns.
    timed = ("bench/test_timings.py", "--benchmark-autosave", "--benchmark-compare")
    # The plugin is off elsewhere: it warns of workers, and a warning is an error.
    _shared(session, "pytest", "-W", "default", "-o", "addopts=", "-p", "no:cacheprovider", *timed)


@nox.session(venv_backend="none")
def full_width(session: nox.Session) -> None:
    """Train one iteration of networks of the published width on the CPU; takes 12 GB, a while."""
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    arguments = session.posargs or ("tests/full_width",)
    command = (_python(session), "-m", "pytest", "-s", *arguments)
    session.run(*command, env={**TEST_ENV, "OMP_NUM_THREADS": threads}, external=True)


@nox.session(venv_backend="none")
def gpu_day(session: nox.Session) -> None:
    """Run all that needs a GPU, in order of worth, within nine minutes; one JSON, one table."""
    _shared(session, "bench", "gpu_day", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation's site into `site/`; a warning is an error."""
    # The package is read and not imported, so that no torch is needed.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    session.install(*CONSTRAINTS, *project["optional-dependencies"]["docs"])
    arguments = session.posargs or ("build", "--strict")
    session.run("mkdocs", *arguments, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(venv_backend="none")
def pages(session: nox.Session) -> None:
    """Open reports in this machine's Chromium; skipped, with the reason, where there is none."""
    python = _python(session)
    install = (python, "-m", "pip", "install", "--quiet", *CONSTRAINTS, "playwright")
    session.run(*install, external=True)
    arguments = session.posargs or ("tests/pages",)
    session.run(python, "-m", "pytest", *arguments, env=TEST_ENV, external=True)


@nox.session
def play(session: nox.Session) -> None:
    """Serve the page to play with, and ask it as a browser does."""
    session.install(*CONSTRAINTS, "-e", ".[test,demo]", "playwright")
    # Gradio's own warnings are not ours to turn into errors.
    _pytest(session, "-W", "default", *(session.posargs or ("tests/unit/demo",)))


@nox.session
def lowbit(session: nox.Session) -> None:
    """Run the tests of weights and moments in few bits, which need the extra `lowbit`."""
    session.install(*CONSTRAINTS, "-e", ".[test,lowbit]")
    names = ("models/test_low_bit_weights", "models/test_low_bit_reading", "training/test_low_bit")
    files = [f"tests/unit/{name}.py" for name in names]
    _pytest(session, *(session.posargs or files))


@nox.session(venv_backend="none")
def notebooks(session: nox.Session) -> None:
    """Run every notebook of `docs/notebooks`, without changing it."""
    python = _python(session)
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    install = (python, "-m", "pip", "install", "--quiet", *CONSTRAINTS)
    session.run(*install, *extra["optional-dependencies"]["notebooks"], external=True)
    arguments = session.posargs or ("tests/notebooks",)
    session.run(python, "-m", "pytest", *arguments, env=TEST_ENV, external=True)


@nox.session
def extras(session: nox.Session) -> None:
    """Ask pip whether each extra can be installed with the pinned versions; nothing is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ask = ("python", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet")
    for extra in session.posargs or project["optional-dependencies"]:
        session.run(*ask, *CONSTRAINTS, f".[{extra}]")


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests that need a CUDA device, with the torch that `TORCH` asks for or the pinned."""
    wanted = os.environ.get("TORCH")
    pinned = () if wanted else CONSTRAINTS
    session.install(*pinned, wanted or "torch")
    session.install(*pinned, "-e", ".[test]")
    _pytest(session, "-m", "gpu", "-s", *(session.posargs or ("tests/gpu",)))


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the unit tests with the lowest versions that pyproject.toml declares."""
    lowest = Path(session.create_tmp()) / "minimums.txt"
    lowest.write_text("\n".join(lower_bounds(("test",))) + "\n", "utf-8")
    session.install("-c", str(lowest), "-e", ".[test]")
    _pytest(session, *(session.posargs or UNIT))


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Run the unit tests under one Python, `nox -s pythons-3.13`, or under all of them."""
    session.install(*CONSTRAINTS, "-e", ".[test]")
    _pytest(session, *(session.posargs or (*WORKERS, *UNIT)))


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel, install it, and run the unit tests against it, away from the tree."""
    temporary = Path(session.create_tmp()).resolve()
    for old in ("dist", "tree"):
        shutil.rmtree(temporary / old, ignore_errors=True)
    session.install(*CONSTRAINTS, "build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(temporary / "dist"), ".")
    (wheel,) = (temporary / "dist").glob("*.whl")
    session.install(*CONSTRAINTS, "--force-reinstall", "--no-deps", str(wheel))
    session.install(*CONSTRAINTS, f"mvczigal-ref[test] @ {wheel.as_uri()}")
    # The tests, without the package that they would otherwise import from beside them.
    shutil.copytree(ROOT, temporary / "tree", ignore=_not_for_the_wheel_test)
    session.chdir(temporary / "tree")
    session.run("mvczigal", "--help", silent=True)
    _pytest(session, *(session.posargs or ("--pyargs", *UNIT)))


def _not_for_the_wheel_test(folder: str, names: list[str]) -> set[str]:
    if Path(folder) != ROOT:
        return {name for name in names if name == "__pycache__"}
    wanted = {
        "tests", "fixtures", "docs", "examples", "pyproject.toml", "noxfile.py", "constraints.txt",
        "CITATION.cff", "mkdocs.yml",
    }  # fmt: skip
    return set(names) - wanted - {name for name in names if name.endswith(".md")}


def lower_bounds(extras: tuple[str, ...] = ()) -> list[str]:
    """Turn the declared `name>=version` into `name==version`, for these extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [*project["dependencies"]]
    for extra in extras:
        declared += project["optional-dependencies"][extra]
    bounds = [re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", text) for text in declared]
    if None in bounds:
        message = (
            f"each requirement must read `name>=version`; got {declared[bounds.index(None)]!r}"
        )
        raise ValueError(message)
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound is not None]
