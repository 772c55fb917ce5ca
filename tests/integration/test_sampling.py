"""`mvczigal sample` at the published names and shapes: cameras, LoRA, pictures, refusals."""

import re

import pytest
import torch
from PIL import Image
from rich.progress import Progress
from safetensors.torch import save_file

from mvczigal_ref.cli import main
from mvczigal_ref.config import load_config
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.lora_weights import LoraWeights, write_lora_file, write_peft_files
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system import build_system
from mvczigal_ref.system.scorers import no_scorers
from tests.unit.models.published import write_published

FLOW = ("--recipe", "tiny_flow_grpo", "sampler.num_steps=2", "sampler.evaluation_steps=0")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """What makes the published recipe small: its files, of random weights, and their size."""
    at = write_published(tmp_path_factory.mktemp("published"))
    places = ", ".join(f"{n}: {getattr(at, n)}" for n in ("base", "unet", "vae", "adapter"))
    return [f"model.sources={{{places}}}", "model.image_size=32", "model.dtype=fp32"]


@pytest.fixture(scope="module")
def lora(words, tmp_path_factory):
    """A trained LoRA in all three layouts, as paths by name."""
    config = load_config(recipe("lcm_sdxl_simple"), overrides=words)
    system = build_system(config, device=torch.device("cpu"), scorers=no_scorers())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in system.trained().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 16)
    folder, trained = tmp_path_factory.mktemp("lora"), LoraWeights.of(system.components.policy.unet)
    write_peft_files(trained, folder / "peft")
    write_lora_file(trained, folder / "diffusers.safetensors")
    write_lora_file(trained, folder / "released.safetensors", layout="released")
    return {path.stem: path for path in folder.iterdir()}


def sampled(words, out, *more):
    """Sample two foxes by the published recipe; give every picture's pixels by name."""
    start = ["sample", "a fox", "a red fox", "--recipe", "lcm_sdxl_simple", "--steps", "2"]
    assert main([*start, *words, *map(str, more), "--out", str(out)]) == 0
    found = {}
    for path in sorted(out.iterdir()):
        with Image.open(path) as image:
            found[path.name] = image.tobytes()
    return found


def test_the_published_recipe_paints_any_cameras(words, tmp_path, capsys):
    """A sheet, views, a grid and a turn of each object, of so many evenly spaced cameras."""
    folder = tmp_path / "five"
    found = sampled(words, folder, "--views", "5", "--elevation", "15")
    said = capsys.readouterr()
    each = [*[f"view{view}.png" for view in range(5)], "grid.png", "turn.webp"]
    names = {f"{place}_{part}" for place in ("00_a-fox", "01_a-red-fox") for part in each}

    assert found.keys() == {"sheet.png", *names}
    with Image.open(folder / "00_a-fox_turn.webp") as turn:
        assert (turn.n_frames, turn.size, turn.info["loop"]) == (5, (96, 96), 0)
    with Image.open(folder / "00_a-fox_grid.png") as grid:
        assert grid.size == (3 * (96 + 3) + 3, 2 * (96 + 3) + 3)
    assert re.search(r"^2 x 5 views in [\d.]+ s; peak memory [\d.]+ GiB on cpu$", said.out, re.M)
    spaced = "--azimuths", "-90", "-18", "54", "126", "198"
    assert sampled(words, tmp_path / "same", *spaced, "--elevation", "15") == found
    assert sampled(words, tmp_path / "low", "--views", "5") != found
    offloaded = ["model.offload_frozen=true", "model.storage_device=cpu"]
    assert sampled([*words, *offloaded], tmp_path / "away", "--views", "5", "--elevation", 15) == (
        found
    )


def test_a_lora_of_any_layout_paints_the_same(words, lora, tmp_path):
    """And not what the weights alone do; one that does not fit is named before any sampling."""
    found = {n: sampled(words, tmp_path / n, "--lora", path) for n, path in lora.items()}
    plain = sampled(words, tmp_path / "plain")

    assert found["peft"] == found["diffusers"] == found["released"] != plain
    assert plain.keys() == found["peft"].keys()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--lora", "absent"], r"must be a LoRA's file, or a folder .* got '.*absent'"),
        (
            ["--lora", "other.safetensors"],
            r"other\.safetensors.*lora_B; got .* 1 tensors: what",
        ),
        (["--run", "x", "--lora", "y"], "`--run` brings what it has trained"),
        (["--run", "x", "--recipe", "tiny"], "`--run` brings its own weights"),
        (["--views", "0"], "`--views` must be 1 to 360"),
        (["--views", "1000000000"], "`--views` must be 1 to 360"),
        (["--views", "2", "--azimuths", "0"], r"`--azimuths` then be left out; got 2 and \[0.0\]"),
        (["--elevation", "91"], "`model.elevation`.*91"),
        (["reward.dtype=bf16"], "`reward.dtype` changes nothing here"),
        ([*FLOW, "--views", "2"], "`model.azimuths` and `model.elevation` place cameras"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_sampled_is_told_in_a_line(more, told, words, tmp_path, monkeypatch, capsys):
    """Before a picture is there."""
    monkeypatch.chdir(tmp_path)
    save_file({"what": torch.zeros(1)}, tmp_path / "other.safetensors")
    published = [] if "--run" in more or "--recipe" in more else ["--recipe", "lcm_sdxl_simple"]
    given = words if published and "--lora" in more else []

    assert main(["sample", "a red ball with a white nose", *published, *given, *more]) == 2
    said = capsys.readouterr().err
    assert re.search(told, said)
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "samples").exists()


def test_a_flow_paints_one_view(tmp_path, capsys, monkeypatch):
    """A sheet and the view; there is nothing to turn, and a call a step is counted."""
    told = []
    monkeypatch.setattr(Progress, "add_task", lambda *_, total: told.append(total) or len(told) - 1)
    monkeypatch.setattr(
        Progress, "update", lambda *_, completed: told.append("call") if completed else None
    )
    tiny_flow_components(seed=0, num_heads=1, num_layers=1, num_single_layers=1).save(
        tmp_path / "weights"
    )
    prompts = ["a red ball with a white nose", "a blue ball with a white nose"]
    words = ["--weights", str(tmp_path / "weights"), "run.objects_per_slice=1"]
    assert main(["sample", *prompts, *FLOW, *words, "--out", str(tmp_path / "out")]) == 0

    assert told == [4, *["call"] * 4]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00_a-red-ball-with-a-white-nose_view0.png",
        "01_a-blue-ball-with-a-white-nose_view0.png",
        "sheet.png",
    ]
    assert "2 x 1 views in" in capsys.readouterr().out
