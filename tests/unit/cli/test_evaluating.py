"""`cli.evaluating`: table and file of a policy's scores."""

import json
import re

import pytest
import torch

from mvczigal_ref.cli import evaluating
from mvczigal_ref.cli.evaluating import Evaluate, evaluate_policy
from mvczigal_ref.evaluation import evaluate as evaluation
from mvczigal_ref.evaluation.scores import Evaluation
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system import scorers
from tests.analytic_system import analytic_system


@pytest.mark.parametrize(
    ("name", "rows"), [("tiny", ["per view", "joint view"]), ("tiny_flow_grpo", ["per view"])]
)
def test_scores_are_those_that_the_run_has(monkeypatch, capsys, tmp_path, name, rows):
    """Where nothing judges all views there is no row that repeats the per-view one."""
    system = analytic_system(recipe(name))

    def evaluate(system, prompts, *, num_noises, seed, **_):
        table = torch.full((num_noises, len(prompts)), 2.0 + seed)
        table[:, 0] -= 0.002
        return Evaluation(per_view=table, joint=10 * table, images=torch.zeros(0, 1, 3, 8, 8))

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(scorers, "build_scorers", lambda *_, **__: {})
    monkeypatch.setattr(evaluating, "build_policy", lambda *_, **__: system)
    command = Evaluate(recipe=name, seeds=(0, 1), json=tmp_path / "scores.json", device="cpu")
    evaluate_policy(command, recipe(name), ["a", "b"])
    text, scores = capsys.readouterr().out, json.loads(command.json.read_text())["scores"]

    assert "score [dB]" in text
    assert [row for row in ("per view", "joint view") if row in text] == rows
    assert scores.keys() == {*rows}
    assert [scores[row]["mean"] for row in rows] == pytest.approx([2.499, 24.99][: len(rows)])
    assert re.search(r"per view +│ all +│ 2\.4990 +│ +0\.0010 │", text)  # digits of the error
