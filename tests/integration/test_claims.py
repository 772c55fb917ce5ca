"""`mvczigal reproduce claims`, whole, on a network of a few thousand weights."""

import json

import pytest
import torch

from mvczigal_ref.cli import main
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.reproduce import claim_runs
from mvczigal_ref.reproduce.claims_record import read_claims
from mvczigal_ref.reproduce.claims_strip import claims_strip, iterations_strip
from mvczigal_ref.training import prompts as prompt_lists
from tests.integration.runs import HELD_OUT, PROMPTS

SMALL = (
    "run.objects_per_iteration=4",
    "run.objects_per_slice=2",
    "run.evaluation_noises=1",
    "run.device=cpu",
    "run.checkpoint_every=1",
    "model.lora_rank=2",
    "sampler.num_steps=2",
)


@pytest.fixture(autouse=True)
def _one_family(monkeypatch):
    """Train and evaluate on prompts of one shape and part, for which the judges are quick."""
    split = (list(PROMPTS), list(HELD_OUT))
    monkeypatch.setattr(prompt_lists, "split_prompts", lambda: split)


def test_a_claim_is_trained_judged_and_drawn_once(tmp_path, monkeypatch, capsys):
    """Both arms of one seed; with one of five it stays open, and nothing is made again."""
    components = tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))
    with torch.no_grad():
        components.policy.unet.time_embedding.cond_proj.weight.fill_(0.1)
    components.save(tmp_path / "weights")
    out = tmp_path / "claims"
    words = [
        "reproduce", "claims", "--claim", "b", "--seeds", "10", "--iterations", "1",
        "--out", str(out), f"model.weights={tmp_path / 'weights'}", *SMALL,
    ]  # fmt: skip

    assert main([*words, "--json"]) == 0
    assert {"claim": "b", "verdict": "open"} in json.loads(capsys.readouterr().out)
    record = read_claims(out / "claims.json")
    assert [(arm.arm, arm.seeds) for arm in record.arms] == [
        ("tiny", (10,)), ("tiny_per_view", (10,)),
    ]  # fmt: skip
    (judged,) = [one for one in record.claims if one.letter == "b"]
    assert [finding.seeds for finding in judged.findings] == [1, 1, 1]
    assert "(1 of 5 seeds)" in (out / "claims.md").read_text("utf-8")

    monkeypatch.setattr(claim_runs, "train", lambda *_, **__: pytest.fail("trained again"))
    first = (out / "claims.json").read_bytes()
    assert main(words) == 0
    assert (out / "claims.json").read_bytes() == first

    runs = (out / "tiny_per_view-10", out / "tiny-10", HELD_OUT)
    last, over = claims_strip(*runs), iterations_strip(*runs, iterations=(1,))
    assert _cell(over, 2, column=1, row=1) == _cell(last, 3, column=2, row=0)  # constrained
    assert _cell(over, 2, column=1, row=0) == _cell(last, 3, column=1, row=0)  # one reward alone


def _cell(sheet, columns, *, column, row):
    """Views of an object on a strip, without the texts around them."""
    width, height = (sheet.width - 10) // columns - 10, (sheet.height - 40) // 4
    left, top = 10 + column * (width + 10), 50 + row * height
    return sheet.crop((left, top, left + width, top + height - 40)).tobytes()
