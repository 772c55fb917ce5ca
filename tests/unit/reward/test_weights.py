"""`reward.weights`: laws, errors."""

import pytest
import torch
from torch import nn

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.models.weight_files import read_json
from mvczigal_ref.reward import weights
from mvczigal_ref.reward.weights import (
    Published,
    build_network,
    load_tokenizer,
    locate,
)

PUBLISHED = Published(repo="group/name", files=("model.pt", "old.bin"), size="3 GB")


# -- laws --------------------------------------------------------------------------------


def test_a_file_is_itself_and_a_folder_is_searched_in_order(tmp_path):
    """A converted file first, then the published names; companions lie beside."""
    for name in ("old.bin", "model.pt", "model.safetensors", "config.json"):
        (tmp_path / name).write_text(name)
        if name != "config.json":
            assert locate(tmp_path, PUBLISHED, local_files_only=True).name == name
    assert locate(tmp_path / "old.bin", PUBLISHED, local_files_only=True).name == "old.bin"
    for source in (tmp_path, tmp_path / "old.bin"):
        beside = locate(source, PUBLISHED, local_files_only=True, files=("config.json",))
        assert beside == tmp_path / "config.json"


@pytest.mark.parametrize("local_files_only", [True, False])
def test_the_hub_is_asked_as_it_was_allowed(tmp_path, monkeypatch, local_files_only):
    """Under the id, with the caller's leave to download or without."""
    asked = []
    (tmp_path / "model.pt").write_text("weights")

    def cached(repo, name, *, local_files_only):
        asked.append((repo, name, local_files_only))
        if name == "model.pt":
            return str(tmp_path / name)
        raise OSError("not there")

    monkeypatch.setattr(weights, "cached_file", cached)
    found = locate("group/name", PUBLISHED, local_files_only=local_files_only)

    assert found == tmp_path / "model.pt"
    assert asked == [
        ("group/name", "model.safetensors", local_files_only),
        ("group/name", "old.safetensors", local_files_only),
        ("group/name", "model.pt", local_files_only),
    ]


def test_a_network_is_built_from_tensors_alone():
    """Cast, frozen, its indices counted; the global generator stays where it was."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 1)
            self.position_ids = nn.Buffer(torch.arange(3).expand(1, -1), persistent=False)

    tensors = {"inner.weight": torch.ones(1, 2, dtype=torch.float16), "inner.bias": torch.ones(1)}
    state = torch.random.get_rng_state()

    network = build_network(
        Network,
        tensors | {"old.position_ids": torch.zeros(9)},
        source="file",
        dtype=torch.bfloat16,
    )

    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.inner.weight.dtype == torch.bfloat16
    assert network.inner.weight.tolist() == [[1.0, 1.0]]
    assert network.position_ids.tolist() == [[0, 1, 2]]
    assert not network.training
    assert not network.inner.weight.requires_grad


def test_names_are_turned_both_ways():
    """Held against the file by the file's names, loaded by the network's."""
    settings = {
        "source": "file",
        "dtype": torch.float32,
        "to_published": lambda state: {f"p.{name}": value for name, value in state.items()},
        "from_published": lambda held: {name[2:]: value for name, value in held.items()},
    }
    tensors = {"p.weight": torch.full((1, 1), 5.0), "p.bias": torch.zeros(1)}

    network = build_network(lambda: nn.Linear(1, 1), tensors, **settings)

    assert network.weight.item() == 5.0
    del tensors["p.bias"]
    with pytest.raises(CheckpointError, match=r"`file` must hold exactly .*: missing p\.bias\."):
        build_network(lambda: nn.Linear(1, 1), tensors, **settings)


# -- errors ------------------------------------------------------------------------------


def test_an_absent_file_is_told_how_to_get(tmp_path):
    """What, from where, how large, and what else to set."""
    with pytest.raises(CheckpointError) as caught:
        locate(tmp_path, PUBLISHED, local_files_only=True)
    assert str(caught.value) == (
        f"`source` must be a folder or hub id that holds model.pt or old.bin; got "
        f"'{tmp_path}'. Download it with `hf download group/name model.pt` (3 GB), or allow it "
        "with `local_files_only=False`."
    )
    with pytest.raises(CheckpointError, match=r"`hf download group/name a.json`\.$"):
        locate(tmp_path, PUBLISHED, local_files_only=False, files=("a.json",))


def test_a_tokenizer_must_be_there_and_fit(tmp_path):
    """Its ids are rows of the embedding."""
    tokenizer = tiny_tokenizer()
    published = Published(repo="group/words", files=("tokenizer.json",), size="1 MB")
    settings = {"published": published, "local_files_only": True}
    kind, size = type(tokenizer), len(tokenizer)

    with pytest.raises(CheckpointError, match=r"holds tokenizer.json; got .*group/words"):
        load_tokenizer(kind, tmp_path, vocab_size=size, **settings)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(kind, tmp_path, vocab_size=size, **settings)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(CheckpointError, match=rf"at most the network's {size - 1} tokens; got"):
        load_tokenizer(kind, tmp_path, vocab_size=size - 1, **settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "must be readable JSON; it is text with a fault"), ("[1]", "a JSON object; got list")],
)
def test_a_broken_configuration_is_refused(tmp_path, content, message):
    """By its path."""
    path = tmp_path / "config.json"
    path.write_text(content)

    with pytest.raises(CheckpointError, match=message):
        read_json(path)


def test_rejects_a_type_that_scorers_do_not_run_in():
    """Half precision overflows in some of these networks."""
    with pytest.raises(ValueError, match=r"`dtype` must be torch.float32 or torch.bfloat16; got"):
        build_network(lambda: nn.Linear(1, 1), {}, source="file", dtype=torch.float16)
