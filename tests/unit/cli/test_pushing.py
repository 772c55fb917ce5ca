"""`pushing`: the folder of a dry run, and what the hub is handed; errors before work."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image

from mvczigal_ref.cli import main, pushing
from mvczigal_ref.config import load_config
from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.digits import with_error
from mvczigal_ref.models import policy_files
from mvczigal_ref.pipeline import TextToMultiviewPipeline
from mvczigal_ref.training.trainer import train

SETTINGS = [
    "run.iterations=1", "run.objects_per_iteration=2", "run.objects_per_slice=1",
    "run.evaluation_noises=1", "run.device=cpu", "sampler.num_steps=2", "model.lora_rank=2",
    "model.lora_alpha=2",
]  # fmt: skip
HELD_OUT = ["a red ball with a white nose", "a blue ball with a white nose"]
REPO = "someone/tiny-run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train one iteration of the shipped weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(load_config(overrides=SETTINGS), folder, world=World(), held_out=HELD_OUT)
    return folder


@pytest.fixture(scope="module")
def dry(run, tmp_path_factory):
    """Write what would be pushed."""
    folder = tmp_path_factory.mktemp("dry") / "policy"
    assert main(["push", str(run), REPO, "--dry-run", str(folder), "--license", "apache-2.0"]) == 0
    return folder


def snippet(folder):
    """Take the first block of Python out of a card."""
    text = (folder / "README.md").read_text("utf-8")
    return text.partition("```python\n")[2].partition("```")[0]


# -- oracle ------------------------------------------------------------------------------


def test_the_card_says_what_the_run_gained(run, dry):
    """As the hub's client reads it: gain with its standard error, licence, no base "tiny"."""
    card = ModelCard.load(dry / "README.md")
    gains = json.loads((run / "summary.json").read_text("utf-8"))

    assert card.data.base_model is None
    assert (card.data.license, card.data.model_name) == ("apache-2.0", "tiny-run")
    assert [one.metric_value for one in card.data.eval_results] == [
        pytest.approx(gains[name]["gain"], abs=1e-12) for name in ("per_view", "joint")
    ]
    for one, name in zip(card.data.eval_results, ("per_view", "joint"), strict=True):
        gain, error = with_error(gains[name]["gain"], gains[name]["standard_error"], sign=True)
        assert f"gain {gain} ± {error} dB" in one.metric_name
        assert f"gain {gain} ± {error} dB" in card.text
    assert "base_model: tiny" not in str(card)


def test_the_card_s_snippet_runs(dry, monkeypatch):
    """Word for word, with the download answered by the folder; the LoRA acts."""
    asked = []

    def download(repo):
        asked.append(repo)
        return str(dry)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    names = {}
    exec(snippet(dry), names)

    assert asked == [REPO]
    assert isinstance(names["pipeline"], TextToMultiviewPipeline)
    assert names["pipeline"].get_list_adapters() == {"unet": ["default"]}
    assert [len(views) for views in names["images"]] == [6]
    assert "num_inference_steps=2" in snippet(dry)


def test_the_sheet_lies_beside_the_card(dry):
    """Each prompt before and after, six views of at least 96 px."""
    card = (dry / "README.md").read_text("utf-8")
    with Image.open(dry / "sheet.png") as sheet:
        width, height = sheet.size

    assert "![Sheet](sheet.png)" in card
    assert width > 6 * 96
    assert height > 4 * 96


def test_the_hub_is_handed_the_same_folder(run, dry, monkeypatch, capsys):
    """And is asked for a private repository where that was said."""
    calls = []

    class Api:
        def repo_info(self, repo):
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

        def create_repo(self, repo, *, private, exist_ok):
            calls.append((repo, private, exist_ok))
            return f"hub/{repo}"

        def upload_folder(self, *, repo_id, folder_path):
            calls.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    assert main(["push", str(run), REPO, "--private"]) == 0

    assert calls == [(REPO, True, True), (REPO, {path.name for path in dry.iterdir()})]
    assert capsys.readouterr().out == f"hub/{REPO}\n"


def test_a_public_repository_is_never_taken_for_a_private_one(run, monkeypatch, capsys):
    """The hub would leave it public, so it is asked before anything is loaded."""
    calls = []

    class Api:
        def __init__(self, private):
            self.private = private

        def repo_info(self, repo):
            return SimpleNamespace(private=self.private)

        def create_repo(self, repo, *, private, exist_ok):
            calls.append(private)
            return repo

        def upload_folder(self, *, repo_id, folder_path):
            calls.append(repo_id)

    monkeypatch.setattr(pushing, "_write", lambda command, folder: folder)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Api(private=False))
    assert main(["push", str(run), REPO, "--private"]) == 2
    assert f"{REPO!r} is there and public" in capsys.readouterr().err
    assert calls == []
    assert main(["push", str(run), REPO]) == 0
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Api(private=True))
    assert main(["push", str(run), REPO, "--private"]) == 0
    assert calls == [False, REPO, True, REPO]


def test_a_dry_run_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    """The folder has its name when the sheet is in it, and not before."""
    seen = []

    def fail(path, image):
        seen.append((tmp_path / "policy").exists())
        raise ValueError("no picture")

    monkeypatch.setattr("mvczigal_ref.pictures.save_png", fail)
    with pytest.raises(ValueError, match="no picture"):
        main(["push", str(run), REPO, "--dry-run", str(tmp_path / "policy")])

    assert seen == [False]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_clears_up_after_one_that_was_killed(run, tmp_path, monkeypatch, capsys):
    """As every writer of a policy's folder does; what it writes is on the disk first."""
    folder, left, synced = tmp_path / "above" / "policy", ".policy.1.tmp", []
    (folder.parent / left).mkdir(parents=True)
    monkeypatch.setattr(pushing, "_write", lambda command, place: place.mkdir())
    monkeypatch.setattr(policy_files, "sync_files", lambda place: synced.append(folder.exists()))
    assert main(["push", str(run), REPO, "--dry-run", str(folder)]) == 0

    assert capsys.readouterr().out == f"{folder}\n"
    assert list(folder.parent.iterdir()) == [folder]
    assert synced == [False]


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "a b/c", "a/b--c..d"])
def test_a_name_that_is_no_repository_is_refused(repo, tmp_path, capsys):
    """Before the run is read."""
    assert main(["push", str(tmp_path), repo]) == 2
    assert f"must be named `user/name`; got {repo!r}" in capsys.readouterr().err


def test_nothing_is_written_where_it_cannot_be_pushed(run, tmp_path, monkeypatch, capsys):
    """A folder that is there, a folder that is no run, nobody logged in."""
    monkeypatch.setattr(pushing, "_write", None)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for argv, message in (
        ([str(run), REPO, "--dry-run", str(tmp_path)], "`--dry-run` must not exist yet"),
        ([str(tmp_path), REPO], "is no run folder"),
        ([str(run), REPO], "nobody is logged in to the hub. Run `hf auth login`"),
    ):
        assert main(["push", *argv]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
