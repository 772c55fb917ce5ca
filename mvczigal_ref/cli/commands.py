"""What each command does, up to where it needs torch: a wrong setting is told at once."""

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mvczigal_ref.cli.arguments import (
    Check,
    Command,
    ConvertReward,
    Enhance,
    Evaluate,
    Export,
    Plan,
    Pretrain,
    Recipes,
    Report,
    Reproduce,
    Sample,
    Score,
    ServeReward,
    Train,
)
from mvczigal_ref.cli.launch import launch, starts_processes
from mvczigal_ref.config import RewardConfig, TrainConfig, from_dict, load_config, to_dict
from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.recipes import RECIPES, recipe
from mvczigal_ref.tiny_world.grammar import parse
from mvczigal_ref.training.prompts import in_world, read_prompts, run_prompts

__all__ = ["run"]

_STEPS = 8  # of a sample, where nothing else says
_RECIPE = "tiny"
_FRONT = -90.0  # azimuth of the first camera of every rig [deg]
# What a policy reads once it is trained; any other setting would change nothing, in silence.
_READ_BY_A_POLICY = ("sampler.", "flow.shift", "zigzag.", "run.objects_per_slice")
_READ_OF_A_RUN = ("model.azimuths", "model.elevation", "model.views_per_decode")


def run(command: Command) -> None:
    """Do what was asked for.

    Args:
        command: As the command line read it.
    """
    match command:
        case Train():
            _train(command)
        case Sample():
            _sample(command)
        case Evaluate():
            _evaluate(command)
        case Export():
            from mvczigal_ref.cli.exporting import export_run

            print(export_run(command))
        case Report():
            from mvczigal_ref.report import write_report

            print(write_report(command.run))
        case Score():
            _score(command)
        case ServeReward():
            settings = _reward_settings([command.name], command)
            from mvczigal_ref.cli.scoring import serve_reward

            serve_reward(command, settings)
        case ConvertReward():
            from mvczigal_ref.cli.scoring import convert_reward

            print(convert_reward(command))
        case Plan():
            config = _recipe_config(command)
            from mvczigal_ref.cli.preflight import run_plan

            run_plan(config, processes=command.processes, file=command.json)
        case Check():
            config = _recipe_config(command)
            run_prompts(config)
            from mvczigal_ref.cli.preflight import run_check

            run_check(config)
        case Enhance():
            from mvczigal_ref.cli.comparing import enhance

            enhance(command)
        case Reproduce():
            _reproduce(command)
        case Pretrain():
            from mvczigal_ref.cli.pretraining import pretrain_weights

            pretrain_weights(command)
        case Recipes():
            _recipes()


def _recipe_config(command: Train | Plan | Check) -> TrainConfig:
    return load_config(recipe(command.recipe), file=command.config, overrides=command.settings)


def _train(command: Train) -> None:
    config = _recipe_config(command)
    with warnings.catch_warnings():  # training itself warns
        warnings.simplefilter("ignore")
        run_prompts(config)
    from mvczigal_ref.cli.training import train_run, train_words

    if starts_processes(command.processes):
        if status := launch(command.processes, train_words(command)):
            raise SystemExit(status)
    else:
        train_run(command, config)


def _sample(command: Sample) -> None:
    if not command.prompts:
        msg = "`prompts` must hold at least one; got none."
        raise ConfigError(msg)
    if command.run is not None and command.lora is not None:
        msg = "`--run` brings what it has trained; leave out `--lora`, or name weights or a recipe."
        raise ConfigError(msg)
    words = [*_chosen(command), *command.settings]
    config = _policy_config(command.run, command.weights, command.recipe, words)
    world = in_world(config, scored=False)
    prompts = [str(parse(prompt)) for prompt in command.prompts] if world else command.prompts
    from mvczigal_ref.cli.policies import sample_prompts

    sample_prompts(command, config, prompts)


def _chosen(command: Sample) -> list[str]:
    """Say options of a sample as settings."""
    words, steps = [], command.steps
    if steps is None and command.run is None and command.recipe is None:
        steps = _STEPS
    if steps is not None:
        words += [f"sampler.num_steps={steps}", "sampler.evaluation_steps=0"]
    if command.guidance is not None:
        words.append(f"sampler.guidance_scale={command.guidance}")
    azimuths = list(command.azimuths)
    if command.views is not None:
        if azimuths or command.views < 1:
            msg = (
                "`--views` must be at least 1, and `--azimuths` then be left out; got "
                f"{command.views} and {azimuths}."
            )
            raise ConfigError(msg)
        azimuths = [_FRONT + 360.0 * view / command.views for view in range(command.views)]
    if azimuths:
        words.append(f"model.azimuths={azimuths}")
    if command.elevation is not None:
        words.append(f"model.elevation={command.elevation}")
    return words


