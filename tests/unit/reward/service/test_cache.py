"""`reward.service.cache`: by content, bounded, and kept beyond the process."""

import logging
import os

import pytest

from mvczigal_ref.reward.service import cache as module
from mvczigal_ref.reward.service.cache import ScoreCache, content_key
from mvczigal_ref.reward.service.terms import ScorerInfo
from mvczigal_ref.reward.service.wire import Scores
from tests.unit.reward.service.doubles import PER_VIEW

SCORES = Scores(rows=((0.1, -0.0),), dtype="float32")
CONTENT = {"prompt": "a", "shape": (2, 3, 1, 1), "dtype": "uint8", "pixels": b"123456"}
KEY = content_key(PER_VIEW, **CONTENT)


def one(value):
    """Give the scores of one view."""
    return Scores(rows=((value,),), dtype="float64")


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "b"},
        {"shape": (1, 3, 2, 1)},
        {"dtype": "float32"},
        {"pixels": b"123457"},
        {"info": ScorerInfo(name="corners", version="1", kind="per_view")},
        {"info": ScorerInfo(name="corner", version="2", kind="per_view")},
        {"info": ScorerInfo(name="corner", version="1", kind="joint")},
    ],
)
def test_another_content_has_another_key(other):
    """Pixels, prompt, shape, dtype, and who scores."""
    arguments = {"info": PER_VIEW, **CONTENT}

    assert content_key(**arguments) == KEY
    assert content_key(**{**arguments, **other}) != KEY


def test_a_key_is_one_way_to_cut():
    """What moves from the prompt to the pixels changes the key."""
    shape = {"shape": (1,), "dtype": "uint8"}

    assert content_key(PER_VIEW, "a", pixels=b"\nb", **shape) != content_key(
        PER_VIEW, "a\n", pixels=b"b", **shape
    )


def test_what_was_asked_for_longest_ago_goes_first():
    """A look counts as asking; the number of entries is bounded."""
    cache = ScoreCache(entries=2)
    for name, value in (("a", 1.0), ("b", 2.0)):
        cache.put(name, one(value), info=PER_VIEW)
    assert cache.get("a", info=PER_VIEW, views=1) == one(1.0)
    cache.put("c", one(3.0), info=PER_VIEW)

    assert len(cache) == 2
    assert cache.get("b", info=PER_VIEW, views=1) is None
    assert cache.get("a", info=PER_VIEW, views=1) == one(1.0)
    assert cache.get("c", info=PER_VIEW, views=1) == one(3.0)


def test_a_folder_outlives_the_process(tmp_path):
    """To the same bits; what was read is in memory from then on."""
    ScoreCache(folder=tmp_path).put(KEY, SCORES, info=PER_VIEW)
    cache = ScoreCache(folder=tmp_path)
    found = cache.get(KEY, info=PER_VIEW, views=2)

    assert str(found) == str(SCORES)
    (path,) = tmp_path.rglob("*.json")
    path.unlink()
    assert cache.get(KEY, info=PER_VIEW, views=2) == SCORES
    assert ScoreCache(folder=tmp_path).get(KEY, info=PER_VIEW, views=2) is None


@pytest.mark.parametrize(("room", "steps"), [(1, 3), (7, 20), (25, 60)])
def test_a_folder_holds_so_many_and_the_oldest_go_first(tmp_path, room, steps):
    """Never more than so many, and never fewer than nine tenths once it was full."""
    cache = ScoreCache(entries=1, folder=tmp_path, files=room)
    for step in range(steps):
        cache.put(f"{step:02d}", one(float(step)), info=PER_VIEW)
        (path,) = tmp_path.glob(f"??/{step:02d}.json")
        os.utime(path, ns=(step, step))  # a disk's clock may be too coarse to tell them apart
        kept = sorted(int(path.stem) for path in tmp_path.rglob("*.json"))
        assert kept == list(range(step + 1))[-len(kept) :]
        assert len(kept) <= room
        assert len(kept) >= min(step + 1, room - max(1, room // 10) + 1)


def test_what_others_wrote_counts_too(tmp_path):
    """As soon as the folder is looked through; what they removed meanwhile is no fault."""
    for name in ("aa", "bb", "cc"):
        ScoreCache(folder=tmp_path).put(name, one(1.0), info=PER_VIEW)
    ScoreCache(folder=tmp_path, files=2).put("dd", one(2.0), info=PER_VIEW)

    assert len(list(tmp_path.rglob("*.json"))) == 2
    assert ScoreCache(folder=tmp_path).get("dd", info=PER_VIEW, views=1) == one(2.0)


def stored(folder, key=KEY):
    """Store the scores; give their file."""
    ScoreCache(folder=folder).put(key, SCORES, info=PER_VIEW)
    return folder / key[:2] / f"{key}.json"


def damaged(content):
    """Damage a file's content in every way that a disk has: one bit of each byte, and cuts."""
    for place in range(len(content)):
        for bit in (0, 4):
            yield content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
    yield from (content[:length] for length in range(0, len(content), 37))
    yield from (b"{}", b"[1, 2]", b"\xff", b"[" * 9999)


def test_damaged_scores_are_dropped_with_a_word(tmp_path, caplog):
    """Whatever bit was lost; the object is scored again, and the file made whole."""
    path = stored(tmp_path)
    content = path.read_bytes()
    for broken in damaged(content):
        path.write_bytes(broken)
        caplog.clear()
        cache = ScoreCache(folder=tmp_path)

        assert cache.get(KEY, info=PER_VIEW, views=2) is None
        assert not path.exists()
        (message,) = caplog.messages
        assert message.startswith(f"damaged scores in {path} are scored again: ")
        assert message.isprintable()
    cache.put(KEY, SCORES, info=PER_VIEW)
    assert ScoreCache(folder=tmp_path).get(KEY, info=PER_VIEW, views=2) == SCORES
    assert path.read_bytes() == content


def test_scores_of_another_object_are_damage(tmp_path):
    """A file that was renamed is whole, and wrong all the same."""
    path, other = stored(tmp_path), content_key(PER_VIEW, **{**CONTENT, "prompt": "b"})
    place = tmp_path / other[:2] / f"{other}.json"
    place.parent.mkdir(exist_ok=True)
    path.rename(place)

    assert ScoreCache(folder=tmp_path).get(other, info=PER_VIEW, views=2) is None


def test_what_a_killed_writer_left_is_removed(tmp_path):
    """Once it is so old that no writer lives; a younger one may still be written."""
    path = stored(tmp_path)
    old, young = path.with_name(".a.json.7.tmp"), path.with_name(".b.json.8.tmp")
    for left in (old, young):
        left.write_text("{")
    os.utime(old, (1.0, 1.0))
    stored(tmp_path)

    assert (old.exists(), young.exists()) == (False, True)


def test_a_full_disk_ends_the_folder_and_not_the_run(tmp_path, monkeypatch, caplog):
    """Said once; memory goes on."""
    calls = []

    def full(path, content):
        calls.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "atomic_write", full)
    cache = ScoreCache(folder=tmp_path)
    with caplog.at_level(logging.WARNING):
        cache.put("aa", one(1.0), info=PER_VIEW)
        cache.put("bb", one(2.0), info=PER_VIEW)

    assert len(calls) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"scores are no longer kept in {tmp_path}: [Errno 28] No space left on device"
    ]
    assert cache.get("bb", info=PER_VIEW, views=1) == one(2.0)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["entries", "files"])
def test_rejects_a_cache_without_room(name):
    """At least one entry, and one file."""
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got 0"):
        ScoreCache(**{name: 0})
