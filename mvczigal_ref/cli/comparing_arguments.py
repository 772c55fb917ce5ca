"""Arguments of `reproduce`; `comparing` compares methods, `claiming` judges claims."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mvczigal_ref.cli.output import Printed
from mvczigal_ref.cli.policy_settings import SettingWords

__all__ = ["Reproduce"]


@dataclass(frozen=True, kw_only=True)
class Reproduce(Printed):
    """Compare the papers' methods, or test their claims, on the tiny worlds; takes hours.

    Runs are made at equal network calls. Finished ones are not repeated, and several commands on
    one folder share them.
    """

    what: Annotated[Positional[Literal["methods", "claims"]], arg(metavar="[methods|claims]")] = (
        "methods"
    )
    """Tables of all methods, or verdicts on the papers' claims (docs/claims.md)."""
    settings: SettingWords = ()
    """Settings to change in all methods, such as run.evaluation_noises=8."""
    claim: Annotated[
        tuple[str, ...], arg(metavar="[LETTER ...]", help_behavior_hint="(default: all)")
    ] = ()
    """Claims whose runs are made, such as b; all are judged by the runs that are there."""
    iterations: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: as written down)")
    ] = None
    """Iterations of the first arm of each set of claims; the others follow at equal calls."""
    list: bool = False
    """Print the claims, their arms and hours and the words of every run, and train nothing."""
    read_only: bool = False
    """Judge the claims by the runs that have finished, and train none."""
    sets: tuple[Literal["multiview", "flow"], ...] = ("multiview", "flow")
    """Comparisons to make."""
    seeds: Annotated[
        tuple[int, ...], arg(help_behavior_hint="(default: 0 1 2; of claims 10 to 14)")
    ] = ()
    """Seeds of the runs, one run of every method per seed."""
    out: Annotated[
        Path | None,
        arg(metavar="FOLDER", help_behavior_hint="(default: runs/reproduce or /claims)"),
    ] = None
    """Folder of runs, tables and pictures; a run that it already holds is not made again."""
