"""`cli.benchmarking`: one command on tiny stand-ins, its table and file, and refusals."""

import json

import pytest

from mvczigal_ref.cli import main
from mvczigal_ref.cli.progress import Steps


def test_one_command_gives_the_table_with_stand_ins(tmp_path, capsys, monkeypatch):
    """A prompt file, seeds, two scorers: means, standard errors, and every prompt's number.

    Progress comes to the number of evaluations.
    """
    monkeypatch.setenv("COLUMNS", "200")
    advanced = []
    monkeypatch.setattr(Steps, "advance", lambda steps, count=1: advanced.append(count))
    reward = tmp_path / "mine.py"
    reward.write_text("def bright(images, prompts):\n    return images.mean(dim=(-3, -2, -1))\n")
    prompts, file = tmp_path / "prompts.txt", tmp_path / "table.json"
    prompts.write_text("a red cube with a white nose\na blue ball with a green fin\n")
    words = [
        "benchmark", "tiny_flow_grpo", "--prompts", str(prompts), "--seeds", "0", "1",
        "--columns", "World:world.per_view", f"Bright:{reward}:bright", "--json", str(file),
        "--device", "cpu", "sampler.num_steps=2",
    ]  # fmt: skip
    assert main(words) == 0
    text, content = capsys.readouterr().out, json.loads(file.read_text())
    row = content["rows"]["base weights"]

    assert "World" in text
    assert "published" not in text
    assert text.index("World") < text.index("Bright")
    assert row.keys() == {"World", "Bright"}
    assert len(row["World"]["per_prompt"]) == 2
    assert f"{row['Bright']['mean']:.3f}" in text
    assert row["World"]["standard_error"] > 0.0
    assert content["seeds"] == [0, 1]
    assert sum(advanced) == pytest.approx(2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--columns", "World"], "`--columns` must name columns as NAME:SCORER"),
        (["--columns", "A:hpsv2", "B:hpsv2"], "with a name and a scorer of its own"),
        (["--columns", "A:pikscore"], "the nearest is 'pickscore'"),
        (["--noises", "0"], "`--noises` must be at least 1, and"),
        (["reward.per_view=clip_score"], "`reward.per_view` is what `--columns` sets"),
        (["reward.joint=world.joint"], "`reward.joint` is what `--columns` sets"),
        ([], "needs `reward.url={chat_judge.alignment: http://HOST:PORT/v1}`"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_loads(words, message, capsys):
    """In one line, exit 2; the paper's columns lack a judge that only a service has."""
    assert main(["benchmark", "tiny_flow_grpo", *words]) == 2
    assert message in capsys.readouterr().err
