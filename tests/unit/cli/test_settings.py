"""`cli.settings`: all settings, a section, one; errors."""

import json

import pytest

from mvczigal_ref.cli import main
from mvczigal_ref.config import TrainConfig, to_dict

SECTIONS = {name: set(v) for name, v in to_dict(TrainConfig()).items() if isinstance(v, dict)}


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        ([], {f"{section}.{name}" for section, names in SECTIONS.items() for name in names}),
        (["optim"], {f"optim.{name}" for name in SECTIONS["optim"]}),
        (["optim.lr"], {"optim.lr"}),
    ],
)
def test_settings_are_listed(words, paths, capsys):
    """All, of a section, or one: with default, unit, values and meaning."""
    assert main(["settings", *words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)

    assert content.keys() == paths
    assert content["optim.lr"]["default"] == "0.002"
    assert content["optim.lr"]["unit"] == "parameter units per step"
    assert all(row["meaning"] and row["values"] for row in content.values())


def test_a_table_has_the_same(capsys, monkeypatch):
    """One row per setting, under the section's sentence."""
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["settings", "zigzag"]) == 0
    text = capsys.readouterr().out

    assert all(f"zigzag.{name} " in text for name in SECTIONS["zigzag"])
    assert "optim." not in text


@pytest.mark.parametrize(("word", "near"), [("optm", "optim"), ("optim.rl", "optim.lr")])
def test_an_unknown_name_is_refused_with_the_nearest(word, near, capsys):
    """On one line."""
    assert main(["settings", word]) == 2
    text = capsys.readouterr().err
    assert f"the nearest name is `{near}`" in text
    assert text.count("\n") == 1
