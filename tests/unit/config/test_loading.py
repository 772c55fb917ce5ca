"""`config.loading`: what is accepted, what is refused, and how."""

import dataclasses
import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mvczigal_ref
from mvczigal_ref.config import (
    OptimConfig,
    TrainConfig,
    from_dict,
    load_config,
    to_dict,
)
from mvczigal_ref.config.loading import read_settings, read_value
from mvczigal_ref.errors import ConfigError
from tests.unit.config.other_settings import OTHER, SETTINGS

PACKAGE = Path(mvczigal_ref.__file__).parent


@pytest.fixture
def _apart(monkeypatch):
    """Take each setting for itself: together they would contradict each other."""
    monkeypatch.setattr("mvczigal_ref.config.train.contradictions", lambda config: ())


def refusal(*overrides, **keywords):
    """The sentence with which overrides are refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides, **keywords)
    return str(caught.value)


# -- oracle: what is written is what is read ---------------------------------------------


def test_the_table_of_other_values_covers_every_setting():
    """A new setting must be added to it, and so is tested below."""
    defaults = to_dict(TrainConfig())

    assert {k: set(v) for k, v in defaults.items() if isinstance(v, dict)} == {
        k: set(v) for k, v in OTHER.items() if isinstance(v, dict)
    }
    assert all(defaults[s][n] != OTHER[s][n] for s, n in SETTINGS)


@pytest.mark.usefixtures("_apart")
def test_every_setting_survives_the_way_to_json_and_back():
    """Through text, with tuples as lists, to an equal configuration."""
    config = from_dict(json.loads(json.dumps(OTHER)))

    assert to_dict(config) == OTHER
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_changes_what_it_names_alone(tmp_path, suffix):
    """The rest stays as in the base."""
    path = tmp_path / f"settings.{suffix}"
    text = {"yaml": "optim:\n  lr: 1e-4\n", "json": '{\n\t"optim": {"lr": 1e-4}\n}'}[suffix]
    path.write_text(text)
    base = load_config(overrides=["optim.eps=1e-6", "run.seed=3"])
    config = load_config(base, file=path)

    assert config == dataclasses.replace(base, optim=OptimConfig(lr=1e-4, eps=1e-6))


def test_the_command_line_wins_over_the_file_and_the_last_word_over_the_first(tmp_path):
    """The order is base, file, words."""
    path = tmp_path / "settings.yaml"
    path.write_text("run: {seed: 1, iterations: 9}\n")
    config = load_config(file=path, overrides=["run.seed=2", "run.seed=3"])

    assert (config.run.seed, config.run.iterations) == (3, 9)


def test_an_empty_file_sets_nothing(tmp_path):
    """Every line may be a comment."""
    path = tmp_path / "settings.yaml"
    path.write_text("# nothing yet\n")

    assert load_config(file=path) == TrainConfig()


@pytest.mark.parametrize(
    ("word", "section", "name", "value"),
    [
        ("optim.betas=[0.5, 0.6]", "optim", "betas", (0.5, 0.6)),
        ("constraint.threshold_init=-1e-1", "constraint", "threshold_init", -0.1),
        ("constraint.threshold_init=null", "constraint", "threshold_init", None),
        ("run.trackers=[tensorboard, wandb]", "run", "trackers", ("tensorboard", "wandb")),
        ("objective.clip=false", "objective", "clip", False),
        ("run.prompts=2024-01-01", "run", "prompts", "2024-01-01"),
        ("run.prompts=a=b", "run", "prompts", "a=b"),
        ("model.weights=12", "model", "weights", "12"),
        ("reward.per_view=pickscore", "reward", "per_view", "pickscore"),
        ("reward.per_view={pickscore: 1}", "reward", "per_view", "pickscore"),
        ("reward.joint={world.joint: 2}", "reward", "joint", {"world.joint": 2.0}),
        (
            "reward.per_view={world.per_view: 1, pickscore: 0.5}",
            "reward",
            "per_view",
            {"pickscore": 0.5, "world.per_view": 1.0},
        ),
        ("reward.weights={pickscore: ~/w}", "reward", "weights", {"pickscore": "~/w"}),
        ("guard.per_view=[hpsv2, clip_score]", "guard", "per_view", ("hpsv2", "clip_score")),
    ],
)
def test_words_are_read_as_the_setting_needs_them(word, section, name, value):
    """Numbers as numbers, names as names whatever they look like."""
    assert getattr(getattr(load_config(overrides=[word], training=False), section), name) == value


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


# -- laws --------------------------------------------------------------------------------


@given(st.floats(1e-37, 1e3))
def test_floats_come_back_bit_for_bit(value):
    """JSON text loses nothing."""
    config = from_dict(json.loads(json.dumps({"optim": {"lr": value}})))

    assert config.optim.lr == value


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("objective.clip_rnage=1", "objective.clip_range"),
        ("clip_range=1", "objective.clip_range"),
        ("objektive.clip_range=1", "objective.clip_range"),
        ("run.lr=1", "optim.lr"),
        ("zigzag.step=1", "zigzag.steps"),
        ("samplr.num_steps=1", "sampler.num_steps"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(word, nearest):
    """A wrong section and a wrong letter alike."""
    unknown = word.partition("=")[0]

    assert refusal(word) == f"unknown setting `{unknown}`; the nearest name is `{nearest}`."


def test_an_unknown_key_of_a_file_is_refused_too(tmp_path):
    """Nothing is dropped in silence."""
    path = tmp_path / "settings.yaml"
    path.write_text("optim: {learning_rate: 1e-4}\n")

    assert "unknown setting `optim.learning_rate`" in refusal(file=path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("optim: {lr: 1, lr: 2}", "`lr` is set twice"),
        ("[1, 2]", "must hold sections of settings"),
        ("optim: 3", "`optim` must be a section of settings; got 3"),
        ("recipe: {a: 1}", "`recipe`: input should be a valid string; got {'a': 1}"),
        ("optim: {lr: [", "cannot read settings from"),
        ("optim.lr: 1", "`optim.lr` must be written by section, as in `optim: {lr: ...}`."),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, complaint):
    """With what is wrong with it."""
    path = tmp_path / "settings.yaml"
    path.write_text(text)

    assert complaint in refusal(file=path)


def test_a_missing_file_is_refused(tmp_path):
    """As a setting, not with a traceback from the file system; its path is told once."""
    path = tmp_path / "absent.yaml"
    reason = "No such file or directory"
    assert refusal(file=path) == f"cannot read settings from {str(path)!r}: {reason}."


@pytest.mark.parametrize(
    "word",
    [
        "optim.lr=0",
        "optim.lr=true",
        "optim.lr=.inf",
        "optim.lr=.nan",
        "optim.lr=fast",
        "optim.betas=[0.9, 1.0]",
        "optim.betas=[0.9]",
        "sampler.num_steps=0",
        "sampler.num_steps=2.5",
        "sampler.num_steps=true",
        "sampler.eta=-0.1",
        "zigzag.steps=-1",
        "zigzag.rounds=0",
        "advantage.joint_weight=1.1",
        "constraint.threshold_decay=1.1",
        "constraint.multiplier_max=-1",
        "model.lora_rank=0",
        "model.dtype=fp8",
        "model.elevation=91",
        "model.azimuths=[.inf]",
        "model.compile=true",
        "optim.loss_scale=3",
        "optim.loss_scale=0.5",
        "optim.loss_scale=8589934592",
        "optim.loss_scale_growth_interval=0",
        "run.seed=-1",
        "run.keep_checkpoints=0",
        "run.trackers=[tensorbord]",
        "objective.clip=maybe",
        "run.prompts=",
        "reward.per_view=",
        "reward.per_view=3",
        "reward.per_view={}",
        "reward.per_view={a: fast}",
        "reward.per_view={a: true}",
        "reward.per_view={a: .inf}",
        "reward.joint={a: 0, b: 0}",
        "reward.weights={a: 3}",
        "reward.weights=folder",
        "reward.combine=both",
        "reward.dtype=fp16",
        "guard.margin=0",
        "guard.action=warn",
    ],
)
def test_a_value_out_of_range_is_refused_by_its_path(word):
    """With the value got."""
    path = word.partition("=")[0]
    message = refusal(word)

    assert message.startswith(f"`{path}`: ")
    assert "; got " in message


def test_the_largest_seed_is_told_in_all_its_digits():
    """Not rounded to a float, which would be refused too."""
    with pytest.raises(
        ConfigError, match=f"`run.seed`: must be at most {2**63 - 1}, .*got {2**63}"
    ):
        load_config(overrides=[f"run.seed={2**63}"])


def test_a_word_without_an_equals_sign_is_refused():
    """With the form that is wanted."""
    assert refusal("optim.lr") == "an override must read `section.name=value`; got 'optim.lr'."


def test_a_name_is_not_weighed_twice():
    """YAML alone would keep the last and say nothing."""
    assert "`a` is set twice" in refusal("reward.per_view={a: 1, a: 2}")


def test_an_unreadable_value_is_refused():
    """By its path, with the text got."""
    assert "`optim.betas` cannot be read from '[0.9'" in refusal("optim.betas=[0.9")


# -- errors: what would exhaust the machine ------------------------------------------------


def short_refusal(call, *given):
    """The one short line with which something is refused."""
    with pytest.raises(ConfigError) as caught:
        call(*given)
    told = str(caught.value)
    assert told.isprintable()
    assert len(told) < 700
    return told


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
        ("!!timestamp x", "not YAML as it should be"),
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

    assert words in short_refusal(read_value, text)
    assert time.perf_counter() - begun < 2.0


def test_a_bomb_is_refused(tmp_path):
    """Ten lines that stand for ten thousand million values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    assert "bomb.yaml': YAML's aliases" in short_refusal(read_settings, tmp_path / "bomb.yaml")


def test_files_in_other_encodings_are_refused_by_name(tmp_path):
    """And a byte-order mark is no part of them."""
    path = tmp_path / "settings.yaml"
    path.write_bytes("optim: {lr: 1}\n".encode("utf-8-sig"))
    assert read_settings(path) == {"optim": {"lr": 1}}
    for content in ("optim: {lr: 1}".encode("utf-16"), b"# caf\xe9\n", b"\0\0\0"):
        path.write_bytes(content)
        assert "settings.yaml' must be text in UTF-8" in short_refusal(read_settings, path)
    path.write_bytes(b"#" * 2**19)
    assert "at most 262144 bytes" in short_refusal(read_settings, path)
    path.write_bytes(b"- 1\n" * 1000)
    assert "must hold sections of settings; got [1, 1" in short_refusal(read_settings, path)


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
    short_refusal(lambda: load_config(overrides=[word]))

    assert time.perf_counter() - begun < 2.0
