"""`cli.playing`: a run is told from weights, and mistakes are refused before a model loads."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mvczigal_ref.cli import main, playing
from mvczigal_ref.cli.playing import Play, _config
from tests.unit.report.folders import write_run

WEIGHTS = Path(__file__).parents[3] / "fixtures" / "tiny_world"
HINT = 'which is not installed. Run `pip install "mvczigal-ref[demo]"`'


def test_without_gradio_the_command_says_how_to_install_it(monkeypatch, capsys):
    """In one line, before any model loads."""
    monkeypatch.setattr(playing, "find_spec", lambda _: None)
    monkeypatch.setattr(playing, "_playground", lambda _: pytest.fail("loaded"))

    assert main(["play"]) == 2
    error = capsys.readouterr()
    assert HINT in error.err
    assert error.err.count("\n") == 1
    assert error.out == ""


def test_it_is_said_that_models_load_before_their_libraries_do(monkeypatch, capsys):
    """Nobody waits for torch before an empty line."""
    monkeypatch.setattr(playing, "find_spec", lambda _: True)
    monkeypatch.setitem(sys.modules, "mvczigal_ref.demo.page", None)  # its import fails

    with pytest.raises(ImportError):
        playing.page_of(Play())
    assert capsys.readouterr().out == "loading models\n"


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
    monkeypatch.setattr(playing, "find_spec", lambda _: True)

    assert main(["play", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_single_file_is_refused_with_its_conversion(monkeypatch, capsys, tmp_path):
    """As every command does that reads weights."""
    monkeypatch.setattr(playing, "find_spec", lambda _: True)
    file = tmp_path / "sdxl.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, file)

    assert main(["play", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"from_single_file({str(file)!r})" in error
    assert error.count("\n") == 1


def test_a_run_takes_no_lora(monkeypatch, capsys, tmp_path):
    """Nor a recipe: it has both."""
    monkeypatch.setattr(playing, "find_spec", lambda _: True)
    folder = write_run(tmp_path / "run")

    assert main(["play", str(folder), "--lora", "lora"]) == 2
    assert "leave out `--lora` and `--recipe`" in capsys.readouterr().err
