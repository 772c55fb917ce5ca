"""Configurations: any values of any settings, through the loader and the command line."""

import json
import random
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from mvczigal_ref.config import TrainConfig, from_dict, load_config, to_dict
from mvczigal_ref.config.fingerprint import fingerprint
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system import system
from tests.integration.faults import patched
from tests.torture.damage import damaged
from tests.torture.tally import Tally, command, require_line

ODD = (
    "", "null", "none", "true", "no", "0", "1", "2", "3", "-1", "7", "60", "0.5", "1e-3", "1e300",
    "-1e-300", "nan", ".inf", "1_0", "0x10", "1e3", "10**12", "18446744073709551616", "9" * 5000,
    "bogus", "lcm", "ddim", "flow", "fp16", "bf16", "cpu", "chat", "world", "world.per_view", "[]",
    "[0]", "[1, 2, 3]", "{}", "{a: 1}", "{a: {b: {c: 1}}}", "[" * 3000, "{? [1] : 2}", "!!int x",
    "!!python/object:os.system", "&a [*a]", "*a", "2020-99-99", "'\\e[2J'", "\u0663", "a: b",
    "/absent", "~", "\"", "%", "x" * 3000, "- 1", "1:30", "017", "|", "!!binary x", "\t",
)  # fmt: skip
LOADED = "the weights would be loaded here"
TRAINING = ("tiny", "tiny_mv_grpo_vlm", "tiny_diffusion_nft", "tiny_branch_grpo", "lcm_sdxl_simple")
ABSENT = "Download it with `hf download"


@cache
def settings() -> dict[str, Any]:
    """Name every setting with its default."""
    values = to_dict(TrainConfig())
    return {
        f"{section.name}.{name}": value
        for section in fields(TrainConfig)
        if isinstance(values[section.name], dict)
        for name, value in values[section.name].items()
    }


def words(chance: random.Random, most: int = 3) -> list[str]:
    """Draw some changes: near the default, another setting's value, or an odd text."""
    chosen = []
    for name in chance.sample(list(settings()), chance.randrange(1, most + 1)):
        kind = chance.random()
        default = settings()[name]
        if kind < 0.4 and isinstance(default, int | float) and not isinstance(default, bool):
            value = str(default * chance.choice([0, 1, 2, 3, 0.5, -1]) + chance.choice([0, 0, 1]))
        elif kind < 0.55:
            value = json.dumps(chance.choice(list(settings().values())))
        else:
            value = chance.choice(ODD)
        chosen.append(f"{name}={value}")
    return chosen


def torture(tally: Tally, chance: random.Random, count: int, folder: Path) -> None:
    """Load, and send a tenth through `train` and `check` up to where the weights are read."""
    tally.limit = 30.0

    def stop(*_: object, **__: object) -> None:
        raise CheckpointError(LOADED)

    with patched(system, "load_network", stop):
        for place in range(count):
            name, changes = chance.choice(TRAINING), words(chance)
            label = f"{name} {' '.join(changes)[:200]}"
            with tally.attempt(f"{place} {label}"):
                if place % 10 == 0:
                    _command(tally, folder, name, changes)
                elif place % 10 == 1:
                    _file(tally, chance, folder, name)
                else:
                    _load(tally, name, changes)


def _load(tally: Tally, name: str, changes: list[str]) -> None:
    """Accept or refuse; what is accepted comes back from its own text."""
    try:
        config = load_config(recipe(name), overrides=changes)
    except ConfigError as error:
        tally.note("refused")
        # Contradictions name the settings that contradict; one of a section that was changed.
        require_line(str(error), *(word.split(".")[0] for word in changes), "settings", "`")
        return
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert fingerprint(config)


def _file(tally: Tally, chance: random.Random, folder: Path, name: str) -> None:
    """Read a damaged file of settings."""
    path = folder / "settings.json"
    path.write_bytes(damaged(chance, json.dumps(to_dict(recipe(name))).encode()))
    try:
        load_config(recipe(name), file=path)
    except ConfigError as error:
        tally.note("refused")
        require_line(str(error))


def _command(tally: Tally, folder: Path, name: str, changes: list[str]) -> None:
    """Refuse in one line before the weights are read, and in `check` what `train` refuses."""
    out = folder / "run"
    trained = command("train", name, "--out", out, *changes)
    checked = command("check", name, *changes)
    for answer in (trained, checked):
        assert answer.status == 2, f"status {answer.status}: {answer.errors[:300]}"
        told = [line for line in answer.errors.splitlines() if "warning: " not in line]
        require_line("\n".join(told))
    assert not out.exists(), f"left {sorted(path.name for path in out.iterdir())}"
    if ABSENT in trained.errors:  # a published scorer's weights, which `check` reads after networks
        tally.note("weights absent")
    elif LOADED not in trained.errors:
        tally.note("refused")
        assert LOADED not in checked.errors, f"check accepts: {trained.errors[:300]}"
