"""Sample from a policy: arguments, progress, and the pictures."""

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mvczigal_ref.cli.launch import join
from mvczigal_ref.cli.output import Quiet, console_of
from mvczigal_ref.cli.policy_settings import (
    Folder,
    SettingWords,
    build_policy,
    policy_config,
    require_folder,
)
from mvczigal_ref.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from mvczigal_ref.config import TrainConfig
    from mvczigal_ref.shapes import Images
    from mvczigal_ref.system import System

__all__ = ["Sample", "sample", "sample_prompts"]

_STEPS = 8  # of a sample, where nothing else says
_MOST_VIEWS = 360  # one per degree
_FRONT = -90.0  # azimuth of the first camera of every rig [deg]


@dataclass(frozen=True, kw_only=True)
class Sample(Quiet):
    """Sample prompts into pictures: a sheet, and of each object its views, a grid and a turn."""

    prompts: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="PROMPT [PROMPT ...]", help_behavior_hint="(required)"),
    ]
    """Prompts, such as "a red cube with a white nose"."""
    settings: SettingWords = ()
    """Settings to change, such as zigzag.steps=2."""
    recipe: Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: tiny)")] = (
        None
    )
    """Recipe whose weights and sampling are used, where no run is given."""
    run: Annotated[Folder, arg(help_behavior_hint="(default: none)")] = None
    """Sample with what this run folder has trained."""
    weights: Annotated[Folder, arg(help_behavior_hint="(default: the recipe's)")] = None
    """Sample with the weights in this folder."""
    lora: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: none)")] = None
    """Sample with a trained LoRA: a PEFT folder, or a file of diffusers or of the released code."""
    views: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: the run's or recipe's)")
    ] = None
    """Number of cameras, evenly spaced around the object, the first in front."""
    azimuths: Annotated[
        tuple[float, ...],
        arg(metavar="[DEG ...]", help_behavior_hint="(default: the run's or recipe's)"),
    ] = ()
    """Cameras at these angles around the object; -90 is in front."""
    elevation: Annotated[
        float | None, arg(metavar="DEG", help_behavior_hint="(default: the run's or recipe's)")
    ] = None
    """Angle of all cameras above the horizon."""
    seed: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 0)")] = None
    """Seed of the noise; run.seed=INT is the same."""
    steps: Annotated[
        int | None,
        arg(metavar="INT", help_behavior_hint="(default: the run's or recipe's, else 8)"),
    ] = None
    """Denoising steps."""
    guidance: Annotated[
        float | None, arg(metavar="FLOAT", help_behavior_hint="(default: the run's or recipe's)")
    ] = None
    """Guidance scale; 1 is unguided."""
    zigzag: bool = False
    """Denoise, invert with weak guidance and denoise again (ZMV-Sampling)."""
    out: Path = Path("samples")
    """Folder of the pictures; files of the same name are replaced."""
    device: str = "auto"
    """Torch device, or "auto" for an accelerator where there is one."""


def sample(command: Sample) -> None:
    """Check a command, then sample.

    Args:
        command: Prompts and policy.

    Raises:
        ConfigError: If prompts, policy, settings or folder are refused.
        CheckpointError: If the run is none.
    """
    if not command.prompts:
        msg = (
            "`prompts` must hold at least one; got none"
            + "".join(f", as {word!r} reads as a setting" for word in command.settings[:1])
            + "."
        )
        raise ConfigError(msg)
    if command.run is not None and command.lora is not None:
        msg = "`--run` brings what it has trained; leave out `--lora`, or name weights or a recipe."
        raise ConfigError(msg)
    require_folder(command.out)
    seeds, settings = _seed_words(command)
    config = policy_config(
        command.run, command.weights, command.recipe, [*seeds, *_options(command), *settings],
        also=("run.seed",),
    )  # fmt: skip
    from mvczigal_ref.tiny_world.grammar import parse
    from mvczigal_ref.training.prompts import in_world

    strict = in_world(config, scored=False)
    prompts = [str(parse(prompt)) for prompt in command.prompts] if strict else command.prompts
    sample_prompts(command, config, prompts)


def _seed_words(command: Sample) -> tuple[list[str], list[str]]:
    """Say the seed of the noise, 0 unless another is asked for, and the other settings."""
    seeds = [word for word in command.settings if word.startswith("run.seed=")]
    if seeds and command.seed is not None:
        raise ConfigError("`--seed` and `run.seed` are the same here; leave one of the two out.")
    others = [word for word in command.settings if word not in seeds]
    return seeds or [f"run.seed={command.seed or 0}"], others


