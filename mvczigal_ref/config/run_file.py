"""Settings that a run wrote into its folder, read back."""

import json
from pathlib import Path

from mvczigal_ref.config.loading import load_config, to_dict
from mvczigal_ref.config.train import TrainConfig
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import require_run

__all__ = ["run_config"]


def run_config(folder: Path) -> TrainConfig:
    """Read the settings of a run folder; every section must be there.

    A setting that a section lacks, since an earlier version did not know it, has its default.

    Args:
        folder: Run folder.

    Returns:
        Settings of the run.

    Raises:
        CheckpointError: If it is no run folder, or its config.json is cut, empty or another file's.

    Examples:
        >>> run_config(Path("absent"))
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: 'absent' is no run folder: it holds no config.json. \
Pass a folder that `mvczigal train` wrote.
    """
    path = require_run(folder)
    name = repr(str(path))
    begin = f"{name} is no run's configuration: "
    try:
        config = load_config(file=path)  # which completes what is missing
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # no settings, or no JSON
        reason = str(error).replace(name, "it")
        msg = f"{begin}{reason} Restore it, or choose another folder."
        raise CheckpointError(msg) from error
    missing = sorted(to_dict(config).keys() - (values or {}).keys())
    if missing:
        msg = f"{begin}it lacks {', '.join(missing)}. Restore it, or choose another folder."
        raise CheckpointError(msg)
    return config
