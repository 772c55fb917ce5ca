"""`cli`: which words of the command line are settings, and which are prompts and files."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mvczigal_ref.cli import _COMMANDS, _read, _say, main

SCORE = ["score", "--prompt", "P", "--reward", "clip_score"]


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seed=3.png", "cfg=7.5_steps=20.png", "reward.dtype=bf16.png"])
def test_a_picture_that_is_there_is_a_picture(tmp_path, monkeypatch, name):
    """Whatever it is called."""
    (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    command = _read(["score", name, "reward.dtype=bf16", *SCORE[1:]])

    assert [str(path) for path in command.images] == [name]
    assert command.settings == ("reward.dtype=bf16",)


@pytest.mark.parametrize(
    "prompt", ["weight=3 red cube", "a=b c", "x.y=1 with a nose", "weight=3\tred", "seed = 3"]
)
def test_a_sentence_is_a_prompt(prompt):
    """Though it begin like a setting."""
    command = _read(["sample", prompt, "sampler.num_steps=2", "a red cube"])

    assert command.prompts == (prompt, "a red cube")
    assert command.settings == ("sampler.num_steps=2",)


@pytest.mark.parametrize(
    "setting",
    ["zigzag.steps=2", "sampler.negative_prompt=ugly, blurry", "sampler.nonsense=a b", "seed=3"],
)
def test_a_setting_is_a_setting(setting):
    """Known or not, with a value of several words or not."""
    command = _read(["sample", "a red cube", setting])

    assert (command.prompts, command.settings) == (("a red cube",), (setting,))


@pytest.mark.parametrize("command", ["export", "report"])
def test_a_folder_may_be_called_like_a_setting(tmp_path, monkeypatch, command):
    """Where commands take folders and no settings."""
    (tmp_path / "lr=0.1").mkdir()
    monkeypatch.chdir(tmp_path)
    more = ["--out", "there"] if command == "export" else []

    assert str(_read([command, "lr=0.1", *more]).run) == "lr=0.1"


@pytest.mark.parametrize(
    "words", [["settings", "optim"], ["train", "--help"], ["settings", "--json"]]
)
def test_a_reader_that_leaves_is_no_error(words):
    """As `| head` does: nothing is printed on standard error, however much is to be printed."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mvczigal_ref", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)

    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_can_complete_words(shell, capsys):
    """By a script that the documents name; it holds every command."""
    with pytest.raises(SystemExit) as ended:
        main(["--tyro-print-completion", shell])

    text = capsys.readouterr().out
    assert not ended.value.code
    assert all(command in text for command in _COMMANDS)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train"], "Missing from mvczigal train: RECIPE. For full helptext, run: mvczigal train "),
        (["sample", "a", "--stepz", "3"], "Unrecognized options: --stepz, 3. Perhaps you meant: "),
        (["train", "tiny", "--seed", "x"], "Error parsing --seed: no type matching {None}|INT "),
        (["trainn"], "Unrecognized options: trainn. Available subcommands: train, sample, "),
        (["play", "--port"], "Missing value for argument '--port'. Expected 1 values. For "),
        (
            ["reproduce", "x"],
            "invalid choice 'x' for argument 'what'. Expected one of ('methods', ",
        ),
        (["train", "tiny", "--seed", "x" * 9000], "Error parsing --seed"),
    ],
)
def test_words_that_are_no_command_are_refused_in_one_line(words, line, capsys):
    """Like every other refusal, with the way to the help."""
    with pytest.raises(SystemExit) as end:
        main(words)
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert told.startswith(f"mvczigal: error: {line}")
    assert told.count("\n") == 1
    assert len(told) < 1100


def test_a_message_of_several_lines_is_told_in_one(capsys):
    """Whoever wrote it."""
    _say("error: one\ntwo")
    assert capsys.readouterr().err == "mvczigal: error: one two\n"


@pytest.mark.parametrize("words", [["train", "--help"], ["settings", "optim.lr"]])
def test_output_that_cannot_be_written_is_told(words):
    """In one line, on a full disk."""
    command = [sys.executable, "-m", "mvczigal_ref", *words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("mvczigal: error: standard output must take what is printed; got")
    assert done.stderr.count("\n") == 1


def test_a_closed_output_is_no_fault():
    """As after a shell's `>&-`."""
    command = f"{shlex.quote(sys.executable)} -m mvczigal_ref --version >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("beside", [[], ["plain.png"]])
def test_a_picture_that_is_not_there_is_told_to_be_a_setting(capsys, beside):
    """Alone and among others."""
    assert main([SCORE[0], *beside, "seed=3.png", *SCORE[1:]]) == 2
    told = capsys.readouterr().err
    assert "'seed=3.png' was read as a setting, and there is no such file" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("words", [["sample", "a caf\udce9"], ["score", "caf\udce9.png"]])
def test_a_byte_that_is_not_utf_8_is_refused(capsys, monkeypatch, words):
    """On one line, without the byte."""
    monkeypatch.setattr(sys, "argv", ["mvczigal", *words])
    assert main() == 2
    told = capsys.readouterr().err
    assert told.startswith("mvczigal: error: ")
    assert "holds a byte that is not UTF-8" in told
    assert told.count("\n") == 1
    assert os.fsencode(told).isascii()
