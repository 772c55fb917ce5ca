"""`cli.policy_settings`: what a run's own settings may not do without the user's word."""

import pytest

from mvczigal_ref.cli.policy_settings import policy_config, recipe_config, require_folder
from mvczigal_ref.config import load_config, to_dict
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.files import to_json

ASKS = (
    "reward.per_view=chat_judge",
    "reward.url={chat_judge: http://elsewhere.example/v1}",
    "reward.weights={chat_judge: judge}",
    "reward.api_key_env=SECRET",
)


@pytest.fixture
def run(tmp_path):
    """A run folder, as downloaded, whose settings send a key to a judge."""
    config = to_dict(load_config(overrides=ASKS))
    (tmp_path / "config.json").write_text(to_json(config), "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("word", "key"), [("reward.api_key_env=SECRET", "SECRET"), ("reward.api_key_env=null", None)]
)
def test_a_key_that_is_typed_is_sent(run, word, key):
    """Or none, where that is typed."""
    assert policy_config(run, None, None, [word], also=("reward.",)).reward.api_key_env == key


@pytest.mark.parametrize("name", ["tiny", "lcm_sdxl_simple", "tiny_flow_grpo"])
def test_a_policy_is_sampled_in_one_step(name):
    """Which training would refuse: it leaves no action to learn."""
    words = ["sampler.num_steps=1", "sampler.evaluation_steps=0"]
    config = policy_config(None, None, name, words)
    assert config.sampler.num_steps == 1
    assert config.sampler.kind == recipe_config(name, file=None, words=[]).sampler.kind


@pytest.mark.parametrize("word", ["sampler.num_steps=51", "sampler.num_steps=0", "zigzag.steps=2"])
def test_a_grid_that_cannot_be_is_refused_where_nothing_is_trained(word):
    """By its own rule."""
    with pytest.raises(ConfigError, match=rf"`{word.partition('=')[0]}`"):
        policy_config(None, None, "tiny", ["sampler.num_steps=1", word], also=("zigzag.",))


def test_a_command_that_scores_nothing_needs_no_word(run):
    """It asks no service."""
    assert policy_config(run, None, None, []).reward.api_key_env == "SECRET"


def test_a_key_that_only_the_run_names_is_refused(run):
    """It could be any secret of the environment, and the service anyone's."""
    with pytest.raises(ConfigError, match=r"sent only where you type its name: add"):
        policy_config(run, None, None, ["reward.timeout=3"], also=("reward.",))


@pytest.mark.parametrize(
    ("section", "name", "settings"),
    [
        (
            "reward", "tiny",
            {"per_view": "chat_judge", "url": {"chat_judge": "http://elsewhere.example/v1"},
             "weights": {"chat_judge": "judge"}},
        ),
        (
            "condition", "tiny_mv_grpo_vlm",
            {"enhancer": "chat", "url": "http://elsewhere.example/v1", "model": "m",
             "instructions": []},
        ),
    ],
)  # fmt: skip
def test_a_key_that_only_a_settings_file_names_is_refused(tmp_path, section, name, settings):
    """It may have been downloaded, as a run may; typed, or none, it is taken."""
    file = tmp_path / "settings.json"
    file.write_text(to_json({section: {**settings, "api_key_env": "SECRET"}}), "utf-8")
    with pytest.raises(ConfigError, match=r"settings of the file '.*only where you type its name"):
        recipe_config(name, file=file, words=[])
    for word, key in (("SECRET", "SECRET"), ("null", None)):
        words = [f"{section}.api_key_env={word}"]
        config = recipe_config(name, file=file, words=words)
        assert getattr(config, section).api_key_env == key


@pytest.mark.parametrize("run", [False, True])
def test_a_folder_that_takes_no_files_is_refused_before_work(run, tmp_path, monkeypatch):
    """It, or the one in which it is to be made."""
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    for folder in (tmp_path, tmp_path / "new" / "run"):
        with pytest.raises(ConfigError, match=rf"be written; '{tmp_path}' takes no files"):
            require_folder(folder, run=run)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"must be a folder; got the file '.*/file'"):
        require_folder(tmp_path / "file" / "run", run=run)
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"must be a folder; got the file '.*link'"):
        require_folder(tmp_path / "link", run=run)
