"""Prompts of a dataset on the Hugging Face hub, by the package `datasets`."""

import re
from importlib.util import find_spec
from typing import Any

from mvczigal_ref.errors import ConfigError, one_line, quoted
from mvczigal_ref.training.prompt_rows import Rows

__all__ = ["dataset_rows", "is_dataset"]

_PREFIX = "hf:"
_NAME = re.compile(
    r"hf:(?P<dataset>[\w.-]+/[\w.-]+)(/(?P<split>[\w.-]+))?:(?P<column>[^@]+)"
    r"(@(?P<revision>[\w./-]+))?"
)
_SPLIT = "train"
_LONGEST_REASON = 200  # of another library's error [characters]


def is_dataset(name: str) -> bool:
    """Say whether a setting names a dataset of the hub.

    Args:
        name: As in ``run.prompts``.

    Returns:
        True if it begins with ``hf:``.
    """
    return name.startswith(_PREFIX)


def dataset_rows(name: str, *, setting: str) -> Rows:
    """Read a column of a dataset; no code of a repository is ever run.

    What has been loaded before is in the local cache, and is read from there without a network.

    Args:
        name: ``hf:user/dataset:column``, with ``/split`` after the dataset where it is not
            "train", and ``@revision`` at the end for a commit, tag or branch.
        setting: Name of the setting, for messages.

    Returns:
        Rows of the list, numbered from 1.

    Raises:
        ConfigError: If the package is missing, or there is no such dataset, split or column; says
            what to install, or which columns exist.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        msg = (
            f"`{setting}` must read hf:USER/DATASET:COLUMN, hf:USER/DATASET/SPLIT:COLUMN or either "
            f"with @REVISION at its end; got {quoted(name)}."
        )
        raise ConfigError(msg)
    if find_spec("datasets") is None:
        msg = (
            f"`{setting}` = {quoted(name)} needs the package datasets. Run `pip install "
            '-e ".[datasets]"`, or write the column to a text file.'
        )
        raise ConfigError(msg)
    table = _load(match["dataset"], match["split"] or _SPLIT, match["revision"], name, setting)
    column = match["column"]
    if column not in table.column_names:
        names = ", ".join(quoted(each) for each in table.column_names)
        msg = f"`{setting}` = {quoted(name)} must name a column of the dataset; it has {names}."
        raise ConfigError(msg)
    rows = []
    for number, text in enumerate(table.select_columns([column])[column], 1):
        if not isinstance(text, str | None):
            msg = f"row {number} of {quoted(name)} must hold a text as prompt; got {quoted(text)}."
            raise ConfigError(msg)
        rows.append((number, (text or "").strip()))
    return Rows(rows, "row")


def _load(dataset: str, split: str, revision: str | None, name: str, setting: str) -> Any:  # noqa: ANN401 - of a package that may be absent
    """Load one split, from the local cache alone where the hub cannot be reached."""
    import datasets

    from mvczigal_ref.models.reach import without_retries

    try:
        with without_retries():
            return datasets.load_dataset(dataset, split=split, revision=revision)
    except Exception as error:  # the library raises nearly every kind of exception
        reason = one_line(error)[:_LONGEST_REASON].rstrip(".")
        msg = (
            f"`{setting}` = {quoted(name)} cannot be loaded: {type(error).__name__}: {reason}. "
            "Check the name; without a network, load it once where there is one, or write the "
            "column to a text file."
        )
        raise ConfigError(msg) from error
