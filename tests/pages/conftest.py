"""A browser of this machine, and pages of runs: finished, of groups, and just begun."""

import shutil

import pytest
import torch

from mvczigal_ref.report import write_report
from mvczigal_ref.tiny_world.grammar import split_prompts
from tests.renders import render_prompts
from tests.unit.report.folders import KINDS, learnt, metrics, write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    """Start the first browser there is; without one, or without Playwright, nothing is tested."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"there is none of {', '.join(BROWSERS)}; on Debian: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        # As root in a container Chromium starts only without its sandbox; it reads our page alone.
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


def finished(folder):
    """Write a run of the tiny world over all held-out prompts, with scores on the way."""
    prompts = split_prompts()[1]
    generator = torch.Generator().manual_seed(0)
    clean = render_prompts(prompts, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    tables = torch.randn(2, 2, 40, generator=generator)
    evaluated = {n: (10 + n / 10 + tables[0], 5 + n / 10 + tables[1]) for n in (0, 20, 40)}
    images = {n: (clean + (0.2 - n / 400) * noise).clamp(0, 1) for n in evaluated}
    return write_run(
        folder, rows=metrics(40), evaluated=evaluated, images=images, prompts=prompts,
        overrides=["run.seed=3"],
    )  # fmt: skip


RUNS = {
    "finished": finished,
    "groups": lambda folder: write_run(folder, rows=learnt("groups"), name=KINDS["groups"]),
    "begun": write_run,
}


@pytest.fixture(scope="session", params=RUNS)
def report(request, tmp_path_factory):
    """The page of a run."""
    return write_report(RUNS[request.param](tmp_path_factory.mktemp(request.param) / "run"))
