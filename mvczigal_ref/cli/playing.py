"""Serve a page to play with a policy: arguments, loading and address."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from mvczigal_ref.cli.launch import join
from mvczigal_ref.cli.policy_settings import (
    SettingWords,
    build_policy,
    build_start,
    policy_config,
)
from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.training.stops import handling

if TYPE_CHECKING:
    from mvczigal_ref.config import TrainConfig
    from mvczigal_ref.demo import Playground

__all__ = ["Play", "page_of", "play"]

_STEPS = 8  # of a sample, where nothing else says
_PROMPT = "a red cube with a white nose"
_GLANCE_S = 0.2  # between two checks for a stop


@dataclass(frozen=True, kw_only=True)
class Play:
    """Serve a page on which to sample a policy: prompt, seed, steps, guidance and zigzag.

    A run is shown beside what it began with, other weights by ZMV-Sampling beside plain sampling.
    Needs the extra `demo`.
    """

    folder: Annotated[
        Positional[Path | None],
        arg(metavar="[RUN|WEIGHTS]", help_behavior_hint="(default: the shipped weights)"),
    ] = None
    """Run folder, or folder of weights."""
    settings: SettingWords = ()
    """Settings to change, such as reward.per_view=world.per_view."""
    recipe: Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: tiny)")] = (
        None
    )
    """Recipe whose weights and sampling are used, where no run is given."""
    lora: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: none)")] = None
    """Load this trained LoRA: a PEFT folder, or a file of diffusers or of the released code."""
    prompt: str = _PROMPT
    """Prompt that the page opens with."""
    scores: bool = True
    """Score the samples by the run's or recipe's scorers."""
    host: str = "127.0.0.1"
    """Address to listen at; whoever reaches it can use the page."""
    port: int = 7860
    """Port to listen at."""
    device: str = "auto"
    """Torch device, or "auto" for an accelerator where there is one."""


def play(command: Play) -> None:
    """Serve the page until Ctrl-C or SIGTERM; never through a public link.

    No picture of it is left on the disk afterwards.

    Args:
        command: Policy and address.

    Raises:
        ConfigError: If a setting is refused, Gradio is missing or the address is none.
        CheckpointError: If run or weights cannot be read.
    """
    page = page_of(command)
    with _stop_asked() as asked, page.folder:
        try:
            _, address, _ = page.launch(
                server_name=command.host, server_port=command.port, share=False, quiet=True,
                prevent_thread_lock=True,
            )  # fmt: skip
        except (OSError, OverflowError) as error:
            msg = f"cannot serve at `--host` {command.host!r}, `--port` {command.port}: {error}"
            raise ConfigError(msg) from error
        print(f"the page is at {address}; Ctrl-C ends it", flush=True)
        try:
            while not asked.wait(_GLANCE_S):  # on Windows a longer wait would hear no Ctrl-C
                pass
        finally:
            page.close(verbose=False)  # which removes Gradio's own copies


@contextmanager
def _stop_asked() -> Iterator[threading.Event]:
    """Set an event at SIGTERM and at Ctrl-C, in place of an end without tidying."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        asked.set()

    with handling((signal.SIGTERM, signal.SIGINT), ask):
        yield asked


def page_of(command: Play) -> Any:  # noqa: ANN401 - of Gradio
    """Load the policy and build its page, for :func:`play` or for a Space's ``app.py``.

    Args:
        command: Policy.

    Returns:
        Gradio's ``Blocks``.

    Raises:
        ConfigError: If a setting is refused or Gradio is missing; no library of models is
            imported then.
    """
    if not 0 <= command.port <= 65535:
        raise ConfigError(f"`--port` must be 0 to 65535; got {command.port}.")
    run, config = _config(command)
    if find_spec("gradio") is None:
        raise ConfigError(
            "`play` needs the package gradio, which is not installed. Run `pip install "
            '"mvczigal-ref[demo]"`, in a clone `pip install ".[demo]"`.'
        )
    print("loading models", flush=True)
    # What follows imports torch and the libraries of models, most of the wait.
    from mvczigal_ref.demo.page import build_page

    return build_page(_playground(command, run, config), command.prompt)


def _playground(command: Play, run: Path | None, config: "TrainConfig") -> "Playground":
    """Load the policy, and beside a run's what it began with."""
    from mvczigal_ref.demo import Playground
    from mvczigal_ref.system.scorers import build_scorers, no_scorers

    device = join(command.device).device
    scorers = (
        build_scorers(config, device=device, watched=False) if command.scores else no_scorers()
    )
    system = build_policy(run, config, device, scorers, lora=command.lora)
    base = None if run is None else build_start(run, config, device, scorers)[0]
    return Playground(config=config, system=system, base=base, scored=command.scores)


def _config(command: Play) -> tuple[Path | None, "TrainConfig"]:
    """Tell a run from weights, and give the settings."""
    folder, words = command.folder, list(command.settings)
    if folder is not None and folder.is_file():
        from mvczigal_ref.models.single_files import refuse_single_file

        refuse_single_file("play FOLDER", folder)
    if folder is not None and not folder.is_dir():
        msg = f"`play` takes a run folder or a folder of weights; got {quoted(str(folder))}."
        raise ConfigError(msg)
    run = folder if folder is not None and (folder / "config.json").is_file() else None
    if run is not None and (command.lora is not None or command.recipe is not None):
        msg = "a run brings its own weights and settings; leave out `--lora` and `--recipe`."
        raise ConfigError(msg)
    if run is None and command.recipe is None:
        words = [f"sampler.num_steps={_STEPS}", "sampler.evaluation_steps=0", *words]
    weights = folder if run is None else None
    return run, policy_config(run, weights, command.recipe, words, also=("reward.",))
