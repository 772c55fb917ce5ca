"""`weight_files`: oracle, laws, errors."""

import gzip
import json
import random
import re

import pytest
import torch
from safetensors.torch import save, save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.file_kinds import describe_file
from mvczigal_ref.models.weight_files import (
    check_safetensors,
    read_json,
    read_metadata,
    read_safetensors,
)

TENSORS = {"a.weight": torch.ones(3, 4), "b.bias": torch.ones(4)}
WHOLE = save(TENSORS)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12\n"
BYTES = [
    (b"", "an empty file"),
    (POINTER, "a Git LFS pointer"),
    (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    (b"\xef\xbb\xbf\n <HTML><head>", "a web page"),
    (b'{"error":"Access to model X is restricted"}', "JSON text, .*Access to model X"),
    (b"Entry not found", "text .'Entry not found'"),
    (b"\x80\x04\x95", "a pickle"),
    (gzip.compress(b"a"), "a gzip archive"),
    (b"GGUF\x03", "a GGUF file"),
    (b"\x89PNG\r\n", "a picture"),
    (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
    (b"\x00\x01\x02\xff\xfe" * 30, "bytes of no known format"),
    (b"PK\x03\x04 cut", "a damaged or cut zip archive"),
    (WHOLE, "a safetensors file$"),
    (WHOLE[:-5], "a safetensors file that is cut"),
    (WHOLE + b"more", "a safetensors file that is too long"),
    (WHOLE[:30], "a cut safetensors file"),
    (WHOLE.replace(b'"F32"', b'"F32 ', 1), "a safetensors file with a damaged header"),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


# -- oracle: files as they really are ------------------------------------------------------


@pytest.mark.parametrize(("content", "kind"), BYTES, ids=[kind for _, kind in BYTES])
def test_a_file_is_said_to_be_what_it_is(path, content, kind):
    """Whatever its name; and only the whole one is read."""
    path.write_bytes(content)
    assert re.match(kind, describe_file(path))
    if content is WHOLE:
        check_safetensors(path)
        assert torch.equal(read_safetensors(path)["a.weight"], TENSORS["a.weight"])
        return
    for read in (read_safetensors, read_metadata, check_safetensors):
        with pytest.raises(CheckpointError, match=r"file\.safetensors` must be a whole") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_texts_beside_tensors(path):
    """Empty where there are none."""
    save_file(TENSORS, path, metadata={"format": "pt"})
    assert read_metadata(path) == {"format": "pt"}
    path.write_bytes(WHOLE)
    assert read_metadata(path) == {}


# -- laws ---------------------------------------------------------------------------------


def test_no_other_exception_escapes(tmp_path):
    """From tensors and settings damaged at any place: flipped, cut, doubled."""
    chance = random.Random(0)
    settings = json.dumps({"width": [8, 16], "name": "x", "deep": {"a": None}}).encode()
    told = []
    for whole, name, read in (
        (WHOLE, "file.safetensors", read_safetensors),
        (settings, "config.json", read_json),
    ):
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(chance.randrange(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            if chance.random() < 0.3:
                del damaged[chance.randrange(len(damaged)) :]
            (tmp_path / name).write_bytes(bytes(damaged))
            try:
                read(tmp_path / name)
            except CheckpointError as error:
                told.append(str(error))
    assert len(told) > 300
    assert all(str(tmp_path) in text and "\n" not in text for text in told)


def test_deep_nesting_is_no_recursion(tmp_path):
    """A hundred thousand brackets end in one line too."""
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="must be readable JSON"):
        read_json(path)
