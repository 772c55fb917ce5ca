"""Compare the papers' methods, and vary prompts ahead of training: arguments and work."""

from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mvczigal_ref.cli.comparing_arguments import Reproduce
from mvczigal_ref.cli.output import Quiet, console_of, say, write_json
from mvczigal_ref.cli.policy_settings import require_folder
from mvczigal_ref.errors import ConfigError

if TYPE_CHECKING:
    from mvczigal_ref.cli.display import TrainingDisplay
    from mvczigal_ref.language.protocol import LanguageModel
    from mvczigal_ref.reproduce import Comparison, PlannedRun

__all__ = ["Enhance", "enhance", "reproduce"]


@dataclass(frozen=True, kw_only=True)
class Enhance(Quiet):
    """Vary prompts by a language model, ahead of training; repeat the command to continue it.

    The file is what `condition.enhancer=stored` reads.
    """

    prompts: Annotated[Positional[str], arg(metavar="PROMPTS")]
    """Text file with one prompt per line, or world.train or world.held_out."""
    out: Annotated[Path, arg(metavar="FILE")]
    """File of the captions, as JSON lines."""
    model: str
    """Name of the served model, or folder of one to run here."""
    url: Annotated[str | None, arg(metavar="URL", help_behavior_hint="(default: none)")] = None
    """OpenAI-compatible endpoint that serves it, such as http://127.0.0.1:8000/v1."""
    api_key_env: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Environment variable that holds its key."""
    captions: int = 4
    """Captions per prompt."""
    edits: Annotated[tuple[str, ...], arg(metavar="[NAME ...]", help_behavior_hint="")] = ()
    """Edits that may be asked for: add, delete, rewrite; all if none is named."""
    seed: int = 0
    """Seed of the edits drawn and of the answers."""
    workers: int = 1
    """Prompts that are sent to a served model at once."""


def reproduce(command: Reproduce) -> None:
    """Compare every method of the papers on the tiny worlds; write tables and pictures.

    Args:
        command: Comparisons, seeds, settings and folder.

    Raises:
        CheckpointError: If a run folder holds a run of other settings.
        ConfigError: If a setting is refused.
        KeyboardInterrupt: After Ctrl-C; how to go on has been printed.
    """
    if not command.sets or len({*command.seeds}) < len(command.seeds):
        msg = (
            "`--sets` must hold at least one, and `--seeds` must differ; got "
            f"{command.sets} and {command.seeds}."
        )
        raise ConfigError(msg)
    if any(word.startswith("run.seed=") for word in command.settings):
        raise ConfigError("`run.seed` is what `--seeds` sets; leave it out.")
    if command.what == "claims":
        from mvczigal_ref.cli.claiming import reproduce_claims

        reproduce_claims(command)
        return
    if command.claim or command.iterations or command.list or command.read_only:
        msg = "`--claim`, `--iterations`, `--list` and `--read-only` are for claims"
        raise ConfigError(f"{msg}: `mvczigal reproduce claims ...`.")
    out = command.out or Path("runs/reproduce")
    seeds = command.seeds or (0, 1, 2)
    from mvczigal_ref.cli.display import TrainingDisplay
    from mvczigal_ref.cli.progress import Steps
    from mvczigal_ref.files import atomic_write
    from mvczigal_ref.reproduce import (
        COMPARISONS,
        compare,
        figure,
        markdown,
        planned_runs,
        summarise,
        to_text,
    )

    require_folder(out, written=lambda name: name.removesuffix(".json") in COMPARISONS)
    console = console_of(command)
    methods = sum(len(COMPARISONS[name].methods) for name in command.sets)
    numbers = count(1)

    def tell(run: "PlannedRun") -> "TrainingDisplay":
        place = f"run {next(numbers)} of {methods * len(seeds)}"
        recipe, of = run.config.recipe, run.config.run
        console.print(
            f"{place}: {recipe}, seed {of.seed}, {of.iterations} iterations", style="bold"
        )
        return TrainingDisplay(console, run.config)

    with Steps(console, "counting the network calls of every method", methods) as steps:
        planned = {
            name: planned_runs(
                COMPARISONS[name], out / name, seeds=seeds,
                overrides=command.settings, progress=steps.advance,
            )
            for name in command.sets
        }  # fmt: skip
    for run in chain.from_iterable(chain.from_iterable(planned.values())):
        require_folder(run.folder, run=True)
    content = {}
    for name, runs in planned.items():
        try:
            comparison = compare(COMPARISONS[name], runs, tell=tell)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on, and repeats no finished run")
            raise
        summary = summarise(comparison)
        text = markdown(summary)
        content[name] = _content(comparison)
        atomic_write(out / f"{name}.md", text)
        atomic_write(out / f"{name}.json", to_text(summary))
        atomic_write(out / f"{name}.svg", figure(summary))
        say(console, text)
        say(console, f"table, numbers and picture: {out / name}.md, .json, .svg")
    write_json(command, content)


def _content(comparison: "Comparison") -> list[dict[str, Any]]:
    """Give a comparison as JSON values, one record per method."""
    from mvczigal_ref.reproduce import gain_over_seeds

    records = []
    for outcome in comparison.outcomes:
        gains = {name: gain_over_seeds(table) for name, table in outcome.gains.items()}
        record = {
            "method": outcome.method.name, "recipe": outcome.method.recipe,
            "iterations": outcome.iterations, "calls": outcome.calls, "seconds": outcome.seconds,
            "before": dict(outcome.before),
            "gains": {
                name: {"gain": gain, "standard_error": error}
                for name, (gain, error) in gains.items()
            },
        }  # fmt: skip
        records.append(record)
    return records


def enhance(command: Enhance) -> None:
    """Vary prompts by a language model and store the captions.

    Args:
        command: Prompts, model and file.

    Raises:
        ConfigError: If prompts or model cannot be used, or the file was made in another way.
        SystemExit: With status 1 if captions of some prompts could not be made.
    """
    from mvczigal_ref.cli.progress import Steps
    from mvczigal_ref.condition.offline import OfflineEnhancer
    from mvczigal_ref.condition.protocol import CaptionError
    from mvczigal_ref.condition.stored import enhance_prompts
    from mvczigal_ref.config.types import MOST_AT_ONCE
    from mvczigal_ref.training.prompts import read_prompts

    console, prompts = console_of(command), read_prompts(command.prompts, setting="PROMPTS")
    edits = _edits(command)  # before a model is loaded
    for option, number in (("--captions", command.captions), ("--workers", command.workers)):
        if not 1 <= number <= MOST_AT_ONCE:
            raise ConfigError(f"`{option}` must be 1 to {MOST_AT_ONCE}; got {number}.")
    try:
        enhancer = OfflineEnhancer(_model(command), num_captions=command.captions, edits=edits)
        with Steps(console, "captions", len(set(prompts))) as steps:
            done = enhance_prompts(
                prompts, command.out, enhancer=enhancer, seed=command.seed,
                model_name=command.model, workers=command.workers,
                progress=lambda finished, _: steps.reach(finished),
            )  # fmt: skip
    except (CaptionError, ValueError) as error:
        raise ConfigError(str(error)) from error
    say(console, f"{command.out}: {done.written} prompts written, {done.skipped} were there")
    for prompt, why in done.refused.items():
        say(console, f"no captions for {prompt!r}: {why}")
    if done.refused:
        raise SystemExit(1)


def _edits(command: Enhance) -> dict[str, str]:
    """Choose what a question may ask for."""
    from mvczigal_ref.condition.offline import EDITS

    unknown = [name for name in command.edits if name not in EDITS]
    if unknown:
        raise ConfigError(f"`--edits` must be some of {list(EDITS)}; got {unknown}.")
    return {name: EDITS[name] for name in command.edits or EDITS}


def _model(command: Enhance) -> "LanguageModel":
    """Load the model that is asked, or name the endpoint that serves it."""
    import torch

    from mvczigal_ref.language.chat import ChatEndpoint
    from mvczigal_ref.language.local import LocalLanguageModel

    if command.url is None:
        if command.workers != 1:
            msg = f"`--workers` is for a served model; got {command.workers} without `--url`."
            raise ConfigError(msg)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return LocalLanguageModel.load(Path(command.model).expanduser(), device=device)
    return ChatEndpoint(command.url, command.model, api_key_env=command.api_key_env)
