"""`reward.provenance`: which files decide scores, and a hash that goes by their content alone."""

import hashlib
import os
import shutil

import pytest

from mvczigal_ref.reward.clip_score import ClipScore
from mvczigal_ref.reward.hyperscore import find_checkpoint
from mvczigal_ref.reward.provenance import content_hash, files_read, note
from tests.unit.reward import tiny_files as tiny

# -- oracle ------------------------------------------------------------------------------


def test_the_hash_is_of_names_and_contents(tmp_path):
    """One line a file, sorted."""
    (tmp_path / "b.bin").write_bytes(b"two")
    (tmp_path / "a.bin").write_bytes(b"one")
    lines = "".join(
        f"{name}\0{hashlib.sha256(content).hexdigest()}\n"
        for name, content in (("a.bin", b"one"), ("b.bin", b"two"))
    )

    found = content_hash([tmp_path / "b.bin", tmp_path / "a.bin", tmp_path / "b.bin"])
    assert found == hashlib.sha256(lines.encode()).hexdigest()


# -- laws --------------------------------------------------------------------------------


def test_a_scorer_is_built_from_weights_size_and_tokenizer(tmp_path):
    """Each of them is told, and what lies beside is not."""
    tiny.write_clip(tmp_path)
    (tmp_path / "README.md").write_text("words")
    with files_read() as files:
        ClipScore.from_pretrained(tmp_path, tokenizer=tmp_path)

    names = {path.name for path in files}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert "README.md" not in names
    assert {path.parent for path in files} == {tmp_path}


def test_content_alone_counts(tmp_path):
    """Another place or time is the same scorer; one other byte, or another name, is not."""
    here, there = tmp_path / "here", tmp_path / "there"
    tiny.write_clip(here)
    shutil.copytree(here, there)
    path = there / "model.safetensors"
    os.utime(path, (1, 1))

    def hashed(folder):
        return content_hash(sorted(folder.iterdir()))

    assert hashed(here) == hashed(there)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, (1, 1))  # neither its size nor its time tells
    changed = hashed(there)
    assert changed != hashed(here)
    path.write_bytes(content)
    path.rename(there / "other.safetensors")
    assert hashed(there) not in (changed, hashed(here))


def test_a_file_of_the_hub_s_cache_is_its_own_hash(tmp_path):
    """It is not read: the cache names what a link points to by its content."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0123abcd").write_bytes(b"weights")
    (tmp_path / "model.bin").symlink_to(tmp_path / "blobs" / "0123abcd")
    before = content_hash([tmp_path / "model.bin"])
    (tmp_path / "blobs" / "0123abcd").write_bytes(b"not read")
    assert content_hash([tmp_path / "model.bin"]) == before

    (tmp_path / "blobs" / "other").write_bytes(b"weights")
    (tmp_path / "model.bin").unlink()
    (tmp_path / "model.bin").symlink_to(tmp_path / "blobs" / "other")
    assert content_hash([tmp_path / "model.bin"]) != before


def test_collectors_may_lie_in_each_other(tmp_path):
    """The outer one hears all; outside of them nothing is collected."""
    (tmp_path / "model.pth").touch()
    note(tmp_path)
    with files_read() as outer:
        note(tmp_path / "a")
        with files_read() as inner:
            find_checkpoint(tmp_path)
    note(tmp_path)

    assert inner == [tmp_path / "model.pth"]
    assert outer == [tmp_path / "a", tmp_path / "model.pth"]


# -- errors ------------------------------------------------------------------------------


def test_a_file_that_is_gone_is_an_error(tmp_path):
    """No version is given to what cannot be read."""
    with pytest.raises(FileNotFoundError):
        content_hash([tmp_path / "gone"])
