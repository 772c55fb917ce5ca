"""Lists of prompts that recipes name: those that the package ships, and where others are."""

from pathlib import Path, PurePosixPath

import mvczigal_ref

__all__ = ["PUBLISHED", "SHIPPED", "shipped_list", "where_to_get"]

SHIPPED = Path(mvczigal_ref.__file__).parent / "recipes" / "prompts"
"""Folder of the lists that the package ships, all of them its own."""

_FOLDER = "prompts"
_RAW = "https://raw.githubusercontent.com"
_PICKSCORE = f"{_RAW}/yifan123/flow_grpo/HEAD/dataset/pickscore"
_MIX_GRPO = f"{_RAW}/Tencent-Hunyuan/MixGRPO/HEAD/data"
PUBLISHED = {
    "mate3d.txt": (
        "MATE-3D's 160 prompts (arXiv:2412.11170) are published as a column of a table: `mkdir -p "
        f"prompts && curl -L {_RAW}/zhangyujie-1998/HyperScore/HEAD/csvfiles/all.csv | head -n 161 "
        "> prompts/mate3d.csv`, and name it prompts/mate3d.csv:prompt"
    ),
    "pickscore_train.txt": (
        "Flow-GRPO's prompts for PickScore are published: `curl -L --create-dirs -o "
        f"prompts/pickscore_train.txt {_PICKSCORE}/train.txt`"
    ),
    "pickscore_test.txt": (
        "Flow-GRPO's test prompts for PickScore are published: `curl -L --create-dirs -o "
        f"prompts/pickscore_test.txt {_PICKSCORE}/test.txt`"
    ),
    "hpdv2_train.txt": (
        "HPDv2's training prompts are published, as MixGRPO's trainer reads them: `curl -L "
        f"--create-dirs -o prompts/hpdv2_train.txt {_MIX_GRPO}/prompts.txt`"
    ),
    "hpdv2_test.txt": (
        "HPDv2's test prompts are published, as MixGRPO's trainer reads them: `curl -L "
        f"--create-dirs -o prompts/hpdv2_test.txt {_MIX_GRPO}/prompts_test.txt`"
    ),
}
"""Place of each published list that recipes name, by its file in the folder `prompts`."""


def shipped_list(name: str) -> Path | None:
    """Find a list that the package ships.

    Args:
        name: Such as ``prompts/simple_animals.txt``; with backslashes too.

    Returns:
        File of the list; None if there is no such list.

    Examples:
        >>> shipped_list("prompts/nothing.txt") is None
        True
    """
    leaf = _leaf(name)
    path = SHIPPED / leaf if leaf.endswith(".txt") else SHIPPED / "absent"
    return path if path.is_file() else None


def where_to_get(name: str) -> str:
    """Say where a list that a recipe names is published.

    Args:
        name: Such as ``prompts/mate3d.txt``.

    Returns:
        A clause; empty for any other name.

    Examples:
        >>> where_to_get("mine.txt")
        ''
    """
    return PUBLISHED.get(_leaf(name), "")


def _leaf(name: str) -> str:
    """Give the name of a file in the folder `prompts`; empty for any other path."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.name if path.parts == (_FOLDER, path.name) else ""
