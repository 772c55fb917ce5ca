"""`config.fingerprint`: laws."""

import pytest

from mvczigal_ref.config import (
    TrainConfig,
    fingerprint,
    fingerprinted,
    from_dict,
    load_config,
    to_dict,
)
from mvczigal_ref.config.fingerprint import _LATER, settings_difference
from mvczigal_ref.config.reads import unread_settings
from tests.unit.config.other_settings import FREE, OTHER, SETTINGS


@pytest.fixture
def _apart(monkeypatch):
    """Take each setting for itself: together they would contradict each other."""
    monkeypatch.setattr("mvczigal_ref.config.train.contradictions", lambda config: ())


def test_the_order_in_which_scorers_are_written_is_no_setting():
    """Neither the sum's bits nor the fingerprint depend on it."""
    one, two = (
        load_config(overrides=[f"reward.per_view={{{text}}}"])
        for text in ("b: 1, a: 0.5", "a: 0.5, b: 1")
    )

    assert list(one.reward.per_view) == ["a", "b"]
    assert one == two
    assert hash(one) == hash(two)
    assert fingerprint(one) == fingerprint(two)


@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize(("section", "name"), SETTINGS)
def test_the_fingerprint_reads_what_a_number_depends_on_and_nothing_else(section, name):
    """Length, evaluation, saving, trackers and device may differ in a continued run."""
    base = from_dict({**OTHER, "constraint": {**OTHER["constraint"], "multiplier_max": 4.0}})
    values = to_dict(base)
    values[section][name] = to_dict(TrainConfig())[section][name]
    other = from_dict(values)
    same = fingerprint(other) == fingerprint(base)
    unread = f"{section}.{name}" in unread_settings(base)

    assert same is ((section, name) in FREE or unread)
    left_out = unread and f"{section}.{name}" in _LATER  # at its default, as in earlier runs
    assert (name in fingerprinted(base)[section]) is ((section, name) not in FREE and not left_out)


@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize("path", [*_LATER, "optim.lr", "run.device"])
def test_a_run_of_another_fingerprint_differs_in_that_setting(path):
    """Whichever of the two came first, and where one leaves out what came later."""
    section, _, name = path.partition(".")
    plain, other = to_dict(TrainConfig()), to_dict(from_dict(OTHER))
    configs = [
        from_dict({**plain, section: {**plain[section], name: value[section][name]}})
        for value in (plain, other)
    ]
    same = len({fingerprint(config) for config in configs}) == 1
    for there, here in (configs, configs[::-1]):
        text = settings_difference(fingerprinted(there), fingerprinted(here))

        assert (text == "") is same
        assert same or f"`{path}` is " in text


def test_the_recipes_name_is_not_in_the_fingerprint():
    """A run may be continued from its own configuration file."""
    assert fingerprint(TrainConfig(recipe="a")) == fingerprint(TrainConfig(recipe="b"))


def test_a_setting_that_came_later_leaves_the_fingerprint_of_earlier_runs():
    """At its default, which is what those did."""
    run = fingerprinted(TrainConfig())["run"]
    assert not {"arms_per_call", "sharding", "reduction", "compute_dtype"} & run.keys()
    assert (
        fingerprinted(load_config(overrides=["run.arms_per_call=2"]))["run"]["arms_per_call"] == 2
    )
