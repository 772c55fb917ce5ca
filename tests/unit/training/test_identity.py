"""`identity`: base weights that changed under a path are not gone on with."""

import hashlib
import os
import shutil
from dataclasses import replace

import huggingface_hub.constants as hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from mvczigal_ref.config import from_dict, load_config, to_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import to_json
from mvczigal_ref.models.published import ADAPTER_FILES
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.recipes import recipe
from mvczigal_ref.training import trainer
from mvczigal_ref.training.identity import require_same_weights, weights_identity
from mvczigal_ref.training.met_prompts import require_same_prompts
from mvczigal_ref.training.places import absolute_paths, in_places, run_difference
from mvczigal_ref.training.run_folder import find_checkpoint
from mvczigal_ref.training.run_policy import load_policy
from tests.unit.training.test_state import PROMPTS, config, stepped


@pytest.fixture
def weights(tmp_path):
    """A folder of base weights."""
    folder = tmp_path / "weights"
    tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1)).save(folder)
    return folder


def change(folder):
    """Change one number of one file."""
    path = next(iter(sorted(folder.rglob("*.safetensors"))))
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1
    save_file(tensors, path)


# -- laws --------------------------------------------------------------------------------


def test_the_identity_is_the_content_wherever_it_lies(weights, tmp_path):
    """A copy is the same, one changed number is not."""
    one = weights_identity(config(model={"weights": str(weights)}))
    copy = shutil.copytree(weights, tmp_path / "copy")
    two = weights_identity(config(model={"weights": str(copy)}))
    change(copy)
    three = weights_identity(config(model={"weights": str(copy)}))

    assert one["sha256"] == two["sha256"] != three["sha256"]
    assert one["place"] == str(weights) != two["place"]


@pytest.mark.parametrize("place", [0, 2**26 + 70_001, -1])
def test_every_byte_of_a_large_file_counts(tmp_path, place):
    """The first, the last, and one beyond 64 MiB; the time of the file alone changes nothing."""
    path = tmp_path / "unet.safetensors"
    with path.open("wb") as file:
        file.truncate(2**26 + 2**20)
    chosen = config(model={"weights": str(tmp_path)})
    before = weights_identity(chosen)
    os.utime(path, ns=(0, 0))
    assert weights_identity(chosen) == before
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        file.write(b"1")

    assert weights_identity(chosen)["sha256"] != before["sha256"]


def test_a_published_model_is_known_by_its_parts(weights):
    """Folders by content, hub repositories by their cached revision or name."""
    parts = {"base": str(weights), "unet": str(weights), "vae": "a/b", "adapter": str(weights)}
    settings = {"model": {"weights": "lcm_sdxl", "sources": parts}}
    known = weights_identity(from_dict(settings))

    assert known["place"].count(str(weights)) == 3
    assert "vae: a/b" in known["sha256"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Put a file of a repository into the hub's cache, as of a commit; or empty it."""
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repository, file="model_index.json", commit="c0ffee" + 34 * "0"):
        place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.rmtree(place, ignore_errors=True)
        path = place / "snapshots" / commit / file
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        return commit

    return put


HUB = {
    "a flow's pipeline": ("tiny_flow_grpo", "model.weights=a/b", "model_index.json"),
    "a single-view one": ("sdxl_grpo", "model.weights=a/b", "model_index.json"),
    "a part": ("lcm_sdxl_simple", "model.sources={vae: a/b}", "config.json"),
    "the adapter": ("lcm_sdxl_simple", "model.sources={adapter: a/b}", ADAPTER_FILES[0]),
    "a file": ("sdxl_grpo", "model.sources={lora: a/b/x.safetensors}", "x.safetensors"),
}


@pytest.mark.parametrize(("name", "setting", "file"), HUB.values(), ids=HUB)
def test_a_hub_id_is_known_by_its_cached_commit(name, setting, file, cache):
    """By its name before anything is cached, which is no other one; another commit is."""
    chosen = load_config(recipe(name), overrides=[setting], training=False)
    before = weights_identity(chosen)
    one = cache("a/b", file)
    cached = weights_identity(chosen)
    cache("a/b", file, commit="f00d" + 36 * "0")
    other = weights_identity(chosen)

    assert "a/b" in before["sha256"]
    assert one in cached["sha256"]
    assert one not in other["sha256"]
    for then, now in ((before, cached), (cached, before)):
        require_same_weights(chosen, {"weights": then}, now)
    with pytest.raises(CheckpointError, match="have changed since"):
        require_same_weights(chosen, {"weights": cached}, other)


def test_a_commit_that_is_downloaded_while_loading_is_recorded(cache, tmp_path, monkeypatch):
    """A first start finds an empty cache, and the next one goes on."""
    chosen = config(model={"weights": "a/b"}, objects_per_iteration=4)
    build, commits = trainer.build_system, []

    def download(config, **options):
        commits.append(cache("a/b"))
        tiny = replace(config, model=replace(config.model, weights="tiny"))
        return build(tiny, **options)

    monkeypatch.setattr(trainer, "build_system", download)
    ran = []

    class StopError(Exception):
        """Ends a run where its state has been made."""

    def stop(self, stopped):
        ran.append(self._state.weights)
        raise StopError

    monkeypatch.setattr(trainer.TrainingLoop, "run", stop)
    with pytest.raises(StopError):
        trainer.train(
            chosen, tmp_path / "run", world=World(), held_out=["a red ball with a white nose"]
        )
    assert ran == [{"place": "a/b", "sha256": commits[0]}]


