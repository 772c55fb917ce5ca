"""Score pictures, and run scorers for others: arguments and work."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from tyro.conf import Positional, arg

from mvczigal_ref import __version__
from mvczigal_ref.cli.launch import join
from mvczigal_ref.cli.output import Printed, console_of, write_json
from mvczigal_ref.errors import ConfigError, quoted

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from mvczigal_ref.config import RewardConfig
    from mvczigal_ref.reward.builders import ScorerOptions
    from mvczigal_ref.shapes import Images

    Scorer: TypeAlias = Callable[[Images, Sequence[str]], Tensor]

__all__ = [
    "ConvertReward",
    "Score",
    "ServeReward",
    "convert_reward",
    "score",
    "serve_reward",
]

_Place = Annotated[
    str | None, arg(metavar="PLACE", help_behavior_hint="(default: the published ones)")
]
_RewardSettings = Annotated[
    Positional[tuple[str, ...]],
    arg(metavar="[reward.NAME=VALUE ...]", help_behavior_hint=""),
]


@dataclass(frozen=True, kw_only=True)
class Score(Printed):
    """Score pictures with any reward: each view on its own, or all views of an object together."""

    images: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint="(required)"),
    ]
    """Files, each a view of one object in the order of the cameras; with --row each an object.
    Transparency is laid on white; an animation is refused."""
    settings: _RewardSettings = ()
    """Settings to change, such as reward.dtype=bf16 or "reward.url={mine: http://...}"."""
    prompt: Annotated[str, arg(metavar="TEXT")]
    """Text that the pictures are to show."""
    reward: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")]
    """Scorers, such as clip_score or hyperscore.overall; for a wrong name the nearest is named."""
    row: Annotated[
        int | None, arg(metavar="VIEWS", help_behavior_hint="(default: a file is a view)")
    ] = None
    """Cut each file into this many views of equal width, side by side."""
    weights: _Place = None
    """Folder, file or hub id of the weights, where one reward is named."""
    tokenizer: _Place = None
    """Folder or hub id of the tokenizer, where one reward is named."""
    device: str = "auto"
    """Torch device, or "auto" for an accelerator where there is one."""


@dataclass(frozen=True, kw_only=True)
class ServeReward:
    r"""Run a reward as an HTTP service, for training elsewhere with reward.url, or for curl.

    There is no password: whoever reaches the port can use it. The service describes itself at
    /openapi.json. One picture of one object, by curl:

    printf '{"prompts": ["a cat"], "images": [["%s"]]}' "$(base64 < a.png | tr -d '\n')" |
    curl --json @- http://127.0.0.1:8763/score
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Scorer, such as pickscore or hyperscore.overall."""
    settings: _RewardSettings = ()
    """Settings to change, such as reward.dtype=bf16."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8763
    """Port to listen at; 0 takes any that is free."""
    open_to_others: bool = False
    """Allow an address that other machines can reach."""
    views: int = 6
    """Views of an object, where the scorer judges them together."""
    weights: _Place = None
    """Folder, file or hub id of the weights."""
    tokenizer: _Place = None
    """Folder or hub id of the tokenizer."""
    device: str = "auto"
    """Torch device, or "auto" for an accelerator where there is one."""


