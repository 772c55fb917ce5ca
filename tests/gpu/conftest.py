"""Figures of each test, written as it ends: a run that is cut leaves those of the tests before."""

import json
import os
from pathlib import Path

FIGURES = "MVCZIGAL_GPU_FIGURES"


def pytest_runtest_logreport(report) -> None:
    """Append what a test recorded to the file that the environment names, if it names one."""
    path = os.environ.get(FIGURES)
    if path and report.when == "call" and report.user_properties:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(report.user_properties)) + "\n")
