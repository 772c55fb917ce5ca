"""`reproduce.claims_strip`: prompts are chosen by rule, and images are those of the runs."""

import torch

from mvczigal_ref.evaluation.scores import Evaluation, sealed_evaluation
from mvczigal_ref.reproduce.claims_strip import chosen_prompts, claims_strip

# -- laws --------------------------------------------------------------------------------


def test_prompts_are_most_quartile_median_and_least():
    """Whatever their order."""
    assert chosen_prompts([3.0, -1.0, 5.0, 0.0, 1.0]) == [2, 0, 4, 1]


def test_a_strip_is_drawn_from_two_run_folders(tmp_path):
    """Three states of four prompts."""
    for name, joint in (("alone", 1.0), ("full", 2.0)):
        for occasion in ("before_000000", "after_000003"):
            path = tmp_path / name / "evaluations" / f"{occasion}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            scores = Evaluation(
                per_view=torch.ones(2, 5), joint=joint * torch.arange(10.0).view(2, 5),
                images=torch.zeros(5, 6, 3, 8, 8),
            )  # fmt: skip
            path.write_bytes(sealed_evaluation(scores, path, "so"))
    sheet = claims_strip(tmp_path / "alone", tmp_path / "full", list("abcde"))

    assert sheet.width == 10 + 3 * (2 + 3 * 26 + 10)
