"""`training.rewards`: functions that a run was trained on, found again or missed."""

import hashlib
import re

import pytest

from mvczigal_ref.config import code_names, load_config
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.training.rewards import changed_rewards, require_same_rewards, reward_sources

TEXT = "def score(images, prompts):\n    return images.mean((-1, -2, -3))\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A file, the configuration that names it, and the state of its checkpoint."""
    monkeypatch.setattr(code_names, "_TYPED", set())
    file = tmp_path / "my.py"
    file.write_text(TEXT, "utf-8")
    config = load_config(overrides=[f"reward.per_view={file}:score"])
    return file, config, {"rewards": reward_sources(config)}


def test_sources_are_those_of_functions_alone(run):
    """Path and hash of each; scorers of the package, and of the guard that sleeps, have none."""
    file, config, state = run
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    assert state["rewards"] == {f"{file}:score": {"place": str(file), "sha256": digest}}
    asleep = load_config(config, overrides=["guard.joint=[absent.py:score]"], training=False)
    assert reward_sources(asleep).keys() == {f"{file}:score"}


def test_the_same_source_goes_on(run):
    """As do runs of before sources were recorded."""
    _, config, state = run
    require_same_rewards(config, state)
    require_same_rewards(config, {})


def test_a_changed_source_is_refused_with_both_hashes(run):
    """The record's and the file's."""
    file, config, state = run
    then = state["rewards"][f"{file}:score"]["sha256"]
    file.write_text(TEXT + "# changed\n", "utf-8")
    now = hashlib.sha256(file.read_bytes()).hexdigest()

    with pytest.raises(CheckpointError, match=f"{then}.*{now}.*by `--from`"):
        require_same_rewards(config, state)
    assert changed_rewards(state) == [f"{file}:score"]


def test_a_source_that_is_gone_is_named_with_where_it_was(run):
    """Place and hash, from the checkpoint; without a record the lookup's own words."""
    file, config, state = run
    file.unlink()

    with pytest.raises(CheckpointError, match=re.escape(f"'{file}:score' was '{file}', sha256")):
        require_same_rewards(config, state)
    with pytest.raises(ConfigError, match="there is no"):
        require_same_rewards(config, {})


def test_what_nobody_typed_is_not_compared(run, monkeypatch):
    """Nothing is imported for a run that is only looked at."""
    file, _, state = run
    file.write_text("1 / 0\n", "utf-8")
    monkeypatch.setattr(code_names, "_TYPED", set())

    assert changed_rewards(state) == []
