"""`cli.playing`: a run is told from weights, and mistakes are refused before a model loads."""

from pathlib import Path

import pytest

from mvczigal_ref.cli import main
from mvczigal_ref.cli.playing import Play, _config
from mvczigal_ref.demo import page
from tests.unit.report.folders import write_run

WEIGHTS = Path(__file__).parents[3] / "fixtures" / "tiny_world"


def test_the_shipped_weights_are_the_default():
    """With the steps that a sample has."""
    run, config = _config(Play())

    assert run is None
    assert (config.model.weights, config.sampler.num_steps) == ("tiny", 8)


def test_a_folder_of_weights_is_sampled_as_a_recipe():
    """The recipe's own steps, where one is named."""
    run, config = _config(Play(folder=WEIGHTS, recipe="tiny", settings=("sampler.num_steps=3",)))

    assert run is None
    assert (config.model.weights, config.sampler.num_steps) == (str(WEIGHTS), 3)


def test_a_run_brings_its_settings(tmp_path):
    """Its steps and its weights."""
    folder = write_run(tmp_path / "run", overrides=["sampler.num_steps=5"])
    run, config = _config(Play(folder=folder))

    assert run == folder
    assert config.sampler.num_steps == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], "takes a run folder or a folder of weights; got 'absent'"),
        (["--recipe", "tinny"], "did you mean `tiny`?"),
        (["optim.lr=1"], "`optim.lr` changes nothing here"),
        (["--port", "70000"], "`--port` must be 0 to 65535; got 70000"),
    ],
)
def test_mistakes_are_refused_in_one_line(monkeypatch, capsys, words, message):
    """Where Gradio is installed."""
    monkeypatch.setattr(page, "require_gradio", lambda: None)

    assert main(["play", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_takes_no_lora(monkeypatch, capsys, tmp_path):
    """Nor a recipe: it has both."""
    monkeypatch.setattr(page, "require_gradio", lambda: None)
    folder = write_run(tmp_path / "run")

    assert main(["play", str(folder), "--lora", "lora"]) == 2
    assert "leave out `--lora` and `--recipe`" in capsys.readouterr().err
