"""`prompts`: oracle, laws, errors."""

import re
from types import SimpleNamespace

import pytest

from mvczigal_ref.config import from_dict
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.recipes import recipe
from mvczigal_ref.tiny_world.grammar import split_prompts
from mvczigal_ref.training.prompts import (
    in_world,
    read_prompts,
    require_few_samples,
    run_prompts,
    warn_of_cut_prompts,
)

BALL, CUBE = "a red ball with a green nose", "a blue cube with a white fin"


@pytest.fixture
def listed(tmp_path):
    """Write a list of prompts and give its name."""

    def write(content, name="list.txt", encoding="utf-8"):
        content = content if isinstance(content, bytes) else content.encode(encoding)
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["world.train", "world.held_out"])
def test_named_prompts_are_the_worlds(name):
    """Those to train on and those never trained on."""
    assert read_prompts(name) == split_prompts()[name == "world.held_out"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_prompts_are_the_lines_of_a_file(listed, mark, end, last):
    """With or without a byte-order mark, whatever ends its lines, without blanks around."""
    name = listed(mark + f"  {BALL}\t{end}{CUBE}" + end * last)

    assert read_prompts(name) == [BALL, CUBE]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_nothing_else_ends_a_line(listed, inside):
    """A prompt holds whatever else stands between two line ends."""
    name = listed(f"a red{inside}ball\n{CUBE}\n")

    assert read_prompts(name) == [f"a red{inside}ball", CUBE]


def test_a_mark_between_joined_files_is_no_part_of_a_prompt(listed):
    """As `cat` leaves it."""
    assert read_prompts(listed(f"\ufeff{BALL}\n\ufeff{CUBE}\n")) == [BALL, CUBE]


# -- laws --------------------------------------------------------------------------------


def test_blank_and_repeated_lines_are_told(listed):
    """By number; a repeated prompt is trained on twice as often."""
    name = listed(f"{BALL}\n\n{CUBE}\n{BALL}\n{BALL}\n\n\n")
    with pytest.warns(UserWarning, match=r"^`run\.prompts`: ") as told:
        assert read_prompts(name, setting="run.prompts") == [BALL, CUBE, BALL, BALL]

    first, second = (str(warning.message) for warning in told)
    assert first == f"`run.prompts`: '{name}' has 1 blank lines, left out: line 2."
    assert second == f"`run.prompts`: '{name}' has 2 repeated prompts, kept: line 4, 5."


@pytest.mark.parametrize(
    ("changes", "scored", "sampled"),
    [
        ({}, True, True),
        ({"model": {"rig": "paper"}}, True, False),
        ({"model": {"weights": "sdxl", "rig": "paper"}}, True, False),
        ({"model": {"weights": "sdxl"}, "reward": {"per_view": "clip_score"}}, True, True),
        (
            {
                "model": {"weights": "sdxl", "rig": "paper"},
                "reward": {"per_view": "clip_score", "joint": "hyperscore"},
            },
            False,
            False,
        ),
        (
            {
                "model": {"weights": "sdxl", "rig": "paper"},
                "reward": {"per_view": "clip_score", "joint": "hyperscore"},
                "guard": {"every": 1, "per_view": ["world.per_view"]},
            },
            True,
            False,
        ),
    ],
)
def test_the_grammar_holds_where_the_world_reads_prompts(changes, scored, sampled):
    """Its judges, its captions, its guard, or its weights."""
    config = from_dict(changes)

    assert in_world(config) is scored
    assert in_world(config, scored=False) is sampled


@pytest.mark.parametrize(
    ("name", "sampled"),
    [("sd15_grpo", False), ("sdxl_grpo", False), ("flow_grpo", False), ("tiny_flow_grpo", True)],
)
def test_a_single_view_samples_any_prompt_unless_its_weights_are_the_world_s(name, sampled):
    """It has no rig to tell by."""
    assert in_world(recipe(name), scored=False) is sampled


@pytest.mark.parametrize("build", [tiny_components, tiny_flow_components])
def test_prompts_that_are_cut_are_told(build):
    """Those whose end no encoder reads, and no others."""
    components = build(seed=0)
    long = " ".join([BALL] * 40)
    warn_of_cut_prompts(components, [BALL, CUBE], setting="run.prompts")
    with pytest.warns(UserWarning, match=r"^`run\.prompts`: .* so end 1 of 2 prompts, such as 'a"):
        warn_of_cut_prompts(components, [BALL, long], setting="run.prompts")


@pytest.mark.parametrize("words", [4, 5, 6, 7])
def test_a_prompt_is_cut_from_the_first_token_too_many(words, recwarn):
    """Beginning and end count; one encoder that reads all of it is enough."""

    def tokenizer(prompt, *, verbose):
        return SimpleNamespace(input_ids=[0, *prompt.split(), 1])

    tokenizer.model_max_length = 5
    components = SimpleNamespace(tokenizers=(tokenizer, tokenizer), max_tokens=8)
    warn_of_cut_prompts(components, [" ".join(["word"] * words)], setting="prompts")

    assert len(recwarn) == (words + 2 > 8)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{BALL}\n".encode("utf-16"), "it is in UTF-16"),
        (f"{BALL}\n".encode("utf-32"), "it is in UTF-32"),
        (f"{BALL}\n".encode("utf-16-le"), "it holds NUL bytes, as UTF-16 does"),
        (f"{BALL}\na caf\xe9\n".encode("latin-1"), "line 2 holds the byte 0xe9, which is not"),
        (f"{BALL}\r\n\x93a ball\x94".encode("latin-1"), "line 2 holds the byte 0x93"),
        (b"\x00\x01\x02", "NUL bytes"),
        (b"a ball \xed\xb3\xa9", "line 1 holds the byte 0xed"),
    ],
)
def test_other_encodings_are_refused(listed, content, words):
    """On one line that names file, encoding and place."""
    name = listed(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_prompts(name)
    assert str(caught.value).startswith(f"'{name}' must be text in UTF-8")
    assert str(caught.value).isprintable()


def test_prompts_that_are_not_there_are_refused(listed, tmp_path):
    """With the setting's name."""
    with pytest.raises(ConfigError, match=r"`run\.prompts` must be one of .*'world\.held_out'"):
        read_prompts("world.heldout", setting="run.prompts")
    for content in ("", "\n \n", "\ufeff", "\ufeff\r\n"):
        with pytest.raises(ConfigError, match=r"`--prompts` must hold at least one prompt"):
            read_prompts(listed(content), setting="--prompts")
    with pytest.raises(ConfigError, match="a text file, "):
        read_prompts(str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        read_prompts("x" * 10_000)
    assert len(str(caught.value)) < 400


def test_a_prompt_outside_the_grammar_is_refused_with_its_line(listed):
    """And not at length."""
    name = listed(f"{BALL}\n{CUBE}\na red bal with a blue nose\n")
    place = re.escape(f"line 3 of '{name}'")
    with pytest.raises(ConfigError, match=rf"^{place}: `prompt` must read .* got 'a red bal "):
        read_prompts(name, world=True)
    with pytest.raises(ConfigError) as caught:
        read_prompts(listed(f"{BALL}\u2028" * 1000), world=True)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_a_runs_prompts_are_refused_where_it_would_stumble(listed):
    """Held-out prompts that are trained on, and a guard that has too few."""

    def run(guard=None, **names):
        return run_prompts(from_dict({"run": names, "guard": guard or {}}))

    both = listed(f"{BALL}\n{CUBE}\n")
    other = listed("a red can with a blue nose\n", "other.txt")
    guard = {"every": 2, "diversity": True}

    assert run(prompts=both, held_out=other) == ([BALL, CUBE], ["a red can with a blue nose"])
    for content in (CUBE, CUBE.title()):
        with pytest.raises(ConfigError, match=r"`run\.held_out` must hold no prompt .* got 1 of"):
            run(prompts=both, held_out=listed(content, "one.txt"))
    with pytest.raises(ConfigError, match=r"`run\.held_out` .* at least 2 .* got 1"):
        run(guard, prompts=both, held_out=other)
    assert run({**guard, "unit": "reward"}, prompts=both, held_out=other)
    with pytest.raises(ConfigError, match="line 1 of"):
        run(prompts=both, held_out=listed("a can\n", "bad.txt"))


@pytest.mark.parametrize(("section", "name"), [("run", "evaluation_noises"), ("guard", "noises")])
def test_a_measurement_has_so_many_samples_at_most(section, name):
    """Or it would sample for ever; a guard that is off measures nothing."""

    def run(noises, **guard):
        values = {"guard": {"diversity": True, **guard}, "run": {}}
        values[section][name] = noises
        return run_prompts(from_dict(values))

    assert len(run(2500, every=2)[1]) == 40
    assert section == "run" or run(100_000)
    with pytest.raises(ConfigError, match=rf"`{section}\.{name}` must be at most 2500 with 40 pro"):
        run(2501, every=2)


def test_each_of_many_prompts_may_be_measured_once():
    """However long the list is that somebody names."""
    require_few_samples("--noises", 1, 10**7)
    with pytest.raises(ConfigError, match="`--noises` must be at most 1 with 10000000 prompts"):
        require_few_samples("--noises", 2, 10**7)
