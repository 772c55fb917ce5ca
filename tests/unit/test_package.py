"""The package as a whole: its layers, its versions, and what it is installed with."""

import ast
import importlib
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import mvczigal_ref
from tests import english, public_names

PACKAGE = Path(mvczigal_ref.__file__).parent
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LINTER = Path(sys.executable).with_name("lint-imports")
BREAKING = {
    "a stage imports another": ("objective/__init__.py", "import mvczigal_ref.advantage"),
    "a lower layer imports a higher": ("errors.py", "import mvczigal_ref.training.checkpoint"),
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


def modules(folder=PACKAGE):
    """Lines of every module by its path, without the initialisers that are a docstring alone."""
    texts = {path: path.read_text("utf-8") for path in folder.rglob("*.py")}
    return {
        path.relative_to(folder).as_posix(): text.count("\n")
        for path, text in texts.items()
        if path.name != "__init__.py" or len(ast.parse(text).body) > 1
    }


def imported(path):
    """Names that a file imports, wherever in it, types too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def circle(imports):
    """Modules that import one another in a circle, and those that lead to it; empty without one.

    A module that imports nothing of what is left cannot be part of one, so it is taken away.
    """
    left = dict(imports)
    while ends := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ends:
            del left[name]
    return sorted(left)


# -- size and shape ----------------------------------------------------------------------


def test_modules_are_short():
    """Every module counts but the initialisers that are a docstring alone."""
    lengths = modules()

    assert len(lengths) > 200
    assert max(lengths.values()) <= 400, max(lengths, key=lengths.get)
    assert statistics.median(lengths.values()) < 160


def test_one_iteration_fits_on_a_screen():
    """Lines of the function, its docstring apart."""
    tree = ast.parse((PACKAGE / "iteration.py").read_text("utf-8"))
    function = next(node for node in tree.body if getattr(node, "name", "") == "run_iteration")
    docstring = function.body[0]

    lines = function.end_lineno - function.lineno - (docstring.end_lineno - docstring.lineno)

    assert ast.get_docstring(function)
    assert lines < 45


def test_the_root_is_an_entrance():
    """Modules of the root itself; rooms are folders."""
    assert len(list(PACKAGE.glob("*.py"))) <= 14


def test_no_layer_joins_modules_of_different_rooms():
    """`|` keeps the rooms of a layer apart, `:` would not."""
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]

    assert len(layers) > 10
    assert not [layer for layer in layers if ":" in layer]


def test_no_module_imports_itself_through_others():
    """Imports within functions count too; a room's initialiser may face its own files."""
    names = {
        path: f"mvczigal_ref.{path.removesuffix('.py').replace('/', '.')}"
        for path in modules()
        if not path.endswith("__init__.py")
    }

    assert circle({name: imported(PACKAGE / path) for path, name in names.items()}) == []


def test_a_circle_is_noticed():
    """Of two and of three modules; a chain is none."""
    assert circle({"a": {"b"}, "b": {"a", "d"}, "d": set()}) == ["a", "b"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


# -- English -----------------------------------------------------------------------------

ENGLISH = {
    "found = 1": "the name `found` is no noun",
    "def f(told): ...": "the argument `told` is no noun",
    "def own_size(): ...": "the name `own_size` holds 'own', which is no noun",
    "class KeptRows: ...": "the name `KeptRows` holds 'kept', which is no noun",
    '"""Its rows."""': "a docstring that begins with 'Its' does not stand alone",
    'def f():\n    """Do.\n\n    Args:\n        a: Of a run.\n    """': "begins with 'Of'",
    'def f():\n    """Do.\n\n    Returns:\n        The same rows.\n    """': "with 'The same'",
    '"""One row a view."""': "write `per`",
}


@pytest.mark.parametrize("text", ENGLISH)
def test_each_fault_of_english_is_noticed(text, tmp_path):
    """In names, in docstrings and in their entries."""
    path = tmp_path / "module.py"
    path.write_text(text.replace("One", "one"), "utf-8")
    ((_, fault),) = english.faults(path)

    assert ENGLISH[text] in fault


# -- public names ------------------------------------------------------------------------

EXPECTED = {
    "mvczigal_ref": (
        "load_config TrainConfig World Events TextToMultiviewPipeline train FlowSampler "
        "betas_from_alpha_bar ETA_ZERO_VARIANCE paired_rollout pair_advantages"
    ),
    "mvczigal_ref.diffusion": (
        "FlowSampler LcmSampler DdimSampler flow_sigmas cps_transition flow_ode_transition "
        "betas_from_alpha_bar ETA_ZERO_VARIANCE log_prob"
    ),
    "mvczigal_ref.objective": "clipped_surrogate_loss diffusion_nft_loss augmented_conditions_loss",
    "mvczigal_ref.advantage": "pair_advantages group_advantages depth_advantages",
    "mvczigal_ref.rollout": "standard_rollout paired_rollout group_rollout SeededNoise GroupPlan",
}
FACES = ["diffusion", "objective", "advantage", "rollout"]


@pytest.mark.parametrize("module", EXPECTED)
def test_what_people_expect_is_public(module):
    """Importable from the package's root, and from the stage's own."""
    public = importlib.import_module(module)
    names = EXPECTED[module].split()

    assert all(hasattr(public, name) for name in names)
    assert set(names) <= set(public.__all__)
    assert set(names) <= set(dir(public))


@pytest.mark.parametrize("face", FACES)
def test_a_stage_exports_every_public_name_of_its_files(face):
    """The same objects as the root's, and nothing else of the package."""
    stage = importlib.import_module(f"mvczigal_ref.{face}")
    below = [n for n, home in mvczigal_ref._HOME.items() if home.partition(".")[0] == face]

    assert below
    for name in below:
        assert getattr(stage, name) is getattr(mvczigal_ref, name)
        assert name in stage.__all__
    assert len(stage.__all__) == len(set(stage.__all__))
    assert all(hasattr(stage, name) for name in stage.__all__)


def test_every_public_name_can_be_imported():
    """By the table that the root reads; each name once."""
    homes = [names for stage in mvczigal_ref._NAMES.values() for names in stage.values()]
    names = " ".join(homes).split()

    assert names == mvczigal_ref.__all__
    assert len(names) == len(set(names))
    for name in names:
        assert getattr(mvczigal_ref, name) is not None


def test_the_type_checker_reads_the_same_table():
    """Its block is written from the table: run `python -m tests.public_names` after a change."""
    assert public_names.block() in public_names.SOURCE.read_text("utf-8")


def test_importing_the_root_costs_nothing():
    """Not even torch is imported before a name is used."""
    program = "import sys, mvczigal_ref; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=60)

    assert done.returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    """As of any module."""
    with pytest.raises(AttributeError, match="'mvczigal_ref' has no attribute 'nonsense'"):
        _ = mvczigal_ref.nonsense


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
    """Neither by luck, as another package's dependency, nor for nothing; some are extras."""
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    others = imported - sys.stdlib_module_names - {"mvczigal_ref"}
    declared = {re.match(r"[\w-]+", text)[0] for text in PROJECT["project"]["dependencies"]}
    extras = PROJECT["project"]["optional-dependencies"]
    optional = [
        text for extra in ("tracking", "datasets", "demo", "lowbit") for text in extras[extra]
    ]
    others -= {re.match(r"[\w-]+", text)[0] for text in optional}
    # The names that differ, and the halves that packages are released in.
    needed = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "huggingface_hub": "huggingface-hub",
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
