"""Experiment trackers, from accelerate's own map: metrics, settings and sheets of a run."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.pictures import contact_sheet, view_scale
from mvczigal_ref.shapes import Images
from mvczigal_ref.training.tracker_names import require_trackers

__all__ = ["Trackers", "check_trackers"]

Number = float | int | bool | None

_PROJECT = "mvczigal"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that could not be started; in a terminal, wandb may ask for its key.

    Args:
        names: As in ``run.trackers``.

    Raises:
        ConfigError: If one is not installed, or wandb has no key.

    Examples:
        >>> check_trackers([])
    """
    require_trackers(names)
    if "wandb" in names and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        import wandb

        try:
            wandb.login()
        except wandb.Error as error:
            msg = (
                f"tracker 'wandb' cannot log in: {error} Set WANDB_API_KEY, or "
                "WANDB_MODE=offline, or take it out of `run.trackers`."
            )
            raise ConfigError(msg) from error


class Trackers:
    """The trackers that a run asked for, behind one call; with none it does nothing.

    A context, at whose end they write out what they hold back.

    Args:
        names: Names in accelerate's map, such as "tensorboard"; each is a package to install.
        folder: The run's folder; its name names the run.
        config: The run's configuration, stored beside the curves.
        finished: Iterations of the checkpoint that the run goes on from, 0 for a new run.

    Raises:
        ImportError: If a tracker is not installed; :func:`check_trackers` says so earlier.
    """

    def __init__(
        self, names: Sequence[str], *, folder: Path, config: TrainConfig, finished: int = 0
    ) -> None:
        trackers = [_tracker(name, folder, finished) for name in names]
        with ExitStack() as opened:
            for tracker in trackers:
                tracker.start()
                opened.callback(tracker.finish)
                if tracker.name == "comet_ml":  # which takes no name when it starts
                    tracker.tracker.set_name(folder.name)
                tracker.store_init_configuration(_flat(to_dict(config)))
            opened.pop_all()  # only those that opened before one that failed are closed
        self._trackers = trackers

    def __enter__(self) -> "Trackers":
        """Give the trackers."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the trackers, however the run ended; what ended it is what is told."""
        with nullcontext() if error is None else suppress(Exception):
            self.close()

    def log(self, iteration: int, metrics: Mapping[str, Number]) -> None:
        """Hand one iteration's metrics to every tracker.

        Args:
            iteration: Index of the iteration, 0 the first.
            metrics: Numbers by name.
        """
        for tracker in self._trackers:
            tracker.log({k: v for k, v in metrics.items() if v is not None}, step=iteration)

    def log_sheet(self, iteration: int, name: str, images: Images) -> None:
        """Hand one sheet to every tracker that takes pictures; the others go without.

        Args:
            iteration: Index of the iteration, 0 the first.
            name: Name of the sheet.
            images: Objects as rows and their views as columns, in [0, 1].
        """
        takers = [each for each in self._trackers if hasattr(each, "log_images")]
        if not takers or not images.numel():
            return
        sheet = contact_sheet(images, scale=view_scale(images))
        for tracker in takers:
            _log_picture(tracker, name, sheet, iteration)

    def close(self) -> None:
        """Write out what trackers hold back; each is closed, also where another fails."""
        with ExitStack() as closing:
            for tracker in self._trackers:
                closing.callback(tracker.finish)


def _tracker(name: str, folder: Path, finished: int) -> GeneralTracker:
    """Make a tracker that goes on with the folder's run where its service can."""
    # The same folder is the same run, and another of the same name is another.
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    arguments: dict[str, dict[str, Any]] = {
        # Curves of iterations that the run does again are hidden, not drawn twice.
        "tensorboard": {"logging_dir": str(folder), "purge_step": finished},
        "wandb": {"name": folder.name, "id": key[:16], "dir": str(folder), "resume": "allow"},
        "trackio": {"name": f"{folder.name}-{key[:8]}", "resume": "allow"},
        "swanlab": {
            "experiment_name": folder.name, "id": key[:21], "logdir": str(folder / "swanlab"),
            "resume": "allow",
        },
        "comet_ml": {"experiment_key": key[:32]},
        "mlflow": {"experiment_name": _PROJECT, "run_name": folder.name},
        "clearml": {"task_name": folder.name},
        "aim": {"logging_dir": str(folder)},
        "dvclive": {"dir": str(folder / "dvclive"), "resume": finished > 0, "save_dvc_exp": False},
    }  # fmt: skip
    # A run is a project's, but for those whose first argument is another name.
    project = {"tensorboard": "tensorboard", "aim": folder.name}.get(name, _PROJECT)
    named = {} if name == "mlflow" else {"run_name": project}
    return LOGGER_TYPE_TO_CLASS[name](**named, **arguments.get(name, {}))


def _log_picture(tracker: Any, name: str, sheet: Image.Image, iteration: int) -> None:  # noqa: ANN401
    """Hand over a picture; what `log_images` takes differs by tracker."""
    if tracker.name == "tensorboard":
        values, options = np.asarray(sheet)[None], {"dataformats": "NHWC"}
        tracker.log_images({name: values}, step=iteration, **options)
    elif tracker.name in ("aim", "clearml"):
        tracker.log_images({name: sheet}, step=iteration)
    else:
        tracker.log_images({name: [sheet]}, step=iteration)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | int | bool]:
    flat: dict[str, str | float | int | bool] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            plain = isinstance(value, str | float | int | bool)
            flat[prefix + key] = value if plain else json.dumps(value)
    return flat
