"""`config.setting_docs`: every setting with its default and meaning; errors."""

import re
from typing import get_args

import pytest

from mvczigal_ref.config import TrainConfig, setting_docs, to_dict
from mvczigal_ref.config.setting_docs import described_sections
from mvczigal_ref.config.types import TrackerName


def test_every_setting_is_described():
    """With the default that the configuration has, and what it means."""
    config = to_dict(TrainConfig())
    config.pop("recipe")
    sections = described_sections()

    assert {name: [f.name for f in fields] for name, (_, fields) in sections.items()} == {
        name: list(section) for name, section in config.items()
    }
    for name, (about, fields) in sections.items():
        assert about
        for field in fields:
            value = config[name][field.name]
            assert field.default == plain(value), field
            assert field.meaning, field
            assert not re.search(r"\b_|[A-Z]\w+\b", field.values), field  # a name of the source
            assert "[" not in field.unit, field


def plain(value):
    """Write a value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value) if value != "" else '""'


@pytest.mark.parametrize(
    ("setting", "unit", "values"),
    [
        ("optim.lr", "parameter units per step", "number > 0, <= 1000.0"),
        ("model.dtype", "", "fp32, bf16, fp16"),
        ("run.seed", "", "whole number >= 0, < 2 ** 63"),
        (
            "run.trackers",
            "",
            f"list of {', '.join(get_args(TrackerName))}",
        ),
        ("optim.loss_scale", "1", "number >= 1, <= 2 ** 32 or null"),
        ("sampler.kind", "", "lcm, ddim, euler_ancestral, tcd, flow"),
    ],
)
def test_a_setting_says_its_unit_and_values(setting, unit, values):
    """Bounds are those of its type."""
    section, _, name = setting.partition(".")
    (found,) = [each for each in described_sections()[section][1] if each.name == name]

    assert (found.unit, found.values) == (unit, values)


def test_a_setting_without_a_docstring_is_refused(tmp_path):
    """By its name."""
    for path in setting_docs.CONFIG.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text("utf-8"), "utf-8")
    run = tmp_path / "run.py"
    text = re.sub(r'(    lr: Rate = .*\n)    """.*?"""\n', r"\1", run.read_text("utf-8"))
    run.write_text(text, "utf-8")

    with pytest.raises(ValueError, match=r"`OptimConfig\.lr` must have a docstring"):
        described_sections(tmp_path)
