"""`config.run_file`: a run's own settings, or a refusal that names the file."""

import json

import pytest

from mvczigal_ref.cli import main
from mvczigal_ref.config import TrainConfig, load_config, to_dict
from mvczigal_ref.config.run_file import run_config
from mvczigal_ref.errors import CheckpointError


def write(folder, content):
    """Write a run's settings."""
    (folder / "config.json").write_text(content, "utf-8")
    return folder


def test_settings_come_back(tmp_path):
    """As they were written."""
    config = load_config(overrides=["run.seed=3", "model.lora_rank=2"])

    assert run_config(write(tmp_path, json.dumps(to_dict(config)))) == config


def test_an_earlier_version_is_completed(tmp_path):
    """By the default of a setting that it did not know."""
    values = to_dict(TrainConfig())
    del values["run"]["sharding"]

    assert run_config(write(tmp_path, json.dumps(values))) == TrainConfig()


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("null", "it lacks advantage, condition, "),
        ("{}", "it lacks advantage, condition, "),
        ('{"recipe": "tiny"}', "it lacks advantage, condition, "),
        ("[]", "configuration: it must hold sections of settings"),
        ('{"run": {"seed', "configuration: cannot read settings from it: it is not YAML"),
        ("\0", "configuration: it must be text in UTF-8; it holds NUL bytes"),
        (json.dumps({**to_dict(TrainConfig()), "next": {}}), "unknown setting `next`"),
    ],
)
def test_what_is_no_runs_configuration_is_named(tmp_path, content, reason):
    """A file that was cut to nothing would pass for a run of defaults."""
    with pytest.raises(CheckpointError, match=r"config\.json' is no run's configuration: ") as end:
        run_config(write(tmp_path, content))

    text = str(end.value)
    assert reason in text
    assert text.count("config.json") == 1
    assert text.endswith("Restore it, or choose another folder.")
    assert "\n" not in text


@pytest.mark.parametrize("words", [["report"], ["evaluate", "--run"], ["sample", "a", "--run"]])
def test_a_command_refuses_a_run_without_settings(tmp_path, capsys, words):
    """It would score a run by the steps and guidance of another."""
    assert main([*words, str(write(tmp_path, ""))]) == 2
    assert "config.json' is no run's configuration" in capsys.readouterr().err


@pytest.mark.parametrize(("copied", "end"), [(False, "its run, {run!r}."), (True, "its run.")])
def test_a_checkpoint_is_no_run(copied, end, tmp_path):
    """It holds the same settings, but a report would be written into it, of nothing."""
    folder = tmp_path / "checkpoints" / "iteration_000002"
    folder.mkdir(parents=True)
    for place in (folder,) if copied else (folder, tmp_path):
        write(place, json.dumps(to_dict(TrainConfig())))
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a checkpoint, not a run") as refused:
        run_config(folder)

    assert str(refused.value).endswith(end.format(run=str(tmp_path)))
