"""The unit tests mirror the package: `tests/unit/ROOM/test_X.py` holds the laws of `ROOM/X`."""

import re
from pathlib import Path

import pytest

import mvczigal_ref

HERE = Path(__file__).parent
PACKAGE = Path(mvczigal_ref.__file__).parent
# A law of several modules has a file of its own, which names them.
SPANNING = {
    "diffusion/test_compile.py": ("diffusion/lcm", "diffusion/ddim", "diffusion/flow_sampler"),
    "diffusion/test_flow_marginals.py": ("diffusion/flow_sampler", "diffusion/flow_noise"),
    "models/flow/test_lora.py": ("models/lora", "models/lora_weights", "models/lora_files"),
    "models/test_own_networks.py": ("models/hub", "system/networks", "pipeline/text_to_multiview"),
    "test_broadcasting.py": ("diffusion/levels", "diffusion/precision", "objective/clipped"),
    "test_iteration_settings.py": ("iteration", "config/reads"),
    "test_purity.py": ("diffusion", "cameras"),
    "test_released_trainer.py": ("iteration", "method/pairs", "update/pairs"),
    "test_scaffold.py": ("diffusion/gaussian", "objective/reward_difference", "advantage/pair"),
    "update/test_half_precision.py": ("update/loop", "update/loss_scale"),
}
# Laws of the project and not of a module.
PROJECT = (
    "test_documents.py", "test_mirror.py", "test_mutants.py", "test_package.py",
    "test_repository.py",
)  # fmt: skip


def is_there(module, package=PACKAGE):
    """Whether the package has this module or room."""
    return (package / f"{module}.py").is_file() or (package / module / "__init__.py").is_file()


def strays(names, package=PACKAGE):
    """Find test files that name no module of their room, nor the room itself."""
    mirrored = (name for name in names if name not in SPANNING and name not in PROJECT)
    return [
        name
        for name in map(Path, mirrored)
        if not is_there(name.parent / name.stem.removeprefix("test_"), package)
        and name.stem != f"test_{name.parent.name}"
    ]


def files(folder):
    """List the unit tests below a folder by their path in it; those of the bench are apart."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("test_*.py"))
    return [path.as_posix() for path in paths if path.parts[0] != "bench"]


def test_a_test_file_names_a_module_of_its_room():
    """So the laws of a module are found, and move with it."""
    names = files(HERE)

    assert len(names) > 100
    assert strays(names) == []


@pytest.mark.skipif(
    not (HERE.parents[1] / "bench").is_dir(), reason="the bench is not beside its tests"
)
def test_a_test_of_the_bench_names_a_module_of_it():
    """By the same rule."""
    assert strays(files(HERE / "bench"), HERE.parents[1] / "bench") == []


def test_a_test_of_the_bench_is_left_out_where_there_is_none():
    """As beside the wheel, which has none: each file asks for it before it imports from it."""
    texts = {path.name: path.read_text("utf-8") for path in (HERE / "bench").glob("test_*.py")}
    asks = re.compile(r'^pytest\.importorskip\("bench"', re.MULTILINE)
    imports = re.compile(r"^(?:from|import) bench\b", re.MULTILINE)

    for name, text in texts.items():
        assert (ask := asks.search(text)), name
        assert ask.start() < imports.search(text).start(), name


def test_a_file_of_several_modules_names_those_there_are():
    """At least two, or it would have a module's name; and an exception outlives no file."""
    assert all((HERE / name).is_file() for name in (*SPANNING, *PROJECT))
    assert all(len(modules) > 1 for modules in SPANNING.values())
    assert [m for modules in SPANNING.values() for m in modules if not is_there(m)] == []


@pytest.mark.parametrize(
    "name", ["update/test_step.py", "test_nothing.py", "diffusion/test_pair.py"]
)
def test_a_stray_is_noticed(name):
    """A module that is gone, none, or of another room; the room itself is none."""
    assert strays([name, "update/test_update.py", "update/test_loop.py"]) == [Path(name)]
