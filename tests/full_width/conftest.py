"""Every core, and a table of all cases at the end."""

import os
from collections.abc import Iterator

import pytest
import torch

ROWS = pytest.StashKey[dict[str, dict[str, str]]]()


@pytest.fixture(scope="session", autouse=True)
def _threads() -> Iterator[None]:
    """Compute on as many threads as the environment allows, not on the one of other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def table(request) -> dict[str, dict[str, str]]:
    """Cells by case and column, to fill."""
    return request.config.stash.setdefault(ROWS, {})


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the table."""
    rows = terminalreporter.config.stash.get(ROWS, {})
    columns = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    lines = [["case", *columns], ["---"] * (len(columns) + 1)]
    lines += [[case, *(cells.get(name, "") for name in columns)] for case, cells in rows.items()]
    if rows:
        terminalreporter.write_line("")
    for cells in lines if rows else []:
        terminalreporter.write_line("| " + " | ".join(cells) + " |")
