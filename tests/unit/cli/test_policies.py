"""`cli.policies`: what `evaluate` says and writes of a policy's scores."""

import json

import pytest
import torch

from mvczigal_ref.cli import policies
from mvczigal_ref.cli.arguments import Evaluate
from mvczigal_ref.cli.policies import evaluate_policy
from mvczigal_ref.evaluation.evaluate import Evaluation
from mvczigal_ref.recipes import recipe
from tests.analytic_system import analytic_system


@pytest.mark.parametrize(
    ("name", "rows"), [("tiny", ["per view", "joint view"]), ("tiny_flow_grpo", ["per view"])]
)
def test_scores_are_those_that_the_run_has(monkeypatch, capsys, tmp_path, name, rows):
    """Where nothing judges all views there is no row that repeats the per-view one."""
    system = analytic_system(recipe(name))

    def evaluate(system, prompts, *, num_noises, seed, **_):
        table = torch.full((num_noises, len(prompts)), 2.0 + seed)
        return Evaluation(per_view=table, joint=10 * table, images=torch.zeros(0, 1, 3, 8, 8))

    monkeypatch.setattr(policies, "evaluate", evaluate)
    monkeypatch.setattr(policies, "build_scorers", lambda *_, **__: {})
    monkeypatch.setattr(policies, "_system", lambda *_, **__: system)
    command = Evaluate(recipe=name, seeds=(0, 1), json=tmp_path / "scores.json", device="cpu")
    evaluate_policy(command, recipe(name), ["a", "b"])
    said, scores = capsys.readouterr().out, json.loads(command.json.read_text())["scores"]

    assert "score [dB]" in said
    assert [row for row in ("per view", "joint view") if row in said] == rows
    assert scores.keys() == {*rows}
    assert [scores[row]["mean"] for row in rows] == [2.5, 25.0][: len(rows)]
