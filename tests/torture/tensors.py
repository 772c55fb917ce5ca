"""Tensors: LoRA files and networks' folders, damaged or with odd settings, are read or refused."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save, save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.lora import add_lora, lora_parameters
from mvczigal_ref.models.lora_files import load_lora
from mvczigal_ref.models.lora_weights import LoraWeights, write_lora_file, write_peft_files
from tests.torture.damage import damaged
from tests.torture.tally import Tally, require_line
from tests.unit.models.small import fresh_components

VALUES = (
    None, -1, 0, 4, 8, 16, 2.5, float("nan"), float("inf"), "4", "", True, [4], {}, "x" * 9000,
    10**400, "\x1b[2J", [[]] * 3, {"unet": 4},
)  # fmt: skip
NAMES = (
    "r", "lora_alpha", "target_modules", "init_lora_weights", "rank_pattern", "use_dora",
    "alpha_pattern", "use_rslora", "bias", "peft_type", "modules_to_save", "lora_bias",
)  # fmt: skip

CHANGES = (
    lambda n, v: {}, lambda n, v: {n: v.half()}, lambda n, v: {n: v.to(torch.int8)},
    lambda n, v: {n: v * float("nan")}, lambda n, v: {n: v[:1].contiguous()},
    lambda n, v: {n: v.flatten()}, lambda n, v: {n: v[None]}, lambda n, v: {"a\x1b[2J": v},
    lambda n, v: {n.replace("unet.", "transformer."): v}, lambda n, v: {"k" * 5000: v},
    lambda n, v: {n: v.new_zeros(0)}, lambda n, v: {n + ".x": v, n: v.clone()},
)  # fmt: skip


def torture(tally: Tally, chance: random.Random, count: int, folder: Path) -> None:
    """Damage bytes, tensors and settings of LoRA files; damage a small pipeline's folder."""
    whole = fresh_components().to(dtype=torch.float32)
    whole.save(folder / "network")
    trained = fresh_components().to(dtype=torch.float32).policy.unet
    add_lora(trained, rank=4, alpha=8.0, seed=0)
    lora = LoraWeights.of(trained)
    write_lora_file(lora, folder / "lora.safetensors")
    write_peft_files(lora, folder / "peft")
    good = load_file(folder / "lora.safetensors")
    files = [path for path in sorted((folder / "network").rglob("*")) if path.is_file()]
    kinds = {
        "bytes": lambda: _bytes(chance, folder / "lora.safetensors"),
        "tensors": lambda: _tensors(chance, good, folder / "lora.safetensors"),
        "metadata": lambda: _metadata(chance, good, folder / "lora.safetensors"),
        "peft": lambda: _peft(chance, folder / "peft" / "adapter_config.json"),
    }
    for place in range(count):
        if place % 20 == 0:
            with tally.attempt(f"network {place}"):
                _network(tally, chance, folder / "network", chance.choice(files))
            continue
        kind = chance.choice(list(kinds))
        with tally.attempt(f"{kind} {place}"):
            path, restore = kinds[kind]()
            try:
                load_lora(trained, path.parent if kind == "peft" else path)
            except CheckpointError as error:
                tally.note("refused")
                require_line(str(error), "lora.safetensors", "peft")
            else:
                for value in lora_parameters(trained).values():
                    assert bool(value.isfinite().all()), "a number that is not finite was loaded"
            finally:
                for file, content in restore.items():
                    file.write_bytes(content)


def _bytes(chance: random.Random, path: Path) -> tuple[Path, dict[Path, bytes]]:
    content = path.read_bytes()
    path.write_bytes(damaged(chance, content))
    return path, {path: content}


def _tensors(chance: random.Random, good: dict, path: Path) -> tuple[Path, dict[Path, bytes]]:
    """Change, add or leave out some tensors."""
    content, tensors = path.read_bytes(), dict(good)
    for name in chance.sample(list(good), chance.choice([1, 1, 3, len(good)])):
        change = chance.choice(CHANGES)
        tensors |= change(name, tensors.pop(name))
    path.write_bytes(save(tensors))
    return path, {path: content}


def _metadata(chance: random.Random, good: dict, path: Path) -> tuple[Path, dict[Path, bytes]]:
    content = path.read_bytes()
    settings = {f"unet.{chance.choice(NAMES)}": chance.choice(VALUES) for _ in range(2)}
    text = json.dumps({"unet.r": 4, "unet.lora_alpha": 8} | settings)
    text = chance.choice([text, text, text, text[:-1], "[]", "3", "[" * 5000, "\x1b[2J", "null"])
    save_file(good, path, metadata={"lora_adapter_metadata": text})
    return path, {path: content}


def _peft(chance: random.Random, path: Path) -> tuple[Path, dict[Path, bytes]]:
    content = path.read_bytes()
    settings = {chance.choice(NAMES): chance.choice(VALUES) for _ in range(2)}
    path.write_text(json.dumps(json.loads(content) | settings))
    if chance.random() < 0.3:
        path.write_bytes(damaged(chance, content))
    return path.parent / "adapter_model.safetensors", {path: content}


def _network(tally: Tally, chance: random.Random, folder: Path, file: Path) -> None:
    """Damage one file of a folder; what is loaded all the same is finite."""
    content = file.read_bytes()
    try:
        file.write_bytes(damaged(chance, content))
        load_components(folder)
    except CheckpointError as error:
        tally.note("refused")
        require_line(str(error), str(folder))
    finally:
        file.write_bytes(content)
