"""Starts of a run: command, versions, machine and duration of each, beside its settings."""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvczigal_ref.files import atomic_write, to_json

if TYPE_CHECKING:
    import torch

    from mvczigal_ref.distributed import World

__all__ = ["STARTS", "read_starts", "recorded", "typed_command"]

STARTS = "starts.json"
"""File of a run folder: a list with one record per start, none of which a result depends on."""

_PACKAGES = ("mvczigal-ref", "torch", "diffusers", "transformers", "peft", "numpy")
_FIELDS = {
    *("began", "command", "versions", "machine", "device", "processes", "threads", "seconds"),
}
_CPU = Path("/proc/cpuinfo")  # of Linux


@contextmanager
def recorded(folder: Path, world: "World") -> Iterator[None]:
    """Record a start of a run, and its seconds as soon as it has ended or stopped.

    Args:
        folder: The run folder.
        world: Processes of the run; the main one writes.

    Yields:
        Nothing.

    Examples:
        >>> import tempfile
        >>> from mvczigal_ref.distributed import World
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with recorded(Path(folder), World()):
        ...         pass
        ...     [start["processes"] for start in read_starts(Path(folder))]
        [1]
    """
    if not world.is_main:
        yield
        return
    earlier, clock = read_starts(folder), time.monotonic()
    start = _start(world)
    atomic_write(folder / STARTS, to_json([*earlier, start]))
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the first cause is what is told, such as a full disk
            _end(folder, earlier, start, clock)
        raise
    _end(folder, earlier, start, clock)


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Read the starts of a run.

    Args:
        folder: A run folder.

    Returns:
        Records in order, each with ``began`` [UTC], ``command`` (null from Python), ``versions``,
        ``machine``, ``device``, ``processes``, ``threads`` and ``seconds`` (null while it runs, or
        if it was killed); empty where there is no such file, or it cannot be read.

    Examples:
        >>> read_starts(Path("absent"))
        []
    """
    try:
        records = json.loads((folder / STARTS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    whole = isinstance(records, list) and all(isinstance(one, dict) for one in records)
    return records if whole and all(one.keys() >= _FIELDS for one in records) else []


def typed_command(words: Sequence[str]) -> str | None:
    """Write the command line that started this program.

    Args:
        words: As ``sys.argv``.

    Returns:
        The command, quoted for a shell; None where another program called.

    Examples:
        >>> typed_command(["/usr/bin/mvczigal", "train", "tiny"])
        'mvczigal train tiny'
    """
    program = Path(words[0]) if words else Path()
    if program.stem != "mvczigal" and program.parts[-2:] != ("mvczigal_ref", "__main__.py"):
        return None
    return shlex.join(["mvczigal", *words[1:]])


def _end(
    folder: Path, earlier: Sequence[dict[str, Any]], start: dict[str, Any], clock: float
) -> None:
    start["seconds"] = round(time.monotonic() - clock, 1)
    atomic_write(folder / STARTS, to_json([*earlier, start]))


def _start(world: "World") -> dict[str, Any]:
    import torch

    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": typed_command(sys.argv),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}, "
        f"{os.cpu_count()} cores",
        "device": _device(world.device),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "seconds": None,
    }


def _versions() -> dict[str, str]:
    import torch

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # as of a source tree that was not installed
            continue
    return versions | {"torch": str(torch.__version__)}  # which tells the build too


def _processor() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = _CPU.read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"


def _device(device: "torch.device") -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
