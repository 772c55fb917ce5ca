"""Table of many scorers over a prompt file, in the layout of MV-GRPO's paper."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mvczigal_ref.cli.launch import join
from mvczigal_ref.cli.output import Printed, console_of, write_json
from mvczigal_ref.cli.policy_settings import (
    Folder,
    SettingWords,
    build_policy,
    policy_config,
    policy_prompts,
    require_noises,
)
from mvczigal_ref.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from mvczigal_ref.cli.progress import Steps
    from mvczigal_ref.config import TrainConfig

__all__ = ["Benchmark", "benchmark"]


@dataclass(frozen=True, kw_only=True)
class Benchmark(Printed):
    """Score a policy by many measures on a prompt file, as the table of MV-GRPO's paper.

    Every image is made once. A run stands below its base weights, from the same noises. Judges that
    are served are named by reward.url, such as "reward.url={chat_judge: http://...}".
    """

    recipe: Annotated[
        Positional[str | None], arg(metavar="[RECIPE]", help_behavior_hint="(default: tiny)")
    ] = None
    """Recipe whose weights and sampling are scored, where no run is given."""
    settings: SettingWords = ()
    """Settings to change, such as sampler.num_steps=28."""
    run: Annotated[Folder, arg(help_behavior_hint="(default: none)")] = None
    """Score what this run folder has trained."""
    columns: Annotated[
        tuple[str, ...], arg(metavar="NAME:SCORER ...", help_behavior_hint="(default: the paper's)")
    ] = ()
    """Columns by name and per-view scorer, such as CLIP:clip_score; the paper's eight if none."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the noises."""
    noises: int = 1
    """Initial noises per prompt and seed."""
    prompts: str = "world.held_out"
    """Prompts, in any form of `run.prompts`."""
    device: str = "auto"
    """Torch device, or "auto" for an accelerator where there is one."""


def benchmark(command: Benchmark) -> None:
    """Score a policy and print the table.

    Args:
        command: Policy, columns, prompts and noises.

    Raises:
        ConfigError: If an option, a setting, a column or a prompt is refused.
        CheckpointError: If the run is none.
    """
    require_noises(command.noises, command.seeds)
    from mvczigal_ref.cli.progress import Steps
    from mvczigal_ref.evaluation.benchmark import COLUMNS
    from mvczigal_ref.system.scorers import build_scorers, check_judges

    columns = _columns(command.columns) or dict(COLUMNS)
    config = _config(command, columns)
    check_judges(config, watched=False)
    prompts = policy_prompts(command.prompts, config, noises=command.noises)
    here = join(command.device)
    console = console_of(command, shown=here.is_main)
    scorers = build_scorers(config, device=here.device, watched=False)
    evaluations = len(command.seeds) * (1 if command.run is None else 2)
    with Steps(console, "scoring", evaluations) as steps:
        rows = _rows(command, config, prompts, here, scorers, steps)
    console.print(_table(rows, columns, published=not command.columns))
    if here.is_main:
        write_json(command, _as_json(command, prompts, columns, rows))


def _columns(words: Sequence[str]) -> dict[str, str]:
    """Read the columns, each with a scorer of its own."""
    pairs = [word.partition(":") for word in words]
    columns = {name: scorer for name, _, scorer in pairs}
    if len({*columns.values()}) < len(words) or not all(all(column) for column in columns.items()):
        msg = (
            "`--columns` must name columns as NAME:SCORER, each with a name and a scorer of its "
            f"own; got {list(words)}."
        )
        raise ConfigError(msg)
    return columns


def _config(command: Benchmark, columns: Mapping[str, str]) -> "TrainConfig":
    """Put the columns' scorers in the place of the reward."""
    from mvczigal_ref.config import RewardConfig, load_config

    words = [word for word in command.settings if not word.startswith("reward.")]
    base = policy_config(command.run, None, command.recipe, words)
    advantage = replace(base.advantage, mode="per_view")
    scored = replace(base, reward=RewardConfig(joint="per_view"), advantage=advantage)
    named = json.dumps(dict.fromkeys(columns.values(), 1.0))
    changes = [word for word in command.settings if word.startswith("reward.")]
    for word in changes:
        path = word.partition("=")[0]
        if path in ("reward.per_view", "reward.joint"):
            raise ConfigError(f"`{path}` is what `--columns` sets; leave it out.")
    # As typed words, which may name a reward of the user's own.
    typed = [f"reward.per_view={named}", *changes]
    return load_config(scored, overrides=typed, training=False)


def _rows(
    command: Benchmark,
    config: "TrainConfig",
    prompts: Sequence[str],
    here: Any,  # noqa: ANN401 - a World, which is not imported for help alone
    scorers: dict[str, Any],
    steps: "Steps",
) -> dict[str, dict[str, "Tensor"]]:
    """Score the base weights, and below them the run where there is one."""
    from mvczigal_ref.cli.progress import over_seeds
    from mvczigal_ref.evaluation.benchmark import benchmark as scored
    from mvczigal_ref.system import build_system

    systems = {"base weights": build_system(config, device=here.device, scorers=scorers)}
    if command.run is not None:
        systems["this run"] = build_policy(command.run, config, here.device, scorers)
    same = {"config": config, "world": here, "num_noises": command.noises}
    return {
        name: over_seeds(partial(scored, system, prompts, **same), command.seeds, steps)
        for name, system in systems.items()
    }


def _table(
    rows: Mapping[str, Mapping[str, "Tensor"]], columns: Mapping[str, str], *, published: bool
) -> "Table":
    from rich.table import Table

    from mvczigal_ref.evaluation.benchmark import PUBLISHED
    from mvczigal_ref.evaluation.digits import with_error
    from mvczigal_ref.evaluation.scores import mean_score

    table = Table("policy", *columns, title="mean, standard error")
    for name, numbers in PUBLISHED.items() if published else ():
        table.add_row(f"{name}, published", *(f"{number:.3f}" for number in numbers))
    for name, tables in rows.items():
        cells = []
        for scorer in columns.values():
            mean, error = mean_score(tables[scorer])
            cells.append("\n".join(with_error(mean, error, decimals=3)))
        table.add_row(name, *cells)
    return table


def _as_json(
    command: Benchmark,
    prompts: Sequence[str],
    columns: Mapping[str, str],
    rows: Mapping[str, Mapping[str, "Tensor"]],
) -> dict[str, Any]:
    """Every number; an error that is not finite, of one prompt, is null."""
    from mvczigal_ref.evaluation.scores import score_record

    return {
        "run": None if command.run is None else str(command.run),
        "prompts": list(prompts),
        "seeds": list(command.seeds),
        "noises": command.noises,
        "columns": dict(columns),
        "rows": {
            name: {column: score_record(tables[scorer]) for column, scorer in columns.items()}
            for name, tables in rows.items()
        },
    }
