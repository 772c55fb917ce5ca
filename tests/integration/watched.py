"""The command line with every way to an unpickle shut: one of the processes of a run."""

import os
import pickle
import sys
from pathlib import Path


def _refuse(*_: object, **__: object) -> None:
    """End the process at once: no `except` may hide it."""
    Path(os.environ["UNPICKLED"]).touch()
    os._exit(99)


class _Refused(pickle.Unpickler):
    def __init__(self, *_: object, **__: object) -> None:
        _refuse()


if __name__ == "__main__":
    pickle.loads = pickle.load = _refuse
    pickle.Unpickler = pickle._Unpickler = _Refused
    from mvczigal_ref.cli import launch, main

    launch.PROGRAM = ("-m", "tests.integration.watched")  # the processes that it starts are, too
    sys.exit(main())
