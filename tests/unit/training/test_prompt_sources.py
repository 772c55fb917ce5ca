"""`training.prompt_sources`: lists that are shipped, and where the others are."""

from pathlib import Path

import pytest

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.recipes import RECIPES
from mvczigal_ref.text_files import read_text
from mvczigal_ref.training.prompt_sources import PUBLISHED, SHIPPED, shipped_list
from mvczigal_ref.training.prompts import read_prompts, run_prompts

SIZES = {"simple_animals.txt": 45, "objects.txt": 341, "objects_held_out.txt": 40}
DOCUMENT = Path(__file__).parents[3] / "docs" / "recipes.md"


@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_list_is_clean(name, tmp_path, monkeypatch, recwarn):
    """No blank line, no prompt twice, and as many as its README says."""
    monkeypatch.chdir(tmp_path)
    prompts = read_prompts(f"prompts/{name}")

    assert len(prompts) == SIZES[name] == len(set(prompts))
    assert len(recwarn) == 0
    assert f"| `{name}` | {SIZES[name]} |" in read_text(SHIPPED / "README.md")


def test_every_shipped_list_is_listed():
    """And held-out objects are trained on nowhere."""
    assert {path.name for path in SHIPPED.glob("*.txt")} == SIZES.keys()
    trained, held_out = (
        set(read_prompts(f"prompts/{name}.txt")) for name in ("objects", "objects_held_out")
    )
    assert not trained & held_out


def test_the_working_directory_comes_first(tmp_path, monkeypatch):
    """A file of the same name there wins."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "simple_animals.txt").write_text("a yak\n")

    assert read_prompts("prompts/simple_animals.txt") == ["a yak"]


@pytest.mark.parametrize(
    ("name", "shipped"),
    [
        ("prompts/objects.txt", True),
        ("prompts\\objects.txt", True),
        ("objects.txt", False),
        ("other/prompts/objects.txt", False),
        ("/prompts/objects.txt", False),
        ("prompts/../objects.txt", False),
        ("prompts/README.md", False),
        ("prompts/", False),
    ],
)
def test_only_the_folder_of_lists_is_looked_up(name, shipped):
    """Nothing else of the package."""
    assert (shipped_list(name) is not None) is shipped


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_prompts_are_here_or_said_where(name, tmp_path, monkeypatch):
    """A fresh folder trains it, or is told the command that fetches what it needs."""
    monkeypatch.chdir(tmp_path)
    run = RECIPES[name]().run
    published = [path for path in (run.prompts, run.held_out) if Path(path).name in PUBLISHED]
    if not published:
        trained, held_out = run_prompts(RECIPES[name]())
        assert trained
        assert held_out
        return
    with pytest.raises(ConfigError, match=r"`curl -L|curl -L https") as caught:
        run_prompts(RECIPES[name]())
    assert str(caught.value).startswith(f"`run.prompts` = '{run.prompts}' is not in this folder. ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_document_says_where_each_list_is(name):
    """With the same address."""
    address = next(word for word in PUBLISHED[name].split() if word.startswith("https://"))

    assert f"`prompts/{name}`" in DOCUMENT.read_text("utf-8")
    assert address.strip("`") in DOCUMENT.read_text("utf-8")


def test_the_document_names_every_shipped_list():
    """As the package's own."""
    assert all(f"`prompts/{name}`" in DOCUMENT.read_text("utf-8") for name in SIZES)
