"""Score a policy on held-out prompts: arguments, comparison, table and file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mvczigal_ref.cli.launch import join
from mvczigal_ref.cli.output import Printed, console_of, write_json
from mvczigal_ref.cli.policy_settings import (
    Folder,
    SettingWords,
    build_policy,
    build_start,
    policy_config,
    policy_prompts,
    require_noises,
)

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from mvczigal_ref.cli.progress import Steps
    from mvczigal_ref.config import TrainConfig
    from mvczigal_ref.distributed import World
    from mvczigal_ref.evaluation.scores import PairedGain
    from mvczigal_ref.system import System

__all__ = ["Evaluate", "evaluate", "evaluate_policy"]


@dataclass(frozen=True, kw_only=True)
class Evaluate(Printed):
    """Score a policy on held-out prompts.

    A run is also compared with what it began with, its base weights or what `--from` named;
    ZMV-Sampling of other weights with plain sampling. Both start from the same noises, and
    the gain is paired.
    """

    recipe: Annotated[
        Positional[str | None], arg(metavar="[RECIPE]", help_behavior_hint="(default: tiny)")
    ] = None
    """Recipe whose weights and sampling are scored, where no run is given."""
    settings: SettingWords = ()
    """Settings to change, such as sampler.num_steps=4."""
    run: Annotated[Folder, arg(help_behavior_hint="(default: none)")] = None
    """Score what this run folder has trained."""
    weights: Annotated[Folder, arg(help_behavior_hint="(default: the recipe's)")] = None
    """Score the weights in this folder."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the noises; 0 is what training itself evaluates on."""
    noises: int = 4
    """Initial noises per prompt and seed."""
    zigzag: bool = False
    """Sample with ZMV-Sampling."""
    prompts: str = "world.held_out"
    """Prompts, in any form of `run.prompts`."""
    device: str = "auto"
    """Torch device, or "auto" for an accelerator where there is one."""


def evaluate(command: Evaluate) -> None:
    """Check a command, then score its policy.

    Args:
        command: Policy, prompts and noises.

    Raises:
        ConfigError: If an option, a setting or a prompt is refused.
        CheckpointError: If the run is none.
    """
    require_noises(command.noises, command.seeds)
    config = policy_config(
        command.run, command.weights, command.recipe, command.settings, also=("reward.",)
    )
    from mvczigal_ref.config.scorer_names import check_scorer_names

    check_scorer_names(config.reward)
    prompts = policy_prompts(command.prompts, config, noises=command.noises)
    evaluate_policy(command, config, prompts)


def evaluate_policy(command: Evaluate, config: "TrainConfig", prompts: Sequence[str]) -> None:
    """Score a policy, compare it where there is something to compare it with, and print both.

    Args:
        command: Policy, noises and file.
        config: Sampling and scorers.
        prompts: Prompts to score on, checked.
    """
    from mvczigal_ref.cli.display import gain_table
    from mvczigal_ref.cli.progress import Steps
    from mvczigal_ref.config.scorer_names import reward_unit
    from mvczigal_ref.evaluation.scores import paired_gain
    from mvczigal_ref.system.scorers import build_scorers
    from mvczigal_ref.training.prompts import warn_of_cut_prompts

    here = join(command.device)
    console, unit = console_of(command, shown=here.is_main), reward_unit(config.reward)
    scorers = build_scorers(config, device=here.device, watched=False)
    system = build_policy(command.run, config, here.device, scorers)
    if here.is_main:
        warn_of_cut_prompts(system.components, prompts, setting="--prompts")
    evaluations = len(command.seeds) * (2 if command.run is not None or command.zigzag else 1)
    with Steps(console, "scoring", evaluations) as steps:
        scores = _scores(system, command, config, prompts, here, steps, zigzag=command.zigzag)
        against, other = _reference(system, command, config, prompts, here, steps)
    console.print(_score_table(scores, command.seeds, command.noises, unit=unit))
    gains = {name: paired_gain(other[name], table) for name, table in scores.items() if other}
    if gains:
        now = "ZMV-Sampling" if against == "plain sampling" else "this run"
        console.print(gain_table(gains, unit=unit, before=against, after=now))
    if here.is_main:
        write_json(command, _as_json(command, config, prompts, scores, against, gains))


def _scores(
    system: "System",
    command: Evaluate,
    config: "TrainConfig",
    prompts: Sequence[str],
    here: "World",
    steps: "Steps",
    *,
    zigzag: bool,
) -> dict[str, "Tensor"]:
    """Every score that there is: one row per seed and noise, one column per prompt."""
    from mvczigal_ref.cli.progress import over_seeds
    from mvczigal_ref.evaluation.evaluate import evaluate
    from mvczigal_ref.report.run_content import score_tables

    def measure(*, seed: int, progress: Callable[[int, int], None]) -> dict[str, "Tensor"]:
        scores = evaluate(
            system, prompts, config=config, world=here, num_noises=command.noises, seed=seed,
            zigzag=zigzag, keep_images=0, progress=progress,
        )  # fmt: skip
        return {name: getattr(scores, table) for name, table in score_tables(config).items()}

    return over_seeds(measure, command.seeds, steps)


def _reference(
    system: "System",
    command: Evaluate,
    config: "TrainConfig",
    prompts: Sequence[str],
    here: "World",
    steps: "Steps",
) -> tuple[str, dict[str, "Tensor"]]:
    """Name what is compared with, and its scores on the same noises; nothing if nothing is."""
    if command.run is not None:
        same = {"per_view": system.per_view, "joint": system.joint}
        start, name = build_start(command.run, config, here.device, same)
        return name, _scores(start, command, config, prompts, here, steps, zigzag=command.zigzag)
    if command.zigzag:
        plain = _scores(system, command, config, prompts, here, steps, zigzag=False)
        return "plain sampling", plain
    return "", {}


def _score_table(
    scores: Mapping[str, "Tensor"], seeds: Sequence[int], noises: int, *, unit: str
) -> "Table":
    from rich.table import Table

    from mvczigal_ref.cli.display import score_heading
    from mvczigal_ref.evaluation.digits import with_error
    from mvczigal_ref.evaluation.scores import mean_score

    table = Table(score_heading(unit), "seed")
    for heading in ("mean", "standard error"):
        table.add_column(heading, justify="right")
    for name, values in scores.items():
        rows = [(str(seed), part) for seed, part in zip(seeds, values.split(noises), strict=True)]
        for label, part in rows if len(rows) == 1 else [*rows, ("all", values)]:
            table.add_row(name, label, *with_error(*mean_score(part)))
    return table


def _as_json(
    command: Evaluate,
    config: "TrainConfig",
    prompts: Sequence[str],
    scores: Mapping[str, "Tensor"],
    against: str,
    gains: Mapping[str, "PairedGain"],
) -> dict[str, Any]:
    """Everything, a list per prompt; an error that is not finite, of one prompt, is null."""
    from mvczigal_ref.config import to_dict
    from mvczigal_ref.evaluation.scores import score_record
    from mvczigal_ref.files import finite_values

    return {
        "config": to_dict(config),
        "run": None if command.run is None else str(command.run),
        "prompts": list(prompts),
        "seeds": list(command.seeds),
        "noises": command.noises,
        "zigzag": command.zigzag,
        "scores": {name: score_record(table) for name, table in scores.items()},
        "against": against or None,
        "gains": {name: finite_values(asdict(gain)) for name, gain in gains.items()},
    }
