"""`shipped`: the stored folder holds the weights, their gate and their pictures."""

import json
from functools import partial

import pytest
import torch

from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.published import weights_folder
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.pipeline import TextToMultiviewPipeline
from mvczigal_ref.pretraining import ship as shipped
from mvczigal_ref.pretraining.gate_flow import gate_flow
from mvczigal_ref.pretraining.gate_multiview import gate
from mvczigal_ref.pretraining.ship import ship, ship_flow


@pytest.fixture
def work(tmp_path):
    """What pretraining leaves behind, at toy width."""
    folder = tmp_path / "work"
    tiny_components(seed=1, channels=(16, 16, 16), num_heads=(1, 1, 1)).save(folder / "fewstep")
    (folder / "pretrain_config.json").write_text('{"seed": 1}')
    rows = [
        {"stage": stage, "step": step, "loss": 1 / step, "seconds": float(step)}
        for stage in ("autoencoder", "base")
        for step in (1, 2)
    ]
    (folder / "pretrain_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_ships_the_last_stage_in_half_precision_with_its_evidence(work, tmp_path, monkeypatch):
    """Weights, settings, log, gate and pictures; an older folder is replaced."""
    prompts = ["a red ball with a white nose"] * 2  # of 60: the gate has tests of its own
    monkeypatch.setattr(shipped, "gate", partial(gate, prompts=prompts))
    monkeypatch.setattr(shipped, "split_prompts", lambda: ([], prompts))
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "stale").touch()
    found = ship(work, folder, guidance_scale=1.0, noises=1)

    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "gate.md",
        "loss.png",
        "model_index.json",
        "mv_adapter.safetensors",
        "pretrain_config.json",
        "pretrain_log.jsonl",
        "samples.png",
    ]
    stored = load_components(folder).policy.state_dict()
    trained = load_components(work / "fewstep").policy.state_dict()
    assert all(torch.equal(stored[name], value.half().float()) for name, value in trained.items())
    assert str(found) in (folder / "gate.md").read_text("utf-8")
    assert not found.passed


def test_ships_a_pipeline_with_the_settings_of_the_shipped_one(work, tmp_path, monkeypatch):
    """Its scheduler, cameras and image size are those of the package's own folder."""
    prompts = ["a red ball with a white nose"]
    monkeypatch.setattr(shipped, "gate", partial(gate, prompts=prompts, steps=(2, 1)))
    monkeypatch.setattr(shipped, "_sample_sheet", lambda *_: None)
    monkeypatch.setattr(shipped, "_KINDS", ())
    ship(work, tmp_path / "shipped", guidance_scale=1.0, noises=1)
    own = weights_folder("tiny")

    TextToMultiviewPipeline.from_pretrained(tmp_path / "shipped")
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        there, here = (json.loads((folder / name).read_text("utf-8"))
                       for folder in (tmp_path / "shipped", own))  # fmt: skip
        assert there | {"_diffusers_version": ""} == here | {"_diffusers_version": ""}


def test_names_the_missing_stage(tmp_path):
    """Pretraining that did not finish ships nothing and deletes nothing."""
    kept = tmp_path / "shipped"
    kept.mkdir()
    with pytest.raises(FileNotFoundError, match="finished weights; run pretraining first"):
        ship(tmp_path / "work", kept)
    assert kept.is_dir()


def test_ships_the_flow_model_with_a_gate_for_each_guidance(work, tmp_path, monkeypatch):
    """The first guidance scale is the one that is shown; one stage that went on is a log too."""
    flow = tiny_flow_components(
        seed=1, num_heads=1, head_width=8, num_layers=1, num_single_layers=1, max_tokens=12
    )
    flow.save(work / "settle")
    (work / "pretrain_config.json").write_text('{"seed": 1, "max_tokens": 12}')
    row = {"stage": "settle", "step": 1, "loss": 1.0, "seconds": 1.0}
    (work / "pretrain_log.jsonl").write_text(json.dumps(row) + "\n")
    prompts = ["a red ball with a white nose"] * 2
    judged = []

    def judge(components, **settings):
        judged.append((settings["guidance_scale"], components.max_tokens))
        return gate_flow(components, prompts=prompts, **settings | {"steps": (2, 1)})

    monkeypatch.setattr(shipped, "gate_flow", judge)
    monkeypatch.setattr(shipped, "split_prompts", lambda: ([], prompts))
    folder = tmp_path / "shipped"
    found = ship_flow(work, folder, guidance_scales=(3.0, 1.0), noises=1)

    assert judged == [(3.0, 12), (1.0, 12)]
    text = (folder / "gate.md").read_text("utf-8")
    assert text.startswith(f"Guidance 3, held-out prompts.\n\n{found}\n\nGuidance 1, held-out")
    stored = load_flow(folder, text_length=12).policy.state_dict()
    assert all(
        torch.equal(stored[name], value.half().float())
        for name, value in flow.policy.state_dict().items()
    )
    assert {"loss.png", "samples.png", "pretrain_config.json", "pretrain_log.jsonl"} <= {
        path.name for path in folder.iterdir()
    }


def test_names_the_flow_model_s_missing_stage(tmp_path):
    """As for the multi-view weights."""
    with pytest.raises(FileNotFoundError, match=r"settle.*finished weights; run pretraining first"):
        ship_flow(tmp_path / "work", tmp_path / "shipped")