def _options(command: Sample) -> list[str]:
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
        if azimuths or not 1 <= command.views <= _MOST_VIEWS:
            msg = (
                f"`--views` must be 1 to {_MOST_VIEWS}, and `--azimuths` then be left out; got "
                f"{command.views} and {azimuths}."
            )
            raise ConfigError(msg)
        azimuths = [_FRONT + 360.0 * view / command.views for view in range(command.views)]
    if azimuths:
        words.append(f"model.azimuths={azimuths}")
    if command.elevation is not None:
        words.append(f"model.elevation={command.elevation}")
    return words


def sample_prompts(command: Sample, config: "TrainConfig", prompts: Sequence[str]) -> None:
    """Sample one object per prompt and write its pictures.

    Args:
        command: Policy, folder and device.
        config: Sampling and its seed.
        prompts: One per object, checked.
    """
    from mvczigal_ref.system.scorers import no_scorers
    from mvczigal_ref.training.prompts import warn_of_cut_prompts
    from mvczigal_ref.training.tracking import peak_memory

    here = join(command.device)
    console = console_of(command, shown=here.is_main)
    with console.status("loading models"):
        system = build_policy(command.run, config, here.device, no_scorers(), lora=command.lora)
    if here.is_main:
        warn_of_cut_prompts(system.components, prompts, setting="prompts")
    started = time.perf_counter()
    images = _images(system, prompts, command, config, console)
    seconds = time.perf_counter() - started
    if not here.is_main:
        return
    for path in _write_pictures(command.out, prompts, images, _azimuths(system, config)):
        print(path)
    objects, views = images.shape[:2]
    peak = peak_memory(here.device)
    memory = "" if peak is None else f"; peak memory {peak / 2**30:.2f} GiB on {here.device}"
    if not command.quiet:
        print(f"{objects} x {views} views in {seconds:.2f} s{memory}")


def _images(
    system: "System",
    prompts: Sequence[str],
    command: Sample,
    config: "TrainConfig",
    console: "Console",
) -> "Images":
    """Sample slice by slice, and show the network's calls as they come."""
    import torch

    from mvczigal_ref.cli.progress import Steps
    from mvczigal_ref.evaluation.evaluate import sample_objects
    from mvczigal_ref.pipeline.watch import calls_per_step

    size = config.run.objects_per_slice
    parts = [
        range(first, min(first + size, len(prompts))) for first in range(0, len(prompts), size)
    ]
    calls = calls_per_step(
        system.evaluation_sampler.num_steps,
        zigzag_steps=config.zigzag.steps if command.zigzag else 0,
        zigzag_rounds=config.zigzag.rounds,
    )
    images = []
    with Steps(console, "sampling", len(parts) * sum(calls)) as steps:
        counting = system.policy.register_forward_hook(lambda *_: steps.advance())
        try:
            for part in parts:
                noise = system.noise(part, "sample", seed=config.run.seed)
                texts = [prompts[index] for index in part]
                objects = sample_objects(system, texts, noise, config=config, zigzag=command.zigzag)
                images.append(objects.cpu())
        finally:
            counting.remove()
    return torch.cat(images)


def _azimuths(system: "System", config: "TrainConfig") -> Sequence[float]:
    """Say where the cameras stand; a single view is turned by nothing."""
    from mvczigal_ref.system.rig import rig_of

    return rig_of(config.model).azimuth_deg if system.num_views > 1 else ()


def _write_pictures(
    folder: Path, prompts: Sequence[str], images: "Images", azimuths: Sequence[float]
) -> Iterator[str]:
    """Write a sheet, and of each object its views, a grid and a turn; name each once written."""
    from mvczigal_ref.pictures import as_grid, contact_sheet, save_png, save_turntable, view_scale

    views, scale = images.shape[1], view_scale(images)
    sheet = folder / "sheet.png"
    save_png(sheet, contact_sheet(images, scale=scale, row_labels=list(prompts), gap=scale))
    yield str(sheet)
    for place, (prompt, each) in enumerate(zip(prompts, images, strict=True)):
        name = f"{place:02d}_{_file_name(prompt)}"
        for view, image in enumerate(each):
            path = folder / f"{name}_view{view}.png"
            save_png(path, contact_sheet(image[None, None], scale=1, gap=0))
        yield str(folder / f"{name}_view{'0' if views == 1 else f'[0-{views - 1}]'}.png")
        columns = math.ceil(math.sqrt(views))
        if views > columns:  # else the sheet's row is the grid
            path = folder / f"{name}_grid.png"
            save_png(path, contact_sheet(as_grid(each, columns), scale=scale, gap=scale))
            yield str(path)
        if azimuths:
            path = folder / f"{name}_turn.webp"
            save_turntable(path, each, azimuths, scale=scale)
            yield str(path)


def _file_name(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
