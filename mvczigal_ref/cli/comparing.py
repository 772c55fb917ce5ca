"""The comparison of methods, and captions made ahead of training, as a person asks for them."""

from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from mvczigal_ref.cli.arguments import Enhance, Reproduce
from mvczigal_ref.cli.display import TrainingDisplay
from mvczigal_ref.condition.offline import EDITS, OfflineEnhancer
from mvczigal_ref.condition.protocol import CaptionError
from mvczigal_ref.condition.stored import enhance_prompts
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.files import atomic_write
from mvczigal_ref.language.chat import ChatEndpoint
from mvczigal_ref.language.local import LocalLanguageModel
from mvczigal_ref.language.protocol import LanguageModel
from mvczigal_ref.reproduce import (
    COMPARISONS,
    PlannedRun,
    compare,
    figure,
    markdown,
    planned_runs,
)
from mvczigal_ref.training.prompts import read_prompts

__all__ = ["enhance", "reproduce"]


def reproduce(command: Reproduce) -> None:
    """Compare every method of the papers on the tiny worlds; write tables and pictures.

    Args:
        command: What was asked for.

    Raises:
        CheckpointError: If a run folder holds a run of other settings.
        ConfigError: If a setting is refused.
        KeyboardInterrupt: After Ctrl-C; it has been said how to go on.
    """
    console = Console()

    def tell(run: PlannedRun) -> TrainingDisplay:
        recipe, of = run.config.recipe, run.config.run
        console.print(f"{recipe}, seed {of.seed}: {of.iterations} iterations", style="bold")
        return TrainingDisplay(console, run.config)

    with console.status("counting the network calls of every method"):
        planned = {
            name: planned_runs(
                COMPARISONS[name], command.out / name, seeds=command.seeds,
                overrides=command.settings,
            )
            for name in command.sets
        }  # fmt: skip
    for name, runs in planned.items():
        try:
            found = compare(COMPARISONS[name], runs, tell=tell)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on, and repeats no finished run")
            raise
        text = markdown(found)
        atomic_write(command.out / f"{name}.md", text)
        atomic_write(command.out / f"{name}.svg", figure(found))
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        console.print(escape(f"table and picture: {command.out / name}.md, .svg"))


def enhance(command: Enhance) -> None:
    """Vary prompts by a language model and store the captions.

    Args:
        command: What was asked for.

    Raises:
        ConfigError: If prompts or model cannot be used, or the file was made in another way.
        SystemExit: With status 1 if captions of some prompts could not be made.
    """
    console, prompts = Console(), read_prompts(command.prompts, setting="PROMPTS")
    edits = _edits(command)  # before a model is loaded
    try:
        enhancer = OfflineEnhancer(_model(command), num_captions=command.captions, edits=edits)
        done = enhance_prompts(
            prompts, command.out, enhancer=enhancer, seed=command.seed, model_name=command.model,
            workers=command.workers, console=console,
        )  # fmt: skip
    except (CaptionError, ValueError) as error:
        raise ConfigError(str(error)) from error
    console.print(
        f"{command.out}: {done.written} prompts written, {done.skipped} were there",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    for prompt, why in done.refused.items():
        console.print(f"no captions for {prompt!r}: {why}", markup=False, soft_wrap=True)
    if done.refused:
        raise SystemExit(1)


def _edits(command: Enhance) -> dict[str, str]:
    """Choose what a question may ask for."""
    unknown = [name for name in command.edits if name not in EDITS]
    if unknown:
        raise ConfigError(f"`--edits` must be some of {list(EDITS)}; got {unknown}.")
    return {name: EDITS[name] for name in command.edits or EDITS}


def _model(command: Enhance) -> LanguageModel:
    """Find who is asked."""
    if command.url is None:
        if command.workers != 1:
            msg = f"`--workers` is for a served model; got {command.workers} without `--url`."
            raise ConfigError(msg)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return LocalLanguageModel.load(Path(command.model).expanduser(), device=device)
    return ChatEndpoint(command.url, command.model, api_key_env=command.api_key_env)
