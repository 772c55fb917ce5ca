"""`config`, `settings`, `settings_file`: what is accepted, what is refused, and how."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mvczigal_ref
from mvczigal_ref.config import (
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    fingerprint,
    fingerprinted,
    from_dict,
    load_config,
    scorer_weights,
    to_dict,
)
from mvczigal_ref.config.reads import is_read
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.system.networks import weights_folder

PACKAGE = Path(mvczigal_ref.__file__).parent
# A value other than the default for every setting, all valid together.
OTHER = {
    "recipe": "other",
    "model": {
        "weights": "folder",
        "rig": "paper",
        "image_size": 64,
        "finetune": "full",
        "lora_rank": 4,
        "lora_alpha": 2.0,
        "dtype": "bf16",
        "gradient_checkpointing": True,
        "storage_dtype": "fp16",
        "network": "flow",
        "sources": {"vae": "folder"},
        "azimuths": [0.0, -90.0],
        "elevation": 30.0,
        "storage_device": "cpu",
        "offload_frozen": True,
        "views_per_decode": 3,
        "channels_last": True,
        "compile": "inductor",
        "tf32": True,
    },
    "sampler": {
        "kind": "ddim",
        "prediction_type": "epsilon",
        "num_steps": 8,
        "evaluation_steps": 20,
        "guidance_scale": 3.0,
        "negative_prompt": "ugly, blurry",
        "eta": 0.5,
        "snr_shift": 8.0,
        "camera_scale": 0.5,
    },
    "flow": {
        "kernel": "cps",
        "noise_scale": 0.9,
        "shift": 3.0,
        "image_is_denoised": True,
        "text_length": 128,
    },
    "rollout": {
        "kind": "tree",
        "members": 6,
        "shared_noise": True,
        "window": "decaying",
        "window_size": 3,
        "window_start": 1,
        "window_last_start": 2,
        "window_spacing": 2,
        "window_stride": 2,
        "window_interval": 10,
        "window_decay": 0.1,
        "window_decay_after": 3,
        "window_end": "restart",
        "split_steps": [0, 2],
        "split_width": 3,
        "trunks": 4,
        "strides": [1, 2],
        "fine_steps": 1,
        "nodes_per_call": 2,
    },
    "condition": {
        "enhancer": "chat",
        "num_captions": 2,
        "file": "captions.jsonl",
        "model": "qwen",
        "url": "http://127.0.0.1:8000/v1",
        "api_key_env": "KEY",
        "requests_at_once": 3,
        "instructions": ["style"],
        "weight": 0.5,
    },
    "forward": {
        "mix": 0.1,
        "levels": 3,
        "old_decay_rate": 0.01,
        "old_decay_largest": 0.9,
        "old_decay_unit": "optimizer_step",
    },
    "zigzag": {
        "steps": 2,
        "rounds": 2,
        "inversion_guidance_scale": 2.0,
        "inversion_camera_scale": 0.0,
    },
    "reward": {
        "per_view": {"clip_score": -0.5, "pickscore": 1.0},
        "joint": "hyperscore",
        "combine": "advantages",
        "weights": {"pickscore": "folder"},
        "tokenizers": {"pickscore": "openai/clip"},
        "url": {"hyperscore": "http://127.0.0.1:8763"},
        "device": "cpu",
        "dtype": "bf16",
        "images_per_chunk": 4,
        "timeout": 3.0,
        "wait": 0.0,
        "api_key_env": "KEY",
        "requests_at_once": 3,
        "cache": "scores",
    },
    "guard": {
        "every": 5,
        "per_view": ["hpsv2"],
        "joint": ["world.joint"],
        "diversity": True,
        "noises": 3,
        "margin": 0.5,
        "unit": "reward",
        "fallen": "all",
        "action": "return",
    },
    "advantage": {
        "mode": "weighted_sum",
        "joint_weight": 0.1,
        "shuffle": True,
        "spread": "batch",
        "ddof": 1,
        "delta": 1e-3,
        "clip": 2.0,
        "fusion_inverse_temperature": 0.1,
    },
    "objective": {
        "pairing": "standard",
        "clip_range": 1e-4,
        "clip": False,
        "temperature": 0.5,
        "reduction": "sum",
        "train_last_action": True,
        "kind": "preference",
        "preference_scale": 2.0,
        "kl_weight": 0.04,
        "kl_form": "without_step_length",
        "step_weight": "noise",
        "train_share": 0.6,
    },
    "constraint": {
        "step_size_violated": 0.2,
        "step_size_satisfied": 0.2,
        "multiplier_init": 1.0,
        "multiplier_max": 2.0,
        "threshold_init": 3.5,
        "threshold_objects": 8,
        "threshold_decay": 1.0,
        "order": "multiplier_first",
    },
    "optim": {
        "lr": 1e-4,
        "betas": [0.8, 0.99],
        "eps": 1e-6,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "loss_scale": 1024.0,
        "loss_scale_growth_interval": 100,
        "epochs_per_iteration": 2,
        "optimizer_steps_per_epoch": 1,
        "steps_per_microbatch": 2,
        "warmup_iterations": 5,
        "decay_iterations": 9,
        "step_per_decision": True,
        "average_decay": 0.5,
        "average_every": 2,
    },
    "run": {
        "iterations": 10,
        "objects_per_iteration": 48,
        "objects_per_slice": 4,
        "replay_objects_per_slice": 2,
        "prompts": "prompts.txt",
        "held_out": "held_out.txt",
        "seed": 7,
        "checkpoint_every": 2,
        "keep_checkpoints": 1,
        "evaluate_every": 5,
        "evaluation_noises": 8,
        "trackers": ["tensorboard"],
        "device": "cpu",
    },
}
FREE = {
    ("run", name)
    for name in [
        "iterations",
        "checkpoint_every",
        "keep_checkpoints",
        "held_out",
        "evaluate_every",
        "evaluation_noises",
        "trackers",
        "device",
    ]
} | {("reward", name) for name in ["url", "device", "timeout", "wait", "api_key_env"]}
FREE |= {("reward", name) for name in ["requests_at_once", "cache"]}
FREE |= {("condition", name) for name in ["url", "api_key_env", "requests_at_once"]}
FREE.add(("sampler", "evaluation_steps"))
FREE.add(("model", "offload_frozen"))
SETTINGS_FILES = ("config/system", "config/method", "config/run")
SECTIONS = dataclasses.fields(TrainConfig)[1:]
SETTINGS = [(s, n) for s, values in OTHER.items() if s != "recipe" for n in values]


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


# -- laws --------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("scorers", "weights"),
    [("a", {"a": 1.0}), ({"a": 2.0, "b": -1.0}, {"a": 2.0, "b": -1.0})],
)
def test_a_bare_name_has_the_weight_1(scorers, weights):
    """And others the weight that is written."""
    assert scorer_weights(scorers) == weights


@given(st.floats(1e-37, 1e3))
def test_floats_come_back_bit_for_bit(value):
    """JSON text loses nothing."""
    config = from_dict(json.loads(json.dumps({"optim": {"lr": value}})))

    assert config.optim.lr == value


@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize(("section", "name"), SETTINGS)
def test_the_fingerprint_reads_what_a_number_depends_on_and_nothing_else(section, name):
    """Length, evaluation, saving, trackers and device may differ in a continued run."""
    base = from_dict({**OTHER, "constraint": {**OTHER["constraint"], "multiplier_max": 4.0}})
    values = to_dict(base)
    values[section][name] = to_dict(TrainConfig())[section][name]
    other = from_dict(values)
    same = fingerprint(other) == fingerprint(base)
    unread = not is_read(base, f"{section}.{name}")

    assert same is ((section, name) in FREE or unread)
    assert (name in fingerprinted(base)[section]) is ((section, name) not in FREE)


def test_the_recipes_name_is_not_in_the_fingerprint():
    """A run may be continued from its own configuration file."""
    assert fingerprint(TrainConfig(recipe="a")) == fingerprint(TrainConfig(recipe="b"))


@pytest.mark.parametrize("kind", [f.default_factory for f in SECTIONS] + [TrainConfig])
def test_settings_are_frozen_and_take_keywords_alone(kind):
    """Nobody changes a setting half-way."""
    field = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), field, None)
    with pytest.raises(ValueError, match="positional"):
        kind("tiny")


def test_every_setting_says_its_meaning():
    """The text that `--help` shows."""
    modules = [ast.parse((PACKAGE / f"{name}.py").read_text()) for name in SETTINGS_FILES]
    bodies = [node for module in modules for node in module.body]
    for section in (node for node in bodies if isinstance(node, ast.ClassDef)):
        fields = [node for node in section.body if isinstance(node, ast.AnnAssign)]
        assert fields
        for field in fields:
            text = section.body[section.body.index(field) + 1]
            assert isinstance(text, ast.Expr)
            assert len(text.value.value) > 10


def test_every_setting_is_read():
    """A setting that nothing reads is a bug."""
    read = {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if "config" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }

    assert {name for _, name in SETTINGS} <= read


def test_the_shipped_weights_are_found_by_name_and_others_by_path():
    """`~` is the home folder."""
    assert weights_folder("tiny").name == "tiny_world"
    assert weights_folder("some/folder") == Path("some/folder")
    assert weights_folder("~/w") == Path.home() / "w"


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
        ("optim: {lr: [", "cannot read settings from"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, complaint):
    """With what is wrong with it."""
    path = tmp_path / "settings.yaml"
    path.write_text(text)

    assert complaint in refusal(file=path)


def test_a_missing_file_is_refused(tmp_path):
    """As a setting, not with a traceback from the file system."""
    assert "cannot read settings from" in refusal(file=tmp_path / "absent.yaml")


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


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["zigzag.steps=5"], "`zigzag.steps` must be at most `sampler.num_steps` = 4; got 5"),
        (["sampler.num_steps=1"], "`sampler.num_steps` must be at least 2"),
        (["constraint.multiplier_init=6"], "`constraint.multiplier_init` must be at most"),
        (["run.objects_per_slice=7"], "The nearest valid value is 6"),
        (["guard.every=2"], "`guard.every` needs something to watch"),
        (
            ["guard.every=2", "guard.diversity=true", "guard.noises=1"],
            "`guard.noises` must be at least 2",
        ),
        (["run.replay_objects_per_slice=7"], "`run.replay_objects_per_slice` must divide"),
        (
            [
                "advantage.shuffle=true",
                "run.objects_per_iteration=1",
                "run.objects_per_slice=1",
            ],
            "`run.objects_per_iteration` must be at least 2",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words, complaint):
    """Where each alone would be valid."""
    assert complaint in refusal(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["zigzag.steps=4"],
        ["zigzag.steps=0"],
        ["sampler.num_steps=1", "objective.train_last_action=true"],
        ["sampler.num_steps=1", "sampler.kind=ddim", "objective.train_last_action=true"],
        ["constraint.multiplier_init=5"],
        ["run.replay_objects_per_slice=24"],
        ["guard.every=2", "guard.diversity=true"],
        ["guard.every=2", "guard.joint=[hyperscore]", "guard.noises=1"],
        ["guard.every=2", "advantage.mode=per_view"],
        ["advantage.mode=weighted_sum", "advantage.joint_weight=1"],
        ["constraint.threshold_decay=0"],
    ],
)
def test_the_ends_of_a_range_are_valid(words):
    """Full-step zigzag, a single trained action, a fixed threshold."""
    load_config(overrides=words)


def test_a_word_without_an_equals_sign_is_refused():
    """With the form that is wanted."""
    assert refusal("optim.lr") == "an override must read `section.name=value`; got 'optim.lr'."


def test_a_name_is_not_weighed_twice():
    """YAML alone would keep the last and say nothing."""
    assert "`a` is set twice" in refusal("reward.per_view={a: 1, a: 2}")


def test_an_unreadable_value_is_refused():
    """By its path, with the text got."""
    assert "`optim.betas` cannot be read from '[0.9'" in refusal("optim.betas=[0.9")


def test_unknown_keywords_are_refused_in_code():
    """Not accepted and dropped."""
    with pytest.raises(ValueError, match="rank"):
        ModelConfig(rank=4)
    with pytest.raises(ValueError, match="greater"):
        RunConfig(iterations=0)
