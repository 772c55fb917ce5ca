"""Runs of an earlier version, bit for bit: whole ones, and ones that this version goes on with."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import conv2d, silu

from mvczigal_ref.config import load_config
from mvczigal_ref.distributed import World
from mvczigal_ref.recipes import recipe
from mvczigal_ref.training.trainer import train
from tests.integration.runs import metrics

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden_runs"
PROVENANCE = json.loads((GOLDEN / "provenance.json").read_text("utf-8"))
RECIPES = sorted(PROVENANCE["overrides"])


def arithmetic():
    """Name this machine's instructions, and hash its convolution, product and softmax.

    The small ones of the hash can agree where larger ones do not: these have AVX-512 where a
    processor has it, and sum in another order.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 8, 16, 16, generator=generator)
    kernel = torch.randn(8, 8, 3, 3, generator=generator)
    weight = torch.randn(64, 64, generator=generator)
    hidden = silu(conv2d(image, kernel, padding=1)).reshape(-1, 64)
    digest = hashlib.sha256(torch.softmax(hidden @ weight, -1).numpy().tobytes()).hexdigest()
    return [torch.backends.cpu.get_cpu_capability(), digest]


def config_of(name):
    """Configure the run as it was made."""
    return load_config(recipe(name), overrides=PROVENANCE["overrides"][name])


def assert_golden(name, folder, *, kind="final", rows="metrics.json"):
    """Compare parameters and metrics: bits where arithmetic is the same, else to its rounding."""
    final = load_file(folder / "checkpoints/iteration_000002/policy.safetensors")
    expected = load_file(GOLDEN / name / f"{kind}.safetensors")
    rows = json.loads((GOLDEN / name / rows).read_text("utf-8"))
    same = arithmetic() == PROVENANCE["arithmetic"]

    assert final.keys() == expected.keys()
    if same:
        assert [n for n, value in expected.items() if not torch.equal(final[n], value)] == []
    else:
        # AdamW moves a parameter by about its rate, however small the gradient: one whose first
        # gradient is rounding moves either way.
        moved = torch.cat([(final[n] - value).abs().flatten() for n, value in expected.items()])
        assert (moved > 1e-4).float().mean() < 0.02
        assert moved.max() < 4 * config_of(name).optim.lr
    for row, old in zip(metrics(folder), rows, strict=True):
        for metric, value in old.items():
            assert row[metric] == (value if same else pytest.approx(value, rel=1e-3, abs=1e-4))


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_has_the_bits_that_it_had(name, tmp_path):
    """Pairs, pairs as groups of two, groups under captions, and the forward process."""
    train(config_of(name), tmp_path, world=World(), held_out=PROVENANCE["held_out"])
    assert_golden(name, tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_of_the_version_before_goes_on(name, tmp_path):
    """From the checkpoint of an earlier version, whose files are read as they are."""
    folder = shutil.copytree(GOLDEN / name / "run", tmp_path / "run")
    train(config_of(name), folder, world=World(), held_out=PROVENANCE["held_out"])
    assert_golden(name, folder, kind="resumed", rows="resumed_metrics.json")
