"""Documents hold: what they name is there, and what they must name they do."""

import ast
import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pytest

import mvczigal_ref
from mvczigal_ref.cli import _COMMANDS
from mvczigal_ref.config import TrainConfig, load_config, to_dict
from mvczigal_ref.config.plugins import GROUPS
from mvczigal_ref.config.setting_docs import described_sections
from mvczigal_ref.recipes import RECIPES, recipe
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.registry import joint_view_scorer, per_view_scorer
from mvczigal_ref.reward.source import hand_over
from mvczigal_ref.training.events import Events
from tests import models_table
from tests.documents import cells, documented_metrics, quoted, undocumented

ROOT = Path(__file__).parents[2]
PACKAGE = Path(mvczigal_ref.__file__).parent  # elsewhere, where the wheel is tested
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ENTRY = re.compile(r"^\| ([A-Z]\d+) .*\|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECTIONS = {field.name for field in dataclasses.fields(TrainConfig)} - {"recipe"}


def text_of(name):
    """Read a document."""
    return (ROOT / name).read_text("utf-8")


def snippets():
    """Give the README's Python, in order."""
    return FENCE.findall(text_of("README.md"))


@pytest.fixture(scope="module")
def hooks():
    """Load what makes pages of the source."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PACKAGE, module.CONFIG = PACKAGE, PACKAGE / "config"
    return module


# -- every document ------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_document_links_is_there(page):
    """Files of the repository; pages that the site makes are in its own navigation."""
    made = {"names.md"}
    links = sorted(set(LINK.findall(page.read_text("utf-8"))) - made)
    below = {link: page.parent / link for link in links}
    below |= {link: PACKAGE.parent / link for link in links if link.startswith("mvczigal_ref/")}

    assert [link for link, path in below.items() if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_setting_that_a_document_names_is_one(page):
    """`section.name`, alone or with a value."""
    if page.name == "CHANGELOG.md":  # of every version
        return
    words = [re.match(r"(\w+)\.(\w+)(=\S+)?$", word) for word in quoted(page.read_text("utf-8"))]
    named = [(w[1], w[2]) for w in words if w and w[1] in SECTIONS and w[2] not in ("md", "py")]
    config = to_dict(TrainConfig())
    modules = ("update", "reward", "condition", "objective", "models")  # rooms, where not sections
    unknown = [
        f"{section}.{name}"
        for section, name in named
        if name not in config[section]
        and not (section in modules and (PACKAGE / section / f"{name}.py").exists())
    ]

    assert unknown == []


def test_an_install_that_a_document_shows_takes_the_pinned_versions():
    """Of a clone; without them pip may fetch a torch of gigabytes."""
    texts = [page.read_text("utf-8") for page in (*PAGES, *(ROOT / "docs").glob("*/*.md"))]
    installs = [line for text in texts for line in re.findall(r"pip install [^`&]*", text)]
    of_clones = [line for line in installs if re.search(r'(^|[\s"])\.(\[|"?(\s|$))', line)]

    assert len(of_clones) >= 4
    assert [line for line in of_clones if "-c constraints.txt" not in line] == []


def test_the_site_shows_every_notebook(hooks):
    """Cell by cell, in its navigation; the equations need a converter that only the site has."""
    folder = ROOT / "docs" / "notebooks"
    shown = re.findall(r"- notebooks/(\w+)\.md", text_of("mkdocs.yml"))
    page = hooks.notebook_page(folder / "own_reward.ipynb")

    assert sorted(shown) == sorted(["index", *(path.stem for path in folder.glob("*.ipynb"))])
    assert page.startswith("# Your own reward\n")
    assert "```python\nimport tempfile\n" in page
    assert [
        match["block"] or match["inline"] for match in hooks._TEX.finditer("at $t = 0$: $$a$$")
    ] == ["t = 0", "a"]


# -- README --------------------------------------------------------------------------------


def test_the_readme_is_short():
    """What is longer has a page of its own."""
    assert len(text_of("README.md").splitlines()) <= 170


def test_the_readmes_commands_are_the_command_lines():
    """Those that it shows, and all that there are."""
    rows = [row[0] for row in cells(text_of("README.md")) if "`mvczigal" in row[0]]
    shown = {word.removeprefix("mvczigal ").split()[0] for row in rows for word in quoted(row)}

    assert shown == set(_COMMANDS)


def test_the_readmes_tree_has_every_room():
    """Each once, and none that is gone."""
    tree = text_of("README.md").partition("## The tree")[2].partition("## More")[0]
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    named = re.findall(r"\b(\w+)/", tree.partition("tests/")[0])

    assert set(named) - {"mvczigal_ref"} == rooms
    assert len(named) == len(set(named))


def test_the_readmes_function_runs():
    """Its first snippet, as it stands."""
    names = {}
    exec(snippets()[0], names)

    assert names["loss"].shape == ()


def test_the_readmes_training_run_is_one():
    """Names can be imported and settings are settings; `integration` trains it."""
    code = snippets()[1]
    changes = re.search(r"changes = (\[.*?\])", code, re.DOTALL)[1]
    imported = re.findall(r"^from mvczigal_ref import (.*)$", code, re.MULTILINE)

    assert set(", ".join(imported).split(", ")) <= set(mvczigal_ref.__all__)
    assert load_config(recipe("tiny"), overrides=eval(changes)).run.iterations == 2


# -- own reward ------------------------------------------------------------------------------


def test_the_page_on_rewards_says_what_there_is():
    """Every event and every group of entry points, and settings that are such."""
    text = text_of("docs/own_reward.md")
    named = {row[0].strip("`") for row in cells(text)}
    events = {name for name in vars(Events) if not name.startswith("_")}

    assert named >= events - {"stage", "progress", "note", "iteration", "stop", "stopping"}
    assert named >= {f"mvczigal_ref.{group}" for group in GROUPS}
    for word in re.findall(r"^mvczigal train tiny \"?(.*?)\"?$", text, re.MULTILINE):
        load_config(recipe("tiny"), overrides=[word])


def test_the_functions_of_the_page_on_rewards_are_rewards():
    """Of both kinds, as they stand."""
    names = {"__name__": "my_rewards"}
    exec(FENCE.findall(text_of("docs/own_reward.md"))[0], names)
    options = ScorerOptions(num_views=3, image_size=8)

    per_view_scorer(hand_over("reward", names["redness"]), options)
    joint_view_scorer(hand_over("joint_reward", names["evenness"]), options)


# -- notebooks ------------------------------------------------------------------------------

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    """Nor with numbers of a run, nor what a person's machine has added."""
    notebook = json.loads(path.read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]

    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    assert {cell["execution_count"] for cell in cells} == {None}
    assert {*notebook["metadata"]} == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_is_there(path):
    """`nox -s notebooks` runs it."""
    notebook = json.loads(path.read_text("utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    imports = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse("\n".join(cells)))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]

    assert imports
    for module, name in imports:
        assert hasattr(importlib.import_module(module), name), (module, name)


def test_every_notebook_is_linked():
    """On the page that lists them."""
    linked = LINK.findall(text_of("docs/notebooks/index.md"))

    assert sorted(linked) == [path.name for path in NOTEBOOKS]
    assert len(linked) == 4


# -- papers and deviations -------------------------------------------------------------------


def test_each_deviation_has_its_own_number_and_tests_that_exist():
    """In its last column; a test that is moved takes its entry with it."""
    text = text_of("DEVIATIONS.md")
    numbers = [match[1] for match in ENTRY.finditer(text)]
    entries = {match[1]: TEST.findall(match[0].split("|")[-2]) for match in ENTRY.finditer(text)}
    named = TEST.findall(text)

    assert len(numbers) >= 40
    assert len(numbers) == len(set(numbers))
    assert [entry for entry, tests in entries.items() if not tests] == []
    assert [test for test in named if not (ROOT / test).is_file()] == []


def test_what_the_index_of_papers_names_is_there():
    """Functions or modules, recipes, tests and entries of DEVIATIONS.md."""
    entries = {match[1] for match in ENTRY.finditer(text_of("DEVIATIONS.md"))}
    rows = [row for row in cells(text_of("docs/papers.md")) if quoted(" ".join(row))]
    unknown = []
    for row in rows:
        *_, tests, deviations = row
        recipes = quoted(row[2]) if len(row) == 5 else []
        unknown += [name for name in quoted(row[1]) if not exists(name)]
        unknown += [name for name in recipes if name not in RECIPES]
        unknown += [t for t in quoted(tests) if not (ROOT / "tests/unit" / t).exists()]
        unknown += [d for d in re.findall(r"[DFR]\d+", deviations) if d not in entries]

    assert len(rows) >= 40
    assert unknown == []


def exists(name):
    """Tell a public name, a command, or a module or room of the package."""
    path = PACKAGE / name.replace(".", "/")
    command = name.startswith("mvczigal ")
    return (
        name in mvczigal_ref.__all__ or command or path.is_dir() or path.with_suffix(".py").exists()
    )


def test_what_runs_together_is_what_the_recipes_do():
    """Objective, rollout and reward of every method that the table names."""
    rows = [
        row for row in cells(text_of("docs/combinations.md")) if len(row) == 5 and row[4][0] == "`"
    ]
    named = {name: row for row in rows for name in quoted(row[4])}
    modes = {
        "both, constrained": "constrained",
        "joint": "joint",
        "weighted sum": "weighted_sum",
        "per view": "per_view",
    }

    assert len(named) >= 20
    for name, (_, objective, rollout, reward, _) in named.items():
        config = RECIPES[name]()
        assert quoted(objective) == [config.objective.kind], name
        assert quoted(rollout) == [config.rollout.kind], name
        assert modes[reward] == config.advantage.mode, name
        assert ("captions" in rollout) == (config.condition.enhancer != "none"), name
        if config.rollout.kind == "pair":
            assert rollout.endswith(config.objective.pairing), name


# -- pages that are made of the source -------------------------------------------------------


def test_the_page_of_settings_has_every_setting(hooks):
    """One row each, by the piece that `mvczigal settings` prints."""
    page = hooks.settings_tables()
    for section, (about, settings) in described_sections().items():
        assert f"## {section}\n\n{about}" in page
        for setting in settings:
            assert f"| `{section}.{setting.name}` | {hooks._cell(setting.unit)} |" in page


def test_every_recipe_is_in_the_list(hooks):
    """With a sentence about it."""
    assert hooks.recipes().keys() == RECIPES.keys()
    assert all(hooks.recipes().values())


def test_public_names_and_rooms_are_in_the_reference(hooks):
    """Every public name by its home, every module once."""
    homes = {name: home for names in hooks.public_names().values() for name, home in names.items()}
    rooms = hooks.rooms()
    modules = [module for room in rooms.values() for module in room]

    assert homes == mvczigal_ref._HOME
    assert len(modules) == len(set(modules))
    for home in homes.values():
        assert f"mvczigal_ref.{home}" in modules or home in rooms


def test_links_out_of_the_folder_become_the_sites(hooks):
    """Documents beside the README are pages; what else is linked is copied."""
    linked = set(hooks.linked())

    assert "fixtures/pictures/tiny.png" in linked
    assert "DEVIATIONS.md" not in linked
    assert all((ROOT / name).is_file() for name in linked)
    assert hooks._inside("DEVIATIONS.md") == "deviations.md"


# -- metrics -----------------------------------------------------------------------------------


def test_a_pattern_of_metrics_stands_for_names_alone():
    """A word in capitals is any name, and nothing else is."""
    assert undocumented(["loss", "reward/world.per_view/zigzag", "guard/pickscore"]) == []
    assert undocumented(["loss2", "reward/a/other"]) == ["loss2", "reward/a/other"]
    assert len(documented_metrics()) >= 40


# -- models.md -----------------------------------------------------------------------------


def test_the_table_of_models_is_made_of_the_recipes():
    """`python -m tests.models_table` writes it anew."""
    text = text_of("docs/models.md")
    shown = text.partition(models_table.BEGIN)[2].partition(models_table.END)[0]

    assert shown.strip() == models_table.table().strip()
    assert all(f"`{name}`" in shown for name in RECIPES if not name.startswith("tiny"))
