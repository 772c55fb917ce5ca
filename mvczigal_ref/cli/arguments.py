"""What each command of the command line is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from tyro.conf import Positional, arg

from mvczigal_ref.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    ReplayMismatchError,
    ZeroGradientError,
)

__all__ = [
    "REFUSED",
    "Check",
    "Command",
    "ConvertReward",
    "Enhance",
    "Evaluate",
    "Export",
    "Plan",
    "Pretrain",
    "Recipes",
    "Report",
    "Reproduce",
    "Sample",
    "Score",
    "ServeReward",
    "Train",
]

REFUSED = (
    ConfigError,
    CheckpointError,
    NonFiniteError,
    ReplayMismatchError,
    ZeroGradientError,
    OSError,
)
"""What a person is told in a line, without a traceback."""

_Folder = Annotated[Path | None, arg(metavar="FOLDER")]
_Settings = Annotated[
    Positional[tuple[str, ...]],
    arg(metavar="[SECTION.NAME=VALUE ...]", help_behavior_hint=""),
]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a recipe into a run folder; the same command goes on with a stopped run."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """Name of a recipe; `mvczigal recipes` lists them."""
    settings: _Settings = ()
    """Settings to change, such as optim.lr=1e-3; a later one wins."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """YAML or JSON file of settings by section; words on the command line win over it."""
    out: Annotated[_Folder, arg(help_behavior_hint="(default: runs/RECIPE-SEED)")] = None
    """Run folder."""
    processes: int = 1
    """Processes on this machine that share the work, one a GPU or a CPU core; leave it out under
    a launcher."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sample prompts into pictures: a sheet, and of each object its views, a grid and a turn."""

    prompts: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="PROMPT [PROMPT ...]", help_behavior_hint="(required)"),
    ]
    """Such as "a red cube with a white nose"."""
    settings: _Settings = ()
    """Settings to change, such as zigzag.steps=2."""
    recipe: Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="(default: tiny)")] = (
        None
    )
    """Recipe whose weights and sampling are used, where no run is given."""
    run: Annotated[_Folder, arg(help_behavior_hint="(default: none)")] = None
    """Sample with what this run folder has trained."""
    weights: Annotated[_Folder, arg(help_behavior_hint="(default: the recipe's)")] = None
    """Sample with the weights in this folder."""
    lora: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: none)")] = None
    """Sample with a trained LoRA: a PEFT folder, or a file of diffusers or of the released code."""
    views: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: the run's or recipe's)")
    ] = None
    """So many cameras, evenly spaced around the object, the first in front."""
    azimuths: Annotated[
        tuple[float, ...],
        arg(metavar="[DEG ...]", help_behavior_hint="(default: the run's or recipe's)"),
    ] = ()
    """Cameras at these angles around the object; -90 is in front."""
    elevation: Annotated[
        float | None, arg(metavar="DEG", help_behavior_hint="(default: the run's or recipe's)")
    ] = None
    """Angle of all cameras above the horizon."""
    seed: int = 0
    """Seed of the noise."""
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


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a policy on held-out prompts.

    A run is also compared with the weights that it started from; ZMV-Sampling of other weights
    with plain sampling. Both meet the same noises, and the gain is paired.
    """

    recipe: Annotated[
        Positional[str | None], arg(metavar="[RECIPE]", help_behavior_hint="(default: tiny)")
    ] = None
    """Recipe whose weights and sampling are scored, where no run is given."""
    settings: _Settings = ()
    """Settings to change, such as sampler.num_steps=4."""
    run: Annotated[_Folder, arg(help_behavior_hint="(default: none)")] = None
    """Score what this run folder has trained."""
    weights: Annotated[_Folder, arg(help_behavior_hint="(default: the recipe's)")] = None
    """Score the weights in this folder."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the noises; 0 is what training itself evaluates on."""
    noises: int = 4
    """Initial noises a prompt and seed."""
    zigzag: bool = False
    """Sample with ZMV-Sampling."""
    prompts: str = "world.held_out"
    """A named list, or a text file with one prompt a line."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Also write every score to this file."""
    device: str = "auto"
    """Torch device, or "auto" for an accelerator where there is one."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write what a run has trained as PEFT and diffusers load it, from its newest checkpoint.

    A run that ended has done so: its folder holds all layouts in `policy`.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, finished or not."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Where it goes; a folder that does not exist yet."""
    layout: Annotated[
        Literal["peft", "diffusers", "released"] | None,
        arg(help_behavior_hint="(default: all that fit)"),
    ] = None
    """The only layout wanted of a LoRA: PEFT's folder, or the one file that diffusers or the
    released trainer reads."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a run's report.html again."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, finished or not."""


