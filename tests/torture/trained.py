"""Accepted configurations, really trained on a tiny network: to the end, or refused by name."""

import json
import random
import shutil
from functools import cache
from pathlib import Path

from mvczigal_ref.cli.launch import REFUSED
from mvczigal_ref.config import TrainConfig, load_config, to_dict
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system import build_system
from mvczigal_ref.training import trainer
from tests.integration.faults import patched
from tests.integration.runs import metrics, run, small_config, small_flow, write_prompts
from tests.torture.configurations import words
from tests.torture.tally import Tally, require_line

BASES = (
    "tiny", "tiny_released", "tiny_mv_grpo_vlm", "tiny_mv_grpo_llm", "tiny_diffusion_nft",
    "tiny_flow_grpo", "tiny_dance_grpo", "tiny_branch_grpo", "tiny_mix_grpo",
)  # fmt: skip
SMALL = {
    "model.lora_rank": 2, "sampler.num_steps": 2, "run.iterations": 2,
    "run.objects_per_iteration": 2, "run.objects_per_slice": 1, "run.evaluation_noises": 1,
    "constraint.threshold_objects": 0, "optim.decay_iterations": 0, "run.device": "cpu",
}  # fmt: skip
DRAWS = 200  # of changes, until some are accepted
LARGEST = {"run.iterations": 3, "run.objects_per_iteration": 8, "sampler.num_steps": 6,
           "zigzag.rounds": 3, "optim.epochs_per_iteration": 3, "run.evaluation_noises": 2,
           "rollout.members": 6, "model.lora_rank": 16, "model.image_size": 64,
           "sampler.evaluation_steps": 6, "constraint.threshold_objects": 8}  # fmt: skip


def torture(tally: Tally, _: random.Random, count: int, folder: Path) -> None:
    """Draw changes until the loader accepts them, train, and go on once more."""
    tally.limit = 900.0  # on a machine that may do other work
    prompts = write_prompts(folder)
    base = small_config(prompts)
    for place, chance in tally.places(count):
        here, (config, changes) = folder / "here", _accepted(chance, base, prompts)
        network = {"components": small_flow()} if config.model.network == "flow" else {}
        with tally.attempt(f"{config.recipe} {' '.join(changes)[:200]} {place}"):
            loaded: list[bool] = []

            def load(*args: object, loaded: list[bool] = loaded, **more: object) -> object:
                loaded.append(True)
                return build_system(*args, **more)

            try:
                with patched(trainer, "build_system", load):
                    run(config, here, **network)
            except REFUSED as error:
                tally.note(type(error).__name__)
                require_line(str(error))
                # What numbers do is seen in training alone; what settings say, before.
                late = loaded and isinstance(error, ConfigError | CheckpointError)
                if late:
                    raise
            else:
                rows = metrics(here)
                assert [row["iteration"] for row in rows] == list(range(config.run.iterations))
                assert json.loads((here / "summary.json").read_text())
                before = (here / "metrics.jsonl").read_bytes()
                again = {"components": small_flow()} if network else {}  # the first has a LoRA now
                run(config, here, **again)
                assert (here / "metrics.jsonl").read_bytes() == before
        shutil.rmtree(here, ignore_errors=True)


@cache
def _small(name: str, prompts: str) -> TrainConfig:
    """Shrink a recipe; once, since most of what is drawn is refused."""
    small = [f"{setting}={value}" for setting, value in SMALL.items()]
    return load_config(recipe(name), overrides=[*small, f"run.prompts={prompts}"], training=False)


def _accepted(
    chance: random.Random, base: TrainConfig, prompts: str
) -> tuple[TrainConfig, list[str]]:
    """Draw a configuration that the loader takes and that is small enough to train."""
    for _ in range(DRAWS):
        changes = words(chance, most=4)
        name = chance.choice(BASES)
        try:
            config = load_config(_small(name, prompts), overrides=changes)
        except ConfigError:
            continue
        values = to_dict(config)
        sizes = (
            values[s][n] <= most for s, n, most in ((*k.split("."), v) for k, v in LARGEST.items())
        )
        if all(sizes) and config.model.weights in ("tiny", "tiny_flow"):
            return config, changes
    return base, []
