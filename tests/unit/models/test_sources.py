"""`models.sources`: the cache first, the hub only where it answers."""

import re

import pytest
import torch

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models import reach, sources
from mvczigal_ref.models.hub import load_sdxl_components
from mvczigal_ref.models.published import SdxlSources
from mvczigal_ref.models.sources import cache_first, find_file, locate_network


class Hub:
    """A cache and a hub with some files, in place of the hub's client."""

    def __init__(self, folder, *, cached=(), online=(), answers=True):
        self.asked, self.probes = [], 0
        self._folder, self._cached, self._online = folder, set(cached), set(online)
        self._answers = answers

    def cached_file(self, repo, name, *, revision, cache_dir, local_files_only):
        """Find a file as `transformers.utils.cached_file` does."""
        if not local_files_only:
            self.asked.append(name)
        held = self._cached if local_files_only else self._online
        if name not in held:
            raise OSError(f"{repo} has no {name}")
        return str(self._folder / ("cache" if local_files_only else "hub") / name)

    def hub_answers(self):
        """Count a probe."""
        self.probes += 1
        return self._answers


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Give a hub of some files."""

    def make(**options):
        made = Hub(tmp_path, **options)
        monkeypatch.setattr(sources, "cached_file", made.cached_file)
        monkeypatch.setattr(reach, "hub_answers", made.hub_answers)
        return made

    return make


def test_a_cached_file_needs_no_network(hub):
    """Nor a probe."""
    there = hub(cached=["a.json"], answers=False)
    path, reason = find_file("user/model", "a.json", SdxlSources())

    assert (path.parent.name, reason) == ("cache", "")
    assert (there.asked, there.probes) == ([], 0)


@pytest.mark.parametrize(
    ("answers", "local", "asked", "reason"),
    [
        (True, False, ["a.json"], "user/model has no a.json"),
        (False, False, [], "the cache holds no a.json"),
        (True, True, [], "the cache holds no a.json"),
    ],
)
def test_the_hub_is_asked_only_where_it_answers_and_may_be(hub, answers, local, asked, reason):
    """And only for what the cache lacks."""
    there = hub(answers=answers)

    assert find_file("user/model", "a.json", SdxlSources(local_files_only=local)) == (None, reason)
    assert there.asked == asked


@pytest.mark.parametrize("source", ["no/such/folder", "{folder}"])
def test_a_folder_needs_no_probe(hub, tmp_path, source):
    """There is nothing to ask the hub for."""
    there = hub()
    path, _ = find_file(source.format(folder=tmp_path), "a.json", SdxlSources())

    assert path is None
    assert (there.asked, there.probes) == ([], 0)


def test_settings_and_tensors_come_from_one_place(hub):
    """Where the cache has settings alone, both are of the hub: of one revision."""
    name = "diffusion_pytorch_model.safetensors"
    hub(cached=["config.json"], online=["config.json", name])
    found = cache_first(
        lambda places: locate_network("unet", places, dtype=torch.float32), SdxlSources()
    )

    assert found.folder.name == "hub"


def test_without_a_network_one_message_names_every_file(hub):
    """With the size and the command of each, after one probe's worth of waiting."""
    there = hub(answers=False)
    with pytest.raises(CheckpointError) as caught:
        load_sdxl_components()
    (line,) = str(caught.value).splitlines()

    assert line.startswith("the Hugging Face hub does not answer")
    assert ", 14.9 GB in all: " in line
    assert len(re.findall(r"`hf download [^`]+` \(about [^)]+\)[,.]", line)) == 7
    assert there.asked == []
