"""Run folders: damaged ones are refused by name, or go on to the bits of an undamaged run."""

import json
import random
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from mvczigal_ref.cli.launch import REFUSED
from mvczigal_ref.training import checkpoint_folder
from tests.integration.runs import assert_same_run, checkpoints, run, small_config, write_prompts
from tests.torture.damage import damaged
from tests.torture.tally import Tally, command, require_line

GUARDED = {
    "sampler": {"guidance_scale": 1.0},  # one network call, not two
    "guard": {"every": 1, "diversity": True, "unit": "reward"},
    "run": {"iterations": 3, "objects_per_iteration": 2, "objects_per_slice": 1},
}


def config_of(folder: Path, **run_settings: object):
    """Configure a small run with the guard."""
    sections = {**GUARDED, "run": {**GUARDED["run"], **run_settings}}
    return small_config(write_prompts(folder), **sections)


def torture(tally: Tally, _: random.Random, count: int, folder: Path) -> None:
    """Damage a file of a run that stopped; of every third the checkpoint is sealed anew."""
    tally.limit = 600.0
    whole, stopped = folder / "whole", folder / "stopped"
    config = config_of(folder)
    run(config, whole)
    run(config_of(folder, iterations=2), stopped)
    files = [path.relative_to(stopped) for path in sorted(stopped.rglob("*")) if path.is_file()]
    for place, chance in tally.places(count):
        name, here = chance.choice(files), folder / "here"
        sealed = place % 3 == 0
        shutil.copytree(stopped, here)
        if sealed:
            name = Path("checkpoints") / checkpoints(here)[-1]
            what = _resealed(chance, here / name)
        else:
            what = _damage(chance, here / name)
        with tally.attempt(f"{'sealed' if sealed else 'damaged'} {name} {what} {place}"):
            if place % 5 == 1:
                answer = command("report", here)
                assert answer.status in (0, 2), answer.errors[:300]
                if answer.status == 2:
                    require_line(answer.errors)
            try:
                run(config, here)
            except REFUSED as error:
                tally.note("refused")
                require_line(f"{error}")
            else:
                if not sealed:
                    assert_same_run(whole, here, skip=(2,))
            left = [p.name for p in here.rglob(".*") if p.suffix == ".tmp" or p.name == ".lock"]
            assert not left, f"left {left}"
        shutil.rmtree(here)


def _damage(chance: random.Random, path: Path) -> str:
    content, kind = path.read_bytes(), chance.random()
    if kind < 0.1:
        path.unlink()
        return "gone"
    if kind < 0.15:
        path.unlink()
        path.mkdir()
        return "a folder"
    if kind < 0.25:
        other = chance.choice([p for p in path.parent.iterdir() if p.is_file()])
        path.write_bytes(other.read_bytes())
        return f"as {other.name}"
    path.write_bytes(damaged(chance, content))
    return "bytes"


def _resealed(chance: random.Random, folder: Path) -> str:
    """Change what a checkpoint says and give it a manifest that fits."""
    if chance.random() < 0.5:
        path = folder / "state.json"
        state = json.loads(path.read_text())
        name = chance.choice(list(state))
        value = chance.choice([None, [], {}, -1, "x", 1e308, [[1]], {"a": 1}, True])
        state = {k: v for k, v in state.items() if k != name} | (
            {} if value is None else {name: value}
        )
        path.write_text(json.dumps(state))
        what = f"state {name} = {value!r}"
    else:
        path = chance.choice(sorted(folder.glob("*.safetensors")))
        tensors = load_file(path)
        name = chance.choice(list(tensors)) if tensors else ""
        changes = [lambda v: v * float("nan"), lambda v: v.flatten()[:1], lambda v: v.double(),
                   lambda v: None, lambda v: v[None]]  # fmt: skip
        what, value = f"{path.name} {name}", None
        if tensors:
            value = chance.choice(changes)(tensors.pop(name))
        save_file(tensors | ({} if value is None else {name: value.contiguous()}), path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {
        path.name: checkpoint_folder.measure(path)
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }
    manifest["sha256"] = checkpoint_folder.seal(manifest)
    (folder / "manifest.json").write_text(checkpoint_folder.to_json(manifest))
    return what
