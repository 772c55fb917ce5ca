"""Settings of a run or of a policy, from a command's words; mistakes are refused before work."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from tyro.conf import Positional, arg

from mvczigal_ref.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from mvczigal_ref.config import TrainConfig
    from mvczigal_ref.system import System

__all__ = [
    "File",
    "Folder",
    "RecipeName",
    "SettingWords",
    "build_policy",
    "build_start",
    "policy_config",
    "policy_prompts",
    "recipe_config",
    "require_folder",
    "require_noises",
]

Folder: TypeAlias = Annotated[Path | None, arg(metavar="FOLDER")]
"""Optional folder of the command line."""

File: TypeAlias = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")]
"""Optional file of the command line."""

RecipeName: TypeAlias = Annotated[Positional[str], arg(metavar="RECIPE")]
"""Recipe that a command is about."""

SettingWords: TypeAlias = Annotated[
    Positional[tuple[str, ...]],
    arg(metavar="[SECTION.NAME=VALUE ...]", help_behavior_hint=""),
]
"""Words `section.name=value`, wherever they stand."""

_RECIPE = "tiny"
# What a policy reads once it is trained; any other setting would change nothing, in silence.
_READ_BY_A_POLICY = ("sampler.", "flow.shift", "flow.ode", "zigzag.", "run.objects_per_slice")
_READ_OF_A_RUN = ("model.azimuths", "model.elevation", "model.views_per_decode")


def recipe_config(name: str, *, file: Path | None, words: Sequence[str]) -> "TrainConfig":
    """Give a recipe's configuration, changed by a file, then by words.

    Args:
        name: Name of the recipe.
        file: Settings by section, in YAML or JSON.
        words: Settings as `section.name=value`; a later one wins.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: If there is no such recipe, a setting is refused, or the file, which may have
            been downloaded, would send a key to a service.
    """
    from mvczigal_ref.config import load_config
    from mvczigal_ref.recipes import recipe

    base = recipe(name)
    config = load_config(base, file=file, overrides=words)
    if file is not None:
        for section in ("reward", "condition"):
            _require_typed_key(config, words, section, f"the file {str(file)!r}", base)
    return config


def policy_config(
    run: Path | None,
    weights: Path | None,
    name: str | None,
    words: Sequence[str],
    *,
    also: tuple[str, ...] = (),
) -> "TrainConfig":
    """Give the configuration by which a policy is sampled, from a run or from a recipe.

    Args:
        run: Run folder, which brings its own weights and settings.
        weights: Folder of weights in place of the recipe's.
        name: Recipe; ``tiny`` if neither run nor recipe is given.
        words: Settings as `section.name=value`.
        also: Beginnings of settings that the command reads beside those of every policy.

    Returns:
        The checked configuration.

    Raises:
        CheckpointError: If the folder is no run folder.
        ConfigError: If a setting is refused or would change nothing, or the run's settings, which
            may have been downloaded, would send a key to a service.
    """
    from mvczigal_ref.config import load_config
    from mvczigal_ref.config.loading import sampling_config
    from mvczigal_ref.config.run_file import run_config
    from mvczigal_ref.recipes import recipe

    if run is not None and (weights is not None or name is not None):
        msg = "`--run` brings its own weights and settings; leave out `--weights` and the recipe."
        raise ConfigError(msg)
    if run is not None:
        base = run_config(run)
        if "reward." in also:
            _require_typed_key(base, words, "reward", "a run")
    else:
        base = recipe(name or _RECIPE)
    config = sampling_config(base, words)
    allowed = (*_READ_BY_A_POLICY, *also, *(_READ_OF_A_RUN if run is not None else ("model.",)))
    for word in words:
        if not word.startswith(allowed):
            path = word.partition("=")[0]
            read = ", ".join(f"`{start}`" for start in allowed)
            msg = f"`{path}` changes nothing here; only settings that start with {read} do."
            raise ConfigError(msg)
    return (
        config
        if weights is None
        else load_config(config, overrides=[f"model.weights={weights}"], training=False)
    )


def policy_prompts(name: str, config: "TrainConfig", *, noises: int = 1) -> list[str]:
    """Read the prompts that a policy is scored on.

    Args:
        name: Value of `--prompts`.
        config: Scorers and weights; where either is the tiny world's, prompts are of its grammar.
        noises: Value of `--noises`.

    Returns:
        The prompts, those of the tiny world as its grammar writes them.

    Raises:
        ConfigError: If they cannot be read, are not in that grammar, or are too many for so many
            noises.
    """
    from mvczigal_ref.tiny_world.grammar import parse
    from mvczigal_ref.training.prompts import in_world, read_prompts, require_few_samples

    strict = in_world(config)
    prompts = read_prompts(name, setting="--prompts", world=strict)
    require_few_samples("--noises", noises, len(prompts))
    return [str(parse(prompt)) for prompt in prompts] if strict else prompts


def require_noises(noises: int, seeds: Sequence[int]) -> None:
    """Refuse numbers of noises and seeds by which nothing can be scored.

    Args:
        noises: Initial noises per prompt and seed.
        seeds: Seeds of the noises.

    Raises:
        ConfigError: If there are none, or a seed is named twice.

    Examples:
        >>> require_noises(4, (0, 1))
    """
    if noises < 1 or not seeds or len(set(seeds)) < len(seeds):
        msg = (
            "`--noises` must be at least 1, and `--seeds` must differ; got "
            f"{noises} and {tuple(seeds)}."
        )
        raise ConfigError(msg)


def _require_typed_key(
    config: "TrainConfig",
    words: Sequence[str],
    section: str,
    place: str,
    recipe: "TrainConfig | None" = None,
) -> None:
    """Refuse a secret of the environment that settings name and neither user nor recipe does."""
    settings, name = getattr(config, section), f"{section}.api_key_env"
    key = settings.api_key_env
    if key is None or not settings.url or any(w.partition("=")[0] == name for w in words):
        return
    usual = settings if recipe is None else getattr(recipe, section)
    if recipe is not None and (usual.api_key_env, usual.url) == (key, settings.url):
        return
    msg = (
        f"`{name}` names {key!r}, a key in your environment, in the settings of {place}. A key is "
        f"sent only where you type its name: add `{name}={key}`, or `{name}=null` to send none."
    )
    raise ConfigError(msg)


def build_policy(
    run: Path | None,
    config: "TrainConfig",
    device: "torch.device",
    scorers: dict[str, Any],
    *,
    lora: Path | None = None,
) -> "System":
    """Load a policy, with the sampling that the configuration names.

    Args:
        run: Run folder whose newest checkpoint is loaded, if any.
        config: Sampling, and the weights where there is no run.
        device: Device of every network.
        scorers: Scorers of the system.
        lora: Trained LoRA to load on weights of no run.

    Returns:
        The system.
    """
    from mvczigal_ref.system import build_system, with_sampling
    from mvczigal_ref.training.run_policy import load_policy

    if run is None:
        return build_system(config, device=device, scorers=scorers, lora=lora)
    system, _ = load_policy(run, device=device, scorers=scorers)
    return with_sampling(system, config)


def build_start(
    run: Path, config: "TrainConfig", device: "torch.device", scorers: dict[str, Any]
) -> tuple["System", str]:
    """Load what a run began with, which its report compares with too.

    Args:
        run: Run folder.
        config: Sampling.
        device: Device of every network.
        scorers: Scorers of the system.

    Returns:
        The system, and its name: the base weights, or the place that `--from` named.

    Raises:
        CheckpointError: If the record of the start is damaged.
    """
    from mvczigal_ref.training.origin import begin_from, origin_of

    start = build_policy(None, config, device, scorers)
    record = origin_of(run, None)
    begin_from(run, start, None, record)
    return start, "base weights" if record is None else f"its start, {record['place']}"


def require_folder(
    folder: Path, *, run: bool = False, written: Callable[[str], bool] | None = None
) -> None:
    """Refuse an output folder that cannot be one, before anything is computed.

    Args:
        folder: Folder to be written, which need not exist.
        run: Whether a run goes there, which takes no folder that holds other files.
        written: Tells the names that the command writes; the folder must hold one if it holds
            anything. None takes any folder.

    Raises:
        ConfigError: If it is a file or cannot be written, or holds files and no run where a run is
            to go, or none of those that the command writes.
    """
    folders = (folder, *folder.absolute().parents)
    above = next(path for path in folders if path.exists() or path.is_symlink())  # to nowhere
    if not above.is_dir():
        raise ConfigError(f"`--out` must be a folder; got the file {str(above)!r}.")
    if not os.access(above, os.W_OK | os.X_OK):
        msg = f"`--out` must be a folder that can be written; {str(above)!r} takes no files."
        raise ConfigError(f"{msg} Choose another folder.")
    if above != folder:
        return
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    more = ", ..." if len(names) > 3 else ""
    if written is not None and names and not any(map(written, names)):
        msg = (
            f"`--out` must be empty, absent, or a folder that this command wrote; {str(folder)!r} "
            f"holds {', '.join(names[:3])}{more}. Choose another folder."
        )
        raise ConfigError(msg)
    if run and names and "config.json" not in names:
        msg = (
            f"`--out` must be a run folder, empty or absent; {str(folder)!r} holds "
            f"{', '.join(names[:3])}{more} and no config.json. Choose another folder."
        )
        raise ConfigError(msg)
