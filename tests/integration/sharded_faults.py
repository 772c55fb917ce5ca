"""Faults of one of several processes that hold parts of a network, each met once by a run."""

import errno
from contextlib import contextmanager

import safetensors.torch

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ScorerUnavailableError
from mvczigal_ref.method import judged
from mvczigal_ref.system import System
from mvczigal_ref.training import checkpoint, state, trainer
from tests.integration import faults

FULL = OSError(errno.ENOSPC, "No space left on device", "parts")
OUT = ScorerUnavailableError("the judge is out")

# Place, attribute, process, error, and how many of its calls go well before.
EACH = {
    "prompts cannot be read": (trainer, "run_prompts", 1, OSError("no prompts"), 0),
    "the judge is out before": (System, "score", 1, OUT, 0),
    "the judge is out in an iteration": (judged, "score", 1, OUT, 0),
    "one part cannot be written": (safetensors.torch, "save", 1, FULL, 0),
    "the first part cannot be written": (safetensors.torch, "save", 0, FULL, 0),
    "seals cannot be made": (state, "seal_rows", 0, OSError("no seal"), 0),
    "the manifest cannot be written": (checkpoint, "measure", 0, FULL, 0),
    "a judge is out after": (System, "score", 0, OUT, 0),
    "the policy cannot be exported": (trainer, "export_policy", 0, FULL, 0),
    "a checkpoint cannot be read": (checkpoint, "read_groups", 1, OSError("no parts"), 0),
}

# Those of the first run of tests; the others come with the slow ones.
QUICK = (
    "the judge is out in an iteration",
    "one part cannot be written",
    "the policy cannot be exported",
)


@contextmanager
def once(here: World, name: str):
    """Let one process meet a fault, and its other calls go well."""
    place, attribute, rank, error, calls = EACH[name]
    right, left = getattr(place, attribute), [calls]

    def faulty(*args, **kwargs):
        left[0] -= 1
        if here.rank == rank and left[0] == -1:
            raise error
        return right(*args, **kwargs)

    with faults.patched(place, attribute, faulty):
        yield
