"""`examples/space`: started as the hub starts it, it serves the page."""

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.unit.demo.test_page import STUCK_S, free_port, until_said

SPACE = Path(__file__).parents[2] / "examples" / "space"


@pytest.mark.slow
def test_a_space_serves_the_page(tmp_path):
    """In a folder that holds its files alone, at the address that the hub gives."""
    pytest.importorskip("gradio", reason="the extra `demo` is not installed")
    folder, log, port = tmp_path / "space", tmp_path / "log", free_port()
    shutil.copytree(SPACE, folder)
    address = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", "app.py"], cwd=folder, stdout=file, stderr=file,
            env={**os.environ, **address, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    try:
        until_said("Running on local URL", process, log)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=STUCK_S) as answer:
            page = answer.read().decode()
    finally:
        process.terminate()
        process.wait(STUCK_S)

    assert answer.status == 200
    assert "Text to all views of an object" in page
    assert "Traceback" not in log.read_text("utf-8")