_Place = Annotated[
    str | None, arg(metavar="PLACE", help_behavior_hint="(default: the published ones)")
]
_RewardSettings = Annotated[
    Positional[tuple[str, ...]],
    arg(metavar="[reward.NAME=VALUE ...]", help_behavior_hint=""),
]


@dataclass(frozen=True, kw_only=True)
class Score:
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
    """What the pictures are to show."""
    reward: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")]
    """Scorers, such as clip_score or hyperscore.overall; a wrong name is told the nearest."""
    row: Annotated[
        int | None, arg(metavar="VIEWS", help_behavior_hint="(default: a file is a view)")
    ] = None
    """Cut each file into so many views of equal width, side by side."""
    weights: _Place = None
    """Folder, file or hub id of the weights, where one reward is named."""
    tokenizer: _Place = None
    """Folder or hub id of the tokenizer, where one reward is named."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Also write every score to this file."""
    device: str = "auto"
    """Torch device, or "auto" for an accelerator where there is one."""


@dataclass(frozen=True, kw_only=True)
class ServeReward:
    """Run a reward as an HTTP service, for training elsewhere with reward.url.

    There is no password: whoever reaches the port can use it.
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

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """What was downloaded; it is read without running anything in it."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """A .safetensors file that does not exist yet."""


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Make the tiny world's weights: autoencoder, base model, few-step model; or the flow model.

    The flow model takes its autoencoder and CLIP from the multi-view weights.
    """

    settings: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[NAME=VALUE ...]", help_behavior_hint="")
    ] = ()
    """Numbers to change, such as base_steps=100."""
    model: Literal["multiview", "flow"] = "multiview"
    """Which weights."""
    processes: int = 1
    """Processes on this machine that share the work; another number goes on with the same folder,
    and leaves other bits."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Folder of the weights; a stage that it already holds is not made again."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what an iteration takes, before any download: calls, TFLOP, and memory by part."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """Name of a recipe; `mvczigal recipes` lists them."""
    settings: _Settings = ()
    """Settings to change, such as run.objects_per_slice=1."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """YAML or JSON file of settings by section; words on the command line win over it."""
    processes: int = 1
    """Processes of the run, each with a GPU of its own."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Also write every number to this file."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Try whether this machine trains a recipe as it should, in about a minute."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """Name of a recipe; `mvczigal recipes` lists them."""
    settings: _Settings = ()
    """Settings to change, such as run.device=cuda."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """YAML or JSON file of settings by section; words on the command line win over it."""


@dataclass(frozen=True, kw_only=True)
class Enhance:
    """Vary prompts by a language model, ahead of training; a stopped call goes on.

    The file is what `condition.enhancer=stored` reads.
    """

    prompts: Annotated[Positional[str], arg(metavar="PROMPTS")]
    """Text file with one prompt a line, or world.train or world.held_out."""
    out: Annotated[Path, arg(metavar="FILE")]
    """Where the captions go, as JSON lines."""
    model: str
    """Name of the served model, or folder of one to run here."""
    url: Annotated[str | None, arg(metavar="URL", help_behavior_hint="(default: none)")] = None
    """OpenAI-compatible endpoint that serves it, such as http://127.0.0.1:8000/v1."""
    api_key_env: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Environment variable that holds its key."""
    captions: int = 4
    """Captions a prompt."""
    edits: Annotated[tuple[str, ...], arg(metavar="[NAME ...]", help_behavior_hint="")] = ()
    """What may be asked for: add, delete, rewrite; all if none is named."""
    seed: int = 0
    """Of the edits drawn and of the answers."""
    workers: int = 1
    """Prompts that a served model is asked about at once."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Compare the papers' methods on the tiny worlds, at equal network calls; takes hours."""

    settings: _Settings = ()
    """Settings to change in all methods, such as run.evaluation_noises=8."""
    sets: tuple[Literal["multiview", "flow"], ...] = ("multiview", "flow")
    """Which comparisons."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs, one run each a method."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/reproduce")
    """Folder of runs, tables and pictures; a run that it already holds is not made again."""


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """List the recipes."""


Command: TypeAlias = (
    Train
    | Sample
    | Evaluate
    | Export
    | Report
    | Score
    | ServeReward
    | ConvertReward
    | Plan
    | Check
    | Enhance
    | Reproduce
    | Pretrain
    | Recipes
)
"""What was asked for."""
