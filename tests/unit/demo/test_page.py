"""`demo.page`: Gradio's page; its server is asked as a browser asks it."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

PROMPT = "a red cube with a white nose"
STUCK_S = 900  # after which a server that says nothing is taken to hang, on the slowest machine


def free_port():
    """Find a port of this machine that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serve the shipped weights by the command, at a free port; give the address and its log."""
    pytest.importorskip("gradio", reason="the extra `demo` is not installed")
    port = free_port()
    log = tmp_path_factory.mktemp("play") / "log"
    with serving(port, log):
        yield f"http://127.0.0.1:{port}/", log


@contextmanager
def serving(port, log):
    """Serve by the command, from when it says that the page is there."""
    command = [sys.executable, "-um", "mvczigal_ref", "play", "--device=cpu", f"--port={port}"]
    place = {**os.environ, "TMPDIR": str(log.parent)}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=place)
    try:
        until_said("the page is at", process, log)
        yield process
    finally:
        process.terminate()
        process.wait(STUCK_S)


def until_said(words, process, log):
    """Wait until a server's log has these words."""
    end = time.monotonic() + STUCK_S
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def client(server):
    """Connect to it."""
    from gradio_client import Client

    folder = server[1].with_name("downloads")
    return Client(server[0], verbose=False, download_files=folder)


@pytest.mark.slow
def test_the_page_gives_pictures_and_scores(client):
    """Two sheets, ring, turntable, and a row for each view and one for all."""
    from PIL import Image

    message, sheets, ring, turn, scores = client.predict(
        PROMPT, 0, 2, 2.0, True, api_name="/sample"
    )
    files = [Image.open(io.BytesIO(Path(path).read_bytes())) for path in (*sheets, ring, turn)]

    assert message == ""
    assert files[0].size == files[1].size
    assert files[0].tobytes() != files[1].tobytes()
    assert files[2].width == files[2].height
    assert files[3].n_frames == 6
    assert len(scores["data"]) == 7
    assert scores["headers"] == ["score [dB]", "plain sampling", "as asked for"]


@pytest.mark.slow
def test_old_turntables_are_removed(client, server):
    """A page that is open for days fills no disk: only the newest is left beside Gradio's own."""
    for seed in (1, 2):
        turn = client.predict(PROMPT, seed, 2, 2.0, False, api_name="/sample")[3]
        assert Path(turn).stat().st_size > 0

    assert len(list(server[1].parent.glob("mvczigal-play-*/*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_page_that_ended_leaves_no_picture(tmp_path, number):
    """Neither its own nor Gradio's, with a visitor still there; and no traceback."""
    gradio_client = pytest.importorskip("gradio_client", reason="`demo` is not installed")
    port, log = free_port(), tmp_path / "log"
    with serving(port, log) as process:
        visitor = gradio_client.Client(
            f"http://127.0.0.1:{port}/", verbose=False, download_files=False
        )
        visitor.predict(PROMPT, 0, 2, 1.0, False, api_name="/sample")
        assert len(list(tmp_path.rglob("*.webp"))) > 1
        process.send_signal(number)
        assert process.wait(STUCK_S) == 0

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [log]
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "seed", "words"),
    [("a red dog", 0, "a COLOUR SHAPE"), (PROMPT, -1, "`run.seed`"), (PROMPT, None, "`seed`")],
)
def test_a_bad_request_is_answered_by_its_message(client, server, prompt, seed, words):
    """On the page, and no traceback behind it."""
    message, sheets, ring, turn, _ = client.predict(prompt, seed, 2, 2.0, False, api_name="/sample")

    assert words in message
    assert "\n" not in message
    assert (sheets, ring, turn) == (None, None, None)
    assert "Traceback" not in server[1].read_text()


@pytest.mark.slow
def test_the_page_is_served_to_this_machine_alone(client, server):
    """Neither shared nor counted."""
    address, log = server
    port = int(address.strip("/").rpartition(":")[2])

    assert client.config["analytics_enabled"] is False
    assert log.read_text() == f"loading models\nthe page is at {address}; Ctrl-C ends it\n"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port))  # of this machine, too


@pytest.mark.slow
def test_a_browser_shows_it(server):
    """The scores come by themselves; a message in their place; no other machine is asked."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium; on Debian: apt install chromium")
    others = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        shown = browser.new_page()
        shown.on("request", lambda request: others.append(request.url))
        shown.goto(server[0])
        shown.wait_for_selector("text=all views together", state="attached", timeout=90_000)
        pictures = shown.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)")
        shown.get_by_label("prompt").fill("a red dog")
        shown.get_by_role("button", name="sample").click()
        shown.wait_for_function(
            "() => [...document.querySelectorAll('textarea, input')]"
            ".some(field => field.value.includes('a COLOUR SHAPE'))"
        )
        browser.close()

    assert sum(width > 100 for width in pictures) >= 4  # both sheets, ring, turntable
    assert [url for url in others if not url.startswith((server[0], "data:", "blob:"))] == []


@pytest.mark.slow
def test_a_space_serves_the_page(tmp_path):
    """Started as the hub starts it, from a folder that holds its files alone."""
    pytest.importorskip("gradio", reason="the extra `demo` is not installed")
    folder, log, port = tmp_path / "space", tmp_path / "log", free_port()
    shutil.copytree(Path(__file__).parents[3] / "examples" / "space", folder)
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
