"""`cli.recipes`: recipes listed, shown and compared; errors."""

import json

import pytest

from mvczigal_ref.cli import main
from mvczigal_ref.config import TrainConfig, load_config, to_dict
from mvczigal_ref.config.loading import read_settings
from mvczigal_ref.recipes import RECIPES, recipe
from mvczigal_ref.reproduce.methods import COMPARISONS

# -- oracle -----------------------------------------------------------------------------


def test_a_recipe_is_shown_with_source_and_changes(capsys):
    """Every setting that differs from the default is there with both values, and no other."""
    assert main(["recipes", "tiny_mv_pg"]) == 0
    text = capsys.readouterr().out
    rows = [line.strip("│ ").split(" │ ") for line in text.splitlines() if line.startswith("│")]
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    defaults, values = to_dict(TrainConfig()), to_dict(recipe("tiny_mv_pg"))
    changed = {
        f"{section}.{name}"
        for section, settings in values.items()
        if section != "recipe"
        for name, value in settings.items()
        if value != defaults[section][name]
    }

    assert table.keys() == changed
    assert table["optim.lr"] == ["0.002", "0.004"]
    assert text.startswith("tiny_mv_pg: MV-PG on the tiny world")
    assert "arXiv:2505.20107" in text


def test_the_list_cuts_no_word(monkeypatch, capsys):
    """In a terminal of the usual width words go on in the next line."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes"]) == 0
    assert "…" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tiny", "lcm_sdxl_simple", "mv_grpo_vlm"])
def test_a_recipe_s_yaml_is_the_recipe(name, tmp_path, capsys):
    """A file that `--config` reads, with every section, so that no later default changes it."""
    assert main(["recipes", name, "--yaml"]) == 0
    (tmp_path / "recipe.yaml").write_text(capsys.readouterr().out)

    assert read_settings(tmp_path / "recipe.yaml").keys() == to_dict(recipe(name)).keys()
    assert load_config(file=tmp_path / "recipe.yaml") == recipe(name)


def test_recipes_are_written_as_json(tmp_path):
    """All of them in a line each, or one with its changes."""
    assert main(["recipes", "--json", str(tmp_path / "all.json")]) == 0
    assert main(["recipes", "tiny", "--json", str(tmp_path / "tiny.json")]) == 0
    every, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("all", "tiny"))

    assert every.keys() == RECIPES.keys()
    assert {name for name, row in every.items() if row["reproduce"] == "flow"} == {
        method.recipe for method in COMPARISONS["flow"].methods
    }
    assert all((row["check"] == "yes") == name.startswith("tiny") for name, row in every.items())
    assert one["changes"]["optim.lr"] == [0.002, 0.004]
    assert one["recipe"] == "tiny"
    assert "source" in one


def test_two_recipes_are_compared(capsys):
    """Every setting that differs, and no other."""
    assert main(["recipes", "tiny_mv_pg", "--diff", "tiny", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)

    assert content["against"] == "tiny"
    assert content["changes"]["objective.kind"] == ["reward_difference", "policy_gradient"]
    assert load_config(
        recipe("tiny"),
        overrides=[f"{path}={json.dumps(new)}" for path, (_, new) in content["changes"].items()],
        training=False,
    ) == load_config(recipe("tiny_mv_pg"), file=None, overrides=["recipe=tiny"], training=False)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tinny"], "unknown recipe: `tinny`; did you mean `tiny`?"),
        (["tiny", "--diff", "tinny"], "unknown recipe: `tinny`; did you mean `tiny`?"),
        (["--yaml"], "name a recipe"),
        (["--diff", "tiny"], "name a recipe"),
    ],
)
def test_a_slip_is_refused_in_one_line(words, message, capsys):
    """With the nearest name."""
    assert main(["recipes", *words]) == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1