def _evaluate(command: Evaluate) -> None:
    if command.noises < 1 or len(set(command.seeds)) < max(1, len(command.seeds)):
        msg = (
            "`--noises` must be at least 1 and `--seeds` must differ; got "
            f"{command.noises} and {command.seeds}."
        )
        raise ConfigError(msg)
    config = _policy_config(
        command.run, command.weights, command.recipe, command.settings, also=("reward.",)
    )
    world = in_world(config)
    prompts = read_prompts(command.prompts, setting="--prompts", world=world)
    prompts = [str(parse(prompt)) for prompt in prompts] if world else prompts
    from mvczigal_ref.cli.policies import evaluate_policy

    evaluate_policy(command, config, prompts)


def _reproduce(command: Reproduce) -> None:
    if not command.sets or not command.seeds or len({*command.seeds}) < len(command.seeds):
        msg = (
            "`--sets` and `--seeds` must hold at least one, and the seeds must differ; got "
            f"{command.sets} and {command.seeds}."
        )
        raise ConfigError(msg)
    if any(word.startswith("run.seed=") for word in command.settings):
        raise ConfigError("`run.seed` is what `--seeds` sets; leave it out.")
    from mvczigal_ref.cli.comparing import reproduce

    reproduce(command)


def _score(command: Score) -> None:
    _refuse_other_settings(command)
    if not command.images or not command.reward:
        msg = "`score` needs pictures and, after `--reward`, the name of a scorer."
        raise ConfigError(msg)
    if command.row is not None and command.row < 1:
        raise ConfigError(f"`--row` must be at least 1; got {command.row}.")
    settings = _reward_settings(command.reward, command)
    from mvczigal_ref.cli.scoring import score_images

    score_images(command, settings)


def _refuse_other_settings(command: Score | ServeReward) -> None:
    for word in command.settings:
        if not word.startswith("reward."):
            path = word.partition("=")[0]
            absent = ", and there is no such file" if isinstance(command, Score) else ""
            msg = (
                f"{quoted(word)} was read as a setting{absent}; `{path}` changes nothing here, "
                "only settings that start with `reward.` do."
            )
            raise ConfigError(msg)


def _reward_settings(names: Sequence[str], command: Score | ServeReward) -> RewardConfig:
    """Read where scorers are to be found, from options and from `reward.` settings."""
    _refuse_other_settings(command)
    values = to_dict(load_config(overrides=command.settings, training=False))["reward"]
    for field, option, place in (
        ("weights", "--weights", command.weights),
        ("tokenizers", "--tokenizer", command.tokenizer),
    ):
        if place is None:
            continue
        if len(names) != 1:
            msg = f"`{option}` is for one reward; got {len(names)}. Use `reward.{field}={{...}}`."
            raise ConfigError(msg)
        values[field][names[0]] = place
    return from_dict({"reward": values}).reward


def _policy_config(
    run: Path | None,
    weights: Path | None,
    name: str | None,
    words: Sequence[str],
    *,
    also: tuple[str, ...] = (),
) -> TrainConfig:
    """Find out how a policy is to be sampled, from a run or from a recipe."""
    if run is not None and (weights is not None or name is not None):
        msg = "`--run` brings its own weights and settings; leave out `--weights` and the recipe."
        raise ConfigError(msg)
    if run is not None:
        from mvczigal_ref.report.run_folder import run_config

        base = run_config(run)
    else:
        base = recipe(name or _RECIPE)
    config = load_config(base, overrides=words, training=False)
    allowed = (*_READ_BY_A_POLICY, *also, *(_READ_OF_A_RUN if run is not None else ("model.",)))
    for word in words:
        if not word.startswith(allowed):
            path = word.partition("=")[0]
            read = ", ".join(f"`{start}`" for start in allowed)
            msg = f"`{path}` changes nothing here; only settings that start with {read} do."
            raise ConfigError(msg)
    return (
        config if weights is None else load_config(config, overrides=[f"model.weights={weights}"])
    )


def _recipes() -> None:
    table = Table("recipe", "what it is")
    for name, function in RECIPES.items():
        table.add_row(name, (inspect.getdoc(function) or "").partition("\n")[0])
    Console().print(table)
