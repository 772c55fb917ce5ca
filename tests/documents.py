"""Read what the documents say, to hold it against the code."""

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
METRICS = ROOT / "docs" / "metrics.md"


def cells(text: str) -> list[list[str]]:
    """Take the rows of all tables apart; heads and rules among them."""
    lines = (line.strip() for line in text.splitlines())
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if line.startswith("|")
    ]


def quoted(text: str) -> list[str]:
    """Give what stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


def documented_metrics() -> list[re.Pattern[str]]:
    """Read the names of docs/metrics.md; a word in capitals stands for any name."""
    rows = cells(METRICS.read_text("utf-8"))
    names = [name for row in rows for name in quoted(row[0])]
    return [re.compile(re.sub("[A-Z]+", r"[\\w.]+", re.escape(name))) for name in names]


def undocumented(names: Iterable[str]) -> list[str]:
    """Name the metrics that docs/metrics.md does not."""
    patterns = documented_metrics()
    return sorted(
        name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)
    )
