"""`settings_file`: numbers as people write them, and files that would exhaust the machine."""

import math
import time

import pytest

from mvczigal_ref.config import load_config
from mvczigal_ref.config.loading import read_settings, read_value
from mvczigal_ref.errors import ConfigError


def refusal(call, *given):
    """The one short line with which something is refused."""
    with pytest.raises(ConfigError) as caught:
        call(*given)
    told = str(caught.value)
    assert told.isprintable()
    assert len(told) < 700
    return told


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-3", -3), ("+3", 3), ("1_000", 1000), ("010", 10), ("0", 0),
        ("1e-4", 1e-4), ("1E3", 1000.0), ("3e4", 30000.0), (".5", 0.5), ("5.", 5.0),
        ("-1.5e+2", -150.0), ("1_000.5", 1000.5), ("inf", math.inf), ("-.inf", -math.inf),
        ("true", True), ("null", None), ("~", None), ("2020-13-45", "2020-13-45"),
        ("2020-01-02", "2020-01-02"), ("12:30:45", "12:30:45"), ("0x1F", "0x1F"), ("1e", "1e"),
        ("info", "info"), ("-", None), ("a", "a"), ("'3'", "3"), ("<<", "<<"), ("=", "="),
    ],
)  # fmt: skip
def test_numbers_read_as_people_write_them(text, value):
    """They count in tens; dates and times are texts."""
    if text == "-":
        assert read_value(text) == [None]
        return
    read = read_value(text)

    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("word", "section", "name", "value"),
    [
        ("run.iterations=3e2", "run", "iterations", 300),
        ("run.iterations=1_000", "run", "iterations", 1000),
        ("optim.lr=1e-4", "optim", "lr", 1e-4),
        ("run.seed=9223372036854775807", "run", "seed", 2**63 - 1),
        ("constraint.multiplier_max=none", "constraint", "multiplier_max", None),
        ("constraint.multiplier_max=null", "constraint", "multiplier_max", None),
        ("reward.per_view={clip_score: 1e-1}", "reward", "per_view", {"clip_score": 0.1}),
    ],
)
def test_settings_take_them(word, section, name, value):
    """A whole number may have an exponent."""
    assert getattr(getattr(load_config(overrides=[word]), section), name) == value


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{[1]: 2}", "a setting's name must be text"),
        ("{{a: 1}: 2}", "a setting's name must be text"),
        ("{1: 2}", "a setting's name must be text; got 1"),
        ("{? [a, b] : 2}", "a setting's name must be text"),
        ("!!int x", "invalid literal"),
        ("!!float x", "could not convert"),
        ("!!timestamp 2020-13-45", "month must be"),
        ("!!bool x", "not YAML as it should be"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("!!binary x", "not YAML as it should be"),
        ("9" * 5000, "Exceeds the limit"),
        ("{a: &a [1], b: *a}", "aliases"),
        ("[" * 50_000, "deeper than"),
        ("{a: " * 50_000, "deeper than"),
        ("- " * 50_000, "deeper than"),
        ("a" * 300_000, "at most 262144"),
        ("{a: 1, a: 2}", "`a` is set twice"),
        ("[1", "not YAML as it should be"),
        ("\x1b[31m", "not YAML as it should be"),
        ("a: b: c", "not YAML as it should be"),
    ],
)
def test_what_is_no_setting_is_refused_at_once(text, words):
    """On one short line, whatever it is."""
    begun = time.perf_counter()

    assert words in refusal(read_value, text)
    assert time.perf_counter() - begun < 2.0


def test_a_bomb_is_refused(tmp_path):
    """Ten lines that stand for ten thousand million values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    assert "bomb.yaml': YAML's aliases" in refusal(read_settings, tmp_path / "bomb.yaml")


def test_files_in_other_encodings_are_refused_by_name(tmp_path):
    """And a byte-order mark is no part of them."""
    path = tmp_path / "settings.yaml"
    path.write_bytes("optim: {lr: 1}\n".encode("utf-8-sig"))
    assert read_settings(path) == {"optim": {"lr": 1}}
    for content in ("optim: {lr: 1}".encode("utf-16"), b"# caf\xe9\n", b"\0\0\0"):
        path.write_bytes(content)
        assert "settings.yaml' must be text in UTF-8" in refusal(read_settings, path)
    path.write_bytes(b"#" * 2**19)
    assert "at most 262144 bytes" in refusal(read_settings, path)
    path.write_bytes(b"- 1\n" * 1000)
    assert "must hold sections of settings; got [1, 1" in refusal(read_settings, path)


@pytest.mark.parametrize(
    "word",
    [
        "optim.lr=1e300", "optim.lr=1e-300", "optim.weight_decay=1e300",
        "constraint.step_size_violated=1e300", "objective.clip_range=1e39",
        "run.iterations=1000000000000", "run.iterations=1e300", "run.iterations=.inf",
        "run.objects_per_iteration=100000000001", "rollout.members=100000000",
        "sampler.num_steps=1000000000000", "sampler.num_steps=60", "run.seed=18446744073709551616",
        "run.seed=-1", "run.seed=1.5", "model.image_size=1", "model.image_size=7",
        "model.image_size=33", "constraint.multiplier_max=0", "run.iterations=" + "9" * 4000,
        "run.iterations=" + "9" * 5000, "x" * 100_000 + "=1", "optim." + "\x1b[2J" * 9 + "=1",
        "optim.lr=" + "[" * 10_000, "run.seed={[1]: 2}", "optim.lr=2020-13-45",
        "reward.per_view={a: 1e400}", "optim=3", "optim.lr=" + "x" * 100_000,
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_loaded(word):
    """On one short line, at once."""
    begun = time.perf_counter()
    refusal(lambda: load_config(overrides=[word]))

    assert time.perf_counter() - begun < 2.0