def test_a_relative_path_is_the_same_as_its_absolute_one(weights, tmp_path, monkeypatch):
    """From the same folder, by either; and from another, by the absolute one."""
    monkeypatch.chdir(tmp_path)
    relative = config(model={"weights": "weights"})
    absolute = config(model={"weights": str(weights)})
    assert absolute_paths(relative)["model.weights"] == str(weights)
    assert in_places(relative).model == absolute.model
    stepped(relative, tmp_path / "run")
    written = to_json(to_dict(in_places(relative)))  # as training does
    (tmp_path / "run" / "config.json").write_text(written)

    assert find_checkpoint(tmp_path / "run", absolute).iteration == 2
    monkeypatch.chdir("/")
    assert find_checkpoint(tmp_path / "run", absolute).iteration == 2


def test_weights_and_prompts_count_by_their_content_wherever_they_lie(weights, tmp_path):
    """A folder that was moved with them goes on; without a word of the content the place counts."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def placed(folder):
        weights, prompts = folder / "weights", folder / "prompts.txt"
        return config(model={"weights": str(weights)}, prompts=str(prompts))

    run, moved = tmp_path / "run", tmp_path / "moved"
    state = stepped(placed(tmp_path), run)
    (run / "config.json").write_text(to_json(to_dict(placed(tmp_path))))
    moved.mkdir()
    for name in ("weights", "prompts.txt"):
        (tmp_path / name).rename(moved / name)
    with pytest.raises(CheckpointError, match=r"`model\.weights` is '.*' there and '.*moved"):
        find_checkpoint(run, placed(moved))
    state.weights = weights_identity(placed(moved))
    state.save(run)
    found = find_checkpoint(run, placed(moved))

    assert found.iteration == 2
    require_same_weights(placed(moved), found.state)
    require_same_prompts(PROMPTS, placed(moved), found)
    change(moved / "weights")
    with pytest.raises(CheckpointError, match=r"`model\.weights` = "):
        require_same_weights(placed(moved), found.state)
    with pytest.raises(CheckpointError, match=r"`run\.seed` is 0 there and 5 here\. Choose"):
        find_checkpoint(run, replace(placed(moved), run=replace(placed(moved).run, seed=5)))


def test_parts_of_a_published_model_count_by_their_content(tmp_path):
    """As the weights do, of which they are parts."""
    here, there = (
        config(model={"weights": "sdxl", "rig": "paper", "sources": {"unet": str(tmp_path / name)}})
        for name in ("here", "there")
    )

    assert run_difference(there, here, {"weights": {"place": "a", "sha256": "b"}}) == ""
    assert "`model.sources` is " in run_difference(there, here, {"weights": None})


def test_a_path_with_two_dots_is_that_of_the_file(weights, tmp_path, monkeypatch):
    """As one writes it from another folder."""
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")

    assert absolute_paths(config(model={"weights": "../weights"}))["model.weights"] == str(weights)


def test_a_place_that_an_older_checkpoint_keeps_by_a_link_is_the_same(tmp_path):
    """Those kept the links of its folders, which are followed now."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "prompts.txt").write_text("a")
    linked = str(tmp_path / "link" / "prompts.txt")

    assert in_places(config(), {"run.prompts": linked}) == in_places(config(prompts=linked))


# -- errors ------------------------------------------------------------------------------


def test_other_weights_by_another_name_are_refused_before_a_run_is_planned(weights, tmp_path):
    """Else the refusal would come after the hours of the runs that are planned before it."""
    chosen = config(model={"weights": str(weights)})
    state = stepped(chosen, tmp_path / "run")
    state.weights = weights_identity(chosen)
    state.save(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(to_json(to_dict(chosen)))
    other = config(model={"weights": str(shutil.copytree(weights, tmp_path / "other"))})
    assert find_checkpoint(tmp_path / "run", other).iteration == 2
    change(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"are looked up in '.*other'"):
        find_checkpoint(tmp_path / "run", other)


def test_the_name_counts_where_an_older_checkpoint_knows_no_content(weights, tmp_path):
    """Those digested no file of a hub id; any other weights would pass for it."""
    nothing = {"place": str(tmp_path / "org" / "name"), "sha256": hashlib.sha256().hexdigest()}
    there = config(model={"weights": "org/name"})
    here = config(model={"weights": str(weights)})

    told = run_difference(there, here, {"weights": nothing})
    assert "`model.weights` is 'org/name' there" in told


def test_changed_weights_are_refused(weights, tmp_path):
    """On a resume and where the policy is rebuilt; without a word of the run they pass."""
    chosen = config(model={"weights": str(weights)})
    state = stepped(chosen, tmp_path / "run")
    state.weights = weights_identity(chosen)
    state.save(tmp_path / "run")
    checkpoint = find_checkpoint(tmp_path / "run", chosen)
    require_same_weights(chosen, checkpoint.state)
    load_policy(tmp_path / "run", device=torch.device("cpu"))

    change(weights)
    for use in (
        lambda: require_same_weights(chosen, checkpoint.state),
        lambda: load_policy(tmp_path / "run", device=torch.device("cpu")),
    ):
        with pytest.raises(CheckpointError, match=r"`model\.weights` = .* have changed since"):
            use()
    elsewhere = replace(chosen, model=replace(chosen.model, weights=str(tmp_path / "other")))
    with pytest.raises(CheckpointError, match=r"were in '.*weights' and are looked up in '.*other"):
        require_same_weights(elsewhere, checkpoint.state)
    require_same_weights(chosen, {})
