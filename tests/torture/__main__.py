"""Torture of every area, or of some: `python -m tests.torture --areas pictures --scale 0.1`."""

import argparse
import logging
import math
import random
import shutil
import sys
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path

import torch

from tests.torture.page import HEAD, write_rows
from tests.torture.tally import Tally

AREAS = {
    "configurations": 10_000,
    "prompts": 2_000,
    "pictures": 3_000,
    "tensors": 3_000,
    "pickles": 2_000,
    "servers": 1_000,
    "clients": 2_000,
    "permissions": 120,
    "folders": 600,
    "kills": 400,
    "owners": 40,
    "trained": 300,
}
"""Attempts of each area at scale 1; of kills at most as many as the run has file events, of
permissions as commands have files."""
RUNS = ("permissions", "folders", "owners", "trained")
"""Areas that train, which may be stopped after some minutes and gone on with."""


def torture(
    area: str, *, scale: float, seed: int, until: float = math.inf, kept: Path | None = None
) -> Tally:
    """Try one area; the numbers are the same for the same seed and scale.

    Args:
        area: Area to try.
        scale: Part of the area's number of attempts.
        seed: Seed of the draws.
        until: Time after which areas of runs begin no other attempt, on the monotonic clock [s].
        kept: File of counts from which an area goes on, and which gets them.
    """
    resumed = kept is not None and kept.exists()
    tally = Tally.resumed(kept, until=until) if resumed else Tally(area, seed=seed, until=until)
    folder, count = Path(tempfile.mkdtemp(prefix=f"torture-{area}-")), round(scale * AREAS[area])
    try:
        script = import_module(f"tests.torture.{area}")
        script.torture(tally, random.Random(f"{area} {seed}"), max(1, count), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        tally.keep(kept)
    return tally


def main() -> int:
    """Try the areas, print the table, and fail where something failed."""
    parser = argparse.ArgumentParser(prog="tests.torture", description=__doc__)
    parser.add_argument("--areas", nargs="+", default=list(AREAS), choices=AREAS, metavar="AREA")
    parser.add_argument("--scale", type=float, default=1.0, help="part of every area's number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the rows into docs/torture.md")
    parser.add_argument("--minutes", type=float, default=math.inf, help="limit of areas of runs")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with those areas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    until = time.monotonic() + 60 * options.minutes
    rows, failed = dict[str, str](), 0
    for area in options.areas:
        started = time.monotonic()
        kept = options.resume / f"{area}.json" if options.resume and area in RUNS else None
        tally = torture(area, scale=options.scale, seed=options.seed, until=until, kept=kept)
        print(
            f"{area}: {time.monotonic() - started:.0f} s", *tally.failures, sep="\n  ", flush=True
        )
        rows[area] = tally.row(scale=options.scale)
        failed += len(tally.failures)
    print("", HEAD, *rows.values(), sep="\n")
    if options.write:
        write_rows(rows)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