@dataclass(frozen=True, kw_only=True)
class ConvertReward:
    """Write a reward's published .pt or .pth file as safetensors, once."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """Downloaded file; it is read without running anything in it."""
    target: Annotated[Positional[Path], arg(metavar="TARGET")]
    """A .safetensors file that does not exist yet."""


def score(command: Score) -> None:
    """Score pictures and print a table: a row per view, and one for all views together.

    Args:
        command: Pictures, prompt and scorers.

    Raises:
        ConfigError: If pictures or scorers do not fit together.
        NonFiniteError: If a score is not finite; names the scorer and view, and nothing is written.
    """
    _refuse_other_settings(command)
    if not command.images or not command.reward:
        msg = "`score` needs pictures and, after `--reward`, the name of a scorer."
        raise ConfigError(msg)
    if command.row is not None and command.row < 1:
        raise ConfigError(f"`--row` must be at least 1; got {command.row}.")
    settings = _reward_settings(command.reward, command)
    for name in command.reward:
        _require_scorer(name, settings)
    from mvczigal_ref.cli.progress import saying
    from mvczigal_ref.cli.views import read_views
    from mvczigal_ref.models.finite import require_finite
    from mvczigal_ref.reward.registry import scorer_options

    device = join(command.device).device
    images = read_views(command.images, row=command.row)
    objects, views = images.shape[:2]
    scores: dict[str, Tensor] = {}
    for name in dict.fromkeys(command.reward):
        options = scorer_options(
            name, settings, device=device, num_views=views, image_size=images.shape[-1]
        )
        with saying(_loading(name, options), quiet=command.quiet):
            _, scorer = _scorer(name, options)
        try:
            scores[name] = scorer(images.to(device), [command.prompt] * objects).cpu()
        except ValueError as error:  # such as another number of views than the scorer knows
            raise ConfigError(f"`{name}` cannot score these pictures: {error}") from error
        require_finite(name, scores[name], range(objects))
    console_of(command).print(_table(command, scores, objects, views))
    content = {
        "prompt": command.prompt,
        "images": [str(path) for path in command.images],
        "scores": {name: table.tolist() for name, table in scores.items()},
    }
    write_json(command, content)


def serve_reward(command: ServeReward) -> None:
    """Serve a scorer until Ctrl-C.

    Its version is of the code and of the contents of the weights, which are read once for it.

    Args:
        command: Scorer and address.

    Raises:
        ConfigError: If the scorer is unknown, or the address is open and that was not asked for.
    """
    settings = _reward_settings([command.name], command)
    _require_scorer(command.name, settings)
    from mvczigal_ref.cli.progress import saying
    from mvczigal_ref.reward.provenance import files_read
    from mvczigal_ref.reward.registry import scorer_options
    from mvczigal_ref.reward.service import serve

    device = join(command.device).device
    options = scorer_options(command.name, settings, device=device, num_views=command.views)
    with files_read() as files, saying(_loading(command.name, options)):
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


def convert_reward(command: ConvertReward) -> None:
    """Write a published file's tensors as safetensors, and print the new file's name.

    Args:
        command: Both files.

    Raises:
        ConfigError: If the names are not such, or the file exists.
        CheckpointError: If the source is no file of tensors.
    """
    from mvczigal_ref.models.file_kinds import require_conversion

    require_conversion(command.source, command.target)  # before torch is imported
    from mvczigal_ref.reward.convert import convert_checkpoint

    print(convert_checkpoint(command.source, command.target))


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


def _reward_settings(names: Sequence[str], command: Score | ServeReward) -> "RewardConfig":
    """Read the places of scorers, from options and from `reward.` settings."""
    from mvczigal_ref.config import from_dict, load_config, to_dict
    from mvczigal_ref.config.code_names import note_typed

    _refuse_other_settings(command)
    note_typed(names)
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


def _require_scorer(name: str, reward: "RewardConfig") -> None:
    """Refuse a name of no scorer, or one without its weights, before torch is imported."""
    from mvczigal_ref.config.loading import nearest_name
    from mvczigal_ref.config.scorer_names import (
        SCORER_NAMES,
        check_scorer_name,
        is_function,
        scorer_place,
    )

    url = scorer_place(name, reward.url)
    kinds = [kind for kind, names in SCORER_NAMES.items() if name in names]
    if not kinds and url is None and not is_function(name):
        near = nearest_name(name, [each for names in SCORER_NAMES.values() for each in names])
        raise ConfigError(f"unknown scorer: {name!r}; the nearest name is {near!r}.")
    for kind in kinds:
        check_scorer_name(
            f"reward.{kind}",
            kind,
            name,
            weights=scorer_place(name, reward.weights),
            tokenizer=scorer_place(name, reward.tokenizers),
            url=url,
        )


def _scorer(name: str, options: "ScorerOptions") -> tuple[str, "Scorer"]:
    """Build a scorer of either kind; of an unknown name its service says which it is."""
    from mvczigal_ref.reward.builders import JOINT, PER_VIEW
    from mvczigal_ref.reward.registry import (
        is_function,
        joint_view_scorer,
        per_view_scorer,
        require_device,
    )

    require_device(str(options.device))
    if name in PER_VIEW:
        return "per_view", per_view_scorer(name, options)
    if name in JOINT:
        return "joint", joint_view_scorer(name, options)
    if options.url is None and is_function(name):
        return _function(name, options)
    try:
        return "per_view", per_view_scorer(name, options)
    except ConfigError:
        return "joint", joint_view_scorer(name, options)


def _loading(name: str, options: "ScorerOptions") -> str:
    """Say what a scorer waits for: its service, or its weights."""
    if options.url is not None:
        return f"asking {options.url} for {name!r}"
    place = "" if options.weights is None else f" from {options.weights!r}"
    return f"loading the weights of {name!r}{place}"


def _function(name: str, options: "ScorerOptions") -> tuple[str, "Scorer"]:
    """Build the scorer of the user's function; of either kind, as its answer shows."""
    from mvczigal_ref.reward.registry import joint_view_scorer, per_view_scorer

    try:
        return "per_view", per_view_scorer(name, options)
    except ConfigError as per_view:
        try:
            return "joint", joint_view_scorer(name, options)
        except ConfigError:
            raise per_view from None


def _table(command: Score, scores: dict[str, "Tensor"], objects: int, views: int) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from mvczigal_ref.evaluation.digits import decimals_of_size

    table = Table("picture")
    for name in scores:
        table.add_column(escape(name), justify="right")
    decimals = [decimals_of_size(*t.flatten().tolist()) for t in scores.values()]
    columns = list(zip(scores.values(), decimals, strict=True))
    for index in range(objects):
        for view in range(views):
            path = command.images[view if command.row is None else index]
            label = path.name if command.row is None else f"{path.name} view {view}"
            cells = [f"{t[index, view]:.{d}f}" if t.ndim == 2 else "" for t, d in columns]
            if any(cells):
                table.add_row(escape(label), *cells)
        whole = "all views" if command.row is None else f"{command.images[index].name} all views"
        cells = [f"{t[index].mean() if t.ndim == 2 else t[index]:.{d}f}" for t, d in columns]
        table.add_row(escape(whole), *cells)
    return table


def _version(options: "ScorerOptions", files: Sequence[Path], scorer: "Scorer") -> str:
    """Name the code and the contents of every file that scores depend on, so that caches notice.

    Of a scorer that another service runs, that one's version counts.
    """
    from mvczigal_ref.reward.provenance import content_hash

    served = getattr(scorer, "version", "")
    text = f"{options.dtype} {options.num_views}\n{served}\n{content_hash(files)}"
    return f"{__version__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _say(text: str) -> None:
    print(text, flush=True)
