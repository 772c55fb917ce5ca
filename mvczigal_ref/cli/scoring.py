"""Scoring pictures, and running scorers for others, as a person asks for it."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mvczigal_ref import __version__
from mvczigal_ref.cli.arguments import ConvertReward, Score, ServeReward
from mvczigal_ref.cli.processes import join
from mvczigal_ref.cli.views import read_views
from mvczigal_ref.config import RewardConfig
from mvczigal_ref.config.loading import nearest_name
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.models.finite import require_finite
from mvczigal_ref.reward.builders import JOINT, PER_VIEW, ScorerOptions
from mvczigal_ref.reward.provenance import content_hash, files_read
from mvczigal_ref.reward.registry import (
    joint_view_scorer,
    per_view_scorer,
    require_device,
    scorer_options,
)
from mvczigal_ref.shapes import Images

__all__ = ["convert_reward", "score_images", "serve_reward"]

Scorer = Callable[[Images, Sequence[str]], Tensor]


def score_images(command: Score, settings: RewardConfig) -> None:
    """Score pictures and print a table: a row a view, and one for all views together.

    Args:
        command: What was asked for.
        settings: Where the scorers are.

    Raises:
        ConfigError: If pictures or scorers do not fit together.
        NonFiniteError: If a score is not finite; names the scorer and view, and nothing is written.
    """
    device = join(command.device).device
    images = read_views(command.images, row=command.row)
    objects, views = images.shape[:2]
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(command.reward):
        options = scorer_options(name, settings, device=device, num_views=views)
        _, scorer = _scorer(name, options)
        try:
            found[name] = scorer(images.to(device), [command.prompt] * objects).cpu()
        except ValueError as error:  # such as another number of views than the scorer knows
            raise ConfigError(f"`{name}` cannot score these pictures: {error}") from error
        require_finite(name, found[name], range(objects))
    Console().print(_table(command, found, objects, views))
    if command.json is not None:
        content = {
            "prompt": command.prompt,
            "images": [str(path) for path in command.images],
            "scores": {name: table.tolist() for name, table in found.items()},
        }
        atomic_write(command.json, to_json(content))


def serve_reward(command: ServeReward, settings: RewardConfig) -> None:
    """Serve a scorer until Ctrl-C.

    Its version is of the code and of the contents of the weights, which are read once for it.

    Args:
        command: What was asked for.
        settings: Where the scorer is.

    Raises:
        ConfigError: If the scorer is unknown, or the address is open and that was not asked for.
    """
    from mvczigal_ref.reward.service import serve

    device = join(command.device).device
    options = scorer_options(command.name, settings, device=device, num_views=command.views)
    with files_read() as files:
        kind, scorer = _scorer(command.name, options)
    try:
        serve(
            scorer,
            name=command.name,
            version=_version(options, files, scorer),
            kind="joint" if kind == "joint" else "per_view",
            host=command.host,
            port=command.port,
            allow_remote=command.open_to_others,
            say=_say,
        )
    except (ValueError, OverflowError) as error:
        msg = f"cannot serve at `--host` {command.host!r}, `--port` {command.port}: {error}"
        raise ConfigError(msg) from error


def convert_reward(command: ConvertReward) -> Path:
    """Write a published file's tensors as safetensors.

    Args:
        command: What was asked for.

    Returns:
        The file that was written.

    Raises:
        ConfigError: If the names are not such, or the file exists.
        CheckpointError: If the source is no file of tensors.
    """
    from mvczigal_ref.errors import CheckpointError
    from mvczigal_ref.reward.convert import convert_checkpoint

    try:
        return convert_checkpoint(command.file, command.out)
    except CheckpointError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _scorer(name: str, options: ScorerOptions) -> tuple[str, Scorer]:
    """Build a scorer of either kind; of an unknown name its service says which it is."""
    require_device(str(options.device))
    if name in PER_VIEW:
        return "per_view", per_view_scorer(name, options)
    if name in JOINT:
        return "joint", joint_view_scorer(name, options)
    if options.url is None:
        near = nearest_name(name, [*PER_VIEW, *JOINT])
        raise ConfigError(f"there is no scorer {name!r}; the nearest name is {near!r}.")
    try:
        return "per_view", per_view_scorer(name, options)
    except ConfigError:
        return "joint", joint_view_scorer(name, options)


def _table(command: Score, found: dict[str, Tensor], objects: int, views: int) -> Table:
    table = Table("picture")
    for name in found:
        table.add_column(escape(name), justify="right")
    for index in range(objects):
        for view in range(views):
            path = command.images[view if command.row is None else index]
            label = path.name if command.row is None else f"{path.name} view {view}"
            cells = [f"{t[index, view]:.4f}" if t.ndim == 2 else "" for t in found.values()]
            if any(cells):
                table.add_row(escape(label), *cells)
        whole = "all views" if command.row is None else f"{command.images[index].name} all views"
        cells = [f"{(t[index].mean() if t.ndim == 2 else t[index]):.4f}" for t in found.values()]
        table.add_row(escape(whole), *cells)
    return table


def _version(options: ScorerOptions, files: Sequence[Path], scorer: Scorer) -> str:
    """Name the code and the contents of every file that scores depend on, so that caches notice.

    Of a scorer that another service runs, that one's version counts.
    """
    served = getattr(scorer, "version", "")
    said = f"{options.dtype} {options.num_views}\n{served}\n{content_hash(files)}"
    return f"{__version__}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _say(text: str) -> None:
    print(text, flush=True)
