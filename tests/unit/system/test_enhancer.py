"""`enhancers`: what is built for each setting, and what is refused."""

import json

import pytest
import torch

from mvczigal_ref.condition.online import ASPECTS, OnlineEnhancer
from mvczigal_ref.condition.stored import StoredCaptions
from mvczigal_ref.condition.tiny_world import GrammarEnhancer
from mvczigal_ref.config import ConditionConfig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.system import enhancer as enhancers
from mvczigal_ref.system.enhancer import build_enhancer
from tests.unit.condition.fakes import Scripted

CPU = torch.device("cpu")
IMAGES = torch.full((1, 2, 1, 3, 8, 8), 0.5)


def build(enhancer, **settings):
    """Build on the CPU."""
    return build_enhancer(ConditionConfig(enhancer=enhancer, **settings), device=CPU)


class Keyed(Scripted):
    """A model that is served without a key."""

    def key(self):
        """None is sent."""


@pytest.fixture
def models(monkeypatch):
    """Note how a model is made, and give one that never answers well."""
    made = {}

    def endpoint(url, name, *, api_key_env, max_tokens):
        made["chat"] = url, name, api_key_env, max_tokens
        return Keyed("")

    def load(folder, *, device, max_new_tokens):
        made["local"] = folder, device, max_new_tokens
        return Scripted("")

    monkeypatch.setattr(enhancers, "ChatEndpoint", endpoint)
    monkeypatch.setattr(enhancers.LocalVisionLanguageModel, "load", load)
    return made


def stored(folder):
    """Write captions of one prompt."""
    header = {"captions_file": 1, "model": "m", "seed": 0}
    captions = [{"caption": f"a red cat {i}", "instruction": "addition"} for i in range(3)]
    lines = [json.dumps(x) for x in (header, {"prompt": "a cat", "captions": captions})]
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


def test_nobody_makes_captions_by_default():
    """Then an iteration is plain GRPO."""
    assert build("none") is None


def test_the_world_s_captions_are_measured():
    """One a sample; what cannot be described is the prompt itself."""
    built = build("world")
    assert isinstance(built, GrammarEnhancer)
    assert built.num_captions(5) == 5
    grey = torch.full((1, 2, 6, 3, 32, 32), 0.5)
    assert [c.caption for c in built(["a red cube"], grey, seed=0)[0]] == ["a red cube"] * 2


def test_the_world_s_edits_look_at_no_image():
    """As many as asked of each prompt."""
    built = build("world_edits", num_captions=3)

    assert not built.needs_images
    assert [
        len(made)
        for made in built(["a red cube with a white nose", "a blue ball with a red fin"], seed=0)
    ] == [3, 3]


def test_stored_captions_are_read_from_their_file(tmp_path):
    """As many as asked."""
    built = build("stored", file=stored(tmp_path), num_captions=2)

    assert isinstance(built, StoredCaptions)
    assert len(built(["a cat"], seed=0)[0]) == 2


def test_a_file_without_captions_of_a_prompt_is_refused(tmp_path):
    """When it is read: hours may pass before that prompt is met."""
    settings = ConditionConfig(enhancer="stored", file=stored(tmp_path), num_captions=2)
    build_enhancer(settings, device=CPU, prompts=["a cat"])
    with pytest.raises(ConfigError, match=r"`condition\.enhancer` = .stored.: .*'a dog'"):
        build_enhancer(settings, device=CPU, prompts=["a cat", "a dog"])


@pytest.mark.parametrize("kind", ["chat", "local"])
def test_a_model_is_asked_about_the_chosen_aspects(models, kind):
    """Where it says nothing the prompt stands in."""
    told = {"model": "name", "url": "http://host/v1", "api_key_env": "KEY"}
    every, some = build(kind, **told), build(kind, **told, instructions=["lighting"])
    made = {"chat": ("http://host/v1", "name", "KEY"), "local": (enhancers.Path("name"), CPU)}

    assert isinstance(every, OnlineEnhancer)
    assert models == {kind: (*made[kind], 512)}
    three = build(kind, **told, requests_at_once=3, samples_per_question=2)
    assert models == {kind: (*made[kind], 512)}
    captions = some(["a cat"], IMAGES, seed=0)[0]
    assert [c.caption for c in captions] == ["a cat", "a cat"]
    assert every._asker.instructions == ASPECTS
    assert some._asker.instructions == {"lighting": ASPECTS["lighting"]}
    assert (three._workers, three._per_question) == (3, 2)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("world", {"instructions": ["smell"]}, "smell"),
        ("world_edits", {"instructions": ["smell"]}, "`words` must be some of .* got .'smell',"),
        ("chat", {"model": "m", "url": "http://h", "instructions": ["smell"]}, r"got \['smell'\]"),
        ("chat", {"model": "m", "url": "not a url"}, "url"),
        (
            "chat",
            {"model": "m", "url": "http://h", "api_key_env": "ABSENT_KEY"},
            "'ABSENT_KEY' is unset or empty",
        ),
        ("stored", {"file": "absent.jsonl"}, "cannot read captions from 'absent.jsonl'"),
        ("local", {"model": "absent"}, "absent"),
    ],
)
def test_what_cannot_be_built_is_a_fault_of_its_setting(kind, settings, said):
    """Named, with what is wrong with it."""
    with pytest.raises(ConfigError, match=rf'`condition\.enhancer` = "{kind}": .*{said}'):
        build(kind, **settings)


def test_more_captions_than_a_file_holds_are_refused(tmp_path):
    """When it is read, not when a prompt is met."""
    with pytest.raises(ConfigError, match="`num_captions` must be at most"):
        build("stored", file=stored(tmp_path), num_captions=4)
