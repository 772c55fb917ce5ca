"""`config.recomputation`: what does not go with a choice by memory."""

import pytest

from mvczigal_ref.config import load_config
from mvczigal_ref.errors import ConfigError

AUTO = "model.gradient_checkpointing=auto"


@pytest.mark.parametrize(
    ("word", "reason"),
    [("run.sharding=full", "gather at other times"), ("model.compile=eager", "compiled program")],
)
def test_a_choice_by_memory_is_refused_where_it_cannot_be_made(word, reason):
    """With the remedy; true and false go with all of it."""
    with pytest.raises(ConfigError, match=f"must be true or false where .*{reason}"):
        load_config(overrides=[AUTO, word])
    load_config(overrides=["model.gradient_checkpointing=true", word])


@pytest.mark.parametrize(
    ("word", "value"),
    [("auto", "auto"), ("on", True), ("off", False), ("true", True), ("false", False)],
)
def test_the_values_of_before_stay_valid(word, value):
    """And are what they were in a file."""
    config = load_config(overrides=[f"model.gradient_checkpointing={word}"])
    assert config.model.gradient_checkpointing is value or value == "auto"
    assert config.model.gradient_checkpointing == value


def test_another_word_is_refused():
    """By its dotted name."""
    with pytest.raises(ConfigError, match=r"model\.gradient_checkpointing"):
        load_config(overrides=["model.gradient_checkpointing=sometimes"])
