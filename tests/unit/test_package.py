"""The package as a whole: its layers, its versions, and what it is installed with."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import mvczigal_ref

PACKAGE = Path(mvczigal_ref.__file__).parent
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LINTER = Path(sys.executable).with_name("lint-imports")
BREAKING = {
    "a stage imports another": ("objective/__init__.py", "import mvczigal_ref.advantage"),
    "a lower layer imports a higher": ("errors.py", "import mvczigal_ref.checkpoint"),
    "a new module is in no layer": ("novelty.py", ""),
    "mathematics reads the configuration": (
        "constraint.py",
        "from mvczigal_ref.config import TrainConfig",
    ),
    "mathematics needs more than torch": ("diffusion/lcm.py", "import diffusers"),
}


def declared():
    """Every requirement of the project, of all its extras."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]


def numbers(text):
    """A version's numbers, to be compared."""
    return [int(part) for part in text.split(".")]


def lint(folder):
    """Run the import contracts on a copy of the package; give the exit code and the output."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    done = subprocess.run(
        [LINTER, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path):
    """The package's sources, to be broken."""
    ignore = shutil.ignore_patterns("__pycache__", "fixtures")
    shutil.copytree(PACKAGE, tmp_path / "mvczigal_ref", ignore=ignore)
    return tmp_path


# -- the import contracts ----------------------------------------------------------------


def test_the_import_contracts_hold(copy):
    """A file imports from lower layers only, and the stages never import one another."""
    code, output = lint(copy)

    assert code == 0, output


@pytest.mark.parametrize("fault", BREAKING)
def test_the_import_contracts_can_break(copy, fault):
    """Each fault is found where it was made."""
    name, line = BREAKING[fault]
    path = copy / "mvczigal_ref" / name
    path.write_text((path.read_text("utf-8") if path.exists() else "") + f"\n{line}\n", "utf-8")
    code, output = lint(copy)

    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    assert code != 0
    assert f"mvczigal_ref.{module}" in output


# -- versions ----------------------------------------------------------------------------


def test_the_installed_version_is_the_packages():
    """One number, in one place."""
    try:
        installed = version("mvczigal-ref")
    except PackageNotFoundError:
        pytest.skip("runs from the tree, not installed")

    assert installed == mvczigal_ref.__version__


def test_the_package_is_typed():
    """Its annotations count in a caller's type check."""
    assert (PACKAGE / "py.typed").exists()


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    """Neither by luck, as another package's dependency, nor for nothing; trackers are extras."""
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    others = imported - sys.stdlib_module_names - {"mvczigal_ref"}
    declared = {re.match(r"[\w-]+", text)[0] for text in PROJECT["project"]["dependencies"]}
    trackers = PROJECT["project"]["optional-dependencies"]["tracking"]
    others -= {re.match(r"[\w-]+", text)[0] for text in trackers}
    # The names that differ, and the halves that packages are released in.
    needed = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "markupsafe": "jinja2",
        "pydantic_core": "pydantic",
    }

    # A tensor becomes a picture by way of an array, which torch makes only where numpy is.
    assert {needed.get(name, name) for name in others} | {"numpy"} == declared


def test_what_ci_installs_fulfils_every_declared_bound():
    """Each requirement is `name>=version`, and is pinned at that version or a later one."""
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    )
    bounds = [text for text in declared() if not text.startswith("mvczigal-ref[")]

    for text in bounds:
        name, bound = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", text).groups()
        pinned = re.match(r"[0-9.]+", pins[name.lower()])[0].rstrip(".")
        assert numbers(bound) <= numbers(pinned), text
