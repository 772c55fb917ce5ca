"""`tokenizer_files`: oracle, laws, errors."""

import json
import shutil
from types import SimpleNamespace

import pytest
from transformers import CLIPTokenizer

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models import tokenizer_files
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.models.tokenizer_files import (
    KNOWN_IDS,
    fit_tokenizers,
    read_tokenizer,
    text_length,
)
from tests.unit.models.published import _tokenizer as write_old_layout

ENCODER = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=16, vocab_size=571))


@pytest.fixture
def folder(tmp_path):
    """A tokenizer in the layout of the published ones: words and merges in a file each."""
    tiny_tokenizer().save_pretrained(tmp_path / "new")
    write_old_layout(tmp_path / "new", tmp_path / "old")
    return tmp_path / "old"


# -- oracle --------------------------------------------------------------------------------


def test_a_published_size_must_split_as_the_published(folder, monkeypatch):
    """The same files pass where the ids are theirs, and are refused where they are others."""
    words = read_tokenizer(CLIPTokenizer, folder)
    ids = tuple(words("A cube").input_ids)
    known = {("CLIPTokenizer", len(words)): ("A cube", ids)}
    monkeypatch.setattr(tokenizer_files, "KNOWN_IDS", known)
    assert read_tokenizer(CLIPTokenizer, folder)("A cube").input_ids == list(ids)
    merges = (folder / "merges.txt").read_text("utf-8").splitlines()
    (folder / "merges.txt").write_text("\n".join(merges[:2]) + "\n")
    with pytest.raises(CheckpointError, match="must split words as the published CLIPTokenizer"):
        read_tokenizer(CLIPTokenizer, folder)


def test_known_ids_are_the_published():
    """Beginning and end of text are the vocabulary's last two in CLIP; words are as all know."""
    text, ids = KNOWN_IDS["CLIPTokenizer", 49408]
    assert text.endswith("A photo of a cat")
    assert ids[0] == 49406
    assert ids[-7:] == (256, 320, 1125, 539, 320, 2368, 49407)


# -- laws ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "length"), [(None, 16), (77, 16), (12, 12), (10**30, 16)])
def test_prompts_are_padded_within_the_encoder(folder, stored, length):
    """Without a length in the files, to the encoder's own."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings.pop("model_max_length", None)
    path.write_text(json.dumps(settings | ({} if stored is None else {"model_max_length": stored})))
    assert text_length(read_tokenizer(CLIPTokenizer, folder), ENCODER) == length


def test_tokenizers_are_given_the_length_of_their_encoders(folder):
    """One without a bound would be cut without a word."""
    words = read_tokenizer(CLIPTokenizer, folder)
    words.model_max_length = float("inf")
    fit_tokenizers({"tokenizer": (words, ENCODER)})
    assert words.model_max_length == 16


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\n", "<html>", ""])
@pytest.mark.parametrize(
    "name", ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
)
def test_a_broken_file_is_named(folder, name, content):
    """With what it is."""
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name}` must .*(pointer|page|empty)"):
        read_tokenizer(CLIPTokenizer, folder)


@pytest.mark.parametrize("content", ['{"a": "b"}', '{"a": -1}', "{}"])
def test_words_that_are_none(folder, content):
    """A vocabulary of another kind is refused by its folder."""
    (folder / "vocab.json").write_text(content)
    with pytest.raises(CheckpointError, match="must hold a whole CLIPTokenizer"):
        read_tokenizer(CLIPTokenizer, folder)


@pytest.mark.parametrize("change", ["rotated", "doubled", "no merges"])
def test_words_that_are_numbered_otherwise(folder, change):
    """At any size: CLIP's ids follow from its merges."""
    words = json.loads((folder / "vocab.json").read_text("utf-8"))
    if change == "no merges":
        (folder / "merges.txt").write_text("#version: 0.2\n")
    elif change == "rotated":
        ids = list(words.values())
        words = dict(zip(words, ids[1:] + ids[:1], strict=True))
    else:
        words = {word: place // 2 for word, place in words.items()}
    (folder / "vocab.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match=r"its vocabulary and merges differ in [0-9]+ tokens"):
        read_tokenizer(CLIPTokenizer, folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_server_s_answer_is_no_settings(folder, name):
    """It is JSON, too."""
    (folder / name).write_text('{"error": "Access to model X is restricted"}')
    with pytest.raises(CheckpointError, match=f"{name}` must hold a tokenizer's settings; got"):
        read_tokenizer(CLIPTokenizer, folder)


def test_other_marks_around_a_text_are_refused(folder):
    """Of a vocabulary of any size; the ids of words alone would not tell."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"bos_token": "a"}))
    with pytest.raises(CheckpointError, match=r"must begin and end a text as CLIP does.*\('a', "):
        read_tokenizer(CLIPTokenizer, folder)


def test_other_padding_than_published_is_told(folder):
    """As when the folders of both tokenizers are exchanged."""
    words = read_tokenizer(CLIPTokenizer, folder)
    with pytest.warns(UserWarning, match=r"`tokenizer_2` in '.*old' pads texts with .*endoftext"):
        fit_tokenizers({"tokenizer_2": (words, ENCODER)})


def test_two_lengths_or_an_id_without_an_embedding(folder):
    """Both before anything is encoded."""
    words, other = (read_tokenizer(CLIPTokenizer, folder) for _ in range(2))
    other.model_max_length, other.pad_token = 3, "!"
    pairs = {"tokenizer": (words, ENCODER), "tokenizer_2": (other, ENCODER)}
    with pytest.raises(CheckpointError, match="got 16 in tokenizer and 3 in tokenizer_2"):
        fit_tokenizers(pairs)
    small = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=16, vocab_size=570))
    with pytest.raises(CheckpointError, match=r"`tokenizer` must have ids below 570.*; got 570"):
        fit_tokenizers({"tokenizer": (words, small)})


@pytest.mark.parametrize("length", [0, -5, True, "77", None, float("nan")])
def test_a_length_that_is_none(length):
    """Named, before anything is padded."""
    tokenizer = SimpleNamespace(model_max_length=length)
    with pytest.raises(CheckpointError, match="`model_max_length` of the tokenizer must be"):
        text_length(tokenizer, ENCODER)


def test_a_folder_without_files(folder):
    """Is no tokenizer, though the class would make one of nothing."""
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(CheckpointError, match="must hold a whole CLIPTokenizer"):
        read_tokenizer(CLIPTokenizer, folder)
