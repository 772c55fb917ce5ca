"""`shipped`: the stored folder holds the weights, their gate and their pictures."""

import json

import pytest
import torch

from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.shipped import ship


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


def test_ships_the_last_stage_in_half_precision_with_its_evidence(work, tmp_path):
    """Weights, settings, log, gate and pictures; an older folder is replaced."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "stale").touch()
    found = ship(work, folder, guidance_scale=1.0, noises=1)

    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "gate.md",
        "loss.png",
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


def test_names_the_missing_stage(tmp_path):
    """Pretraining that did not finish ships nothing and deletes nothing."""
    kept = tmp_path / "shipped"
    kept.mkdir()
    with pytest.raises(FileNotFoundError, match="finished weights; run pretraining first"):
        ship(tmp_path / "work", kept)
    assert kept.is_dir()
