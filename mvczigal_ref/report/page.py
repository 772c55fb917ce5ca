"""Page of a report: numbers, figures and pictures put into the template."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from mvczigal_ref import __version__
from mvczigal_ref.condition.drift_bins import DRIFT_EDGES, drift_histogram
from mvczigal_ref.config.scorer_names import reward_unit
from mvczigal_ref.evaluation.digits import decimals_of_size, gain_text
from mvczigal_ref.evaluation.durations import duration
from mvczigal_ref.files import atomic_write
from mvczigal_ref.pictures.drawing import element
from mvczigal_ref.pictures.palette import DARK, LIGHT, variables
from mvczigal_ref.report.figures import draw, draw_histogram
from mvczigal_ref.report.gains import draw_gains
from mvczigal_ref.report.gallery import choose, gallery, image_gains
from mvczigal_ref.report.panels import panels
from mvczigal_ref.report.run_content import (
    RunContent,
    changed_settings,
    informative_metrics,
    read_run,
    score_tables,
    settings_of,
)
from mvczigal_ref.report.words import (
    error_removed,
    facts,
    headline,
    repeating_command,
    run_facts,
)

__all__ = ["write_report"]

_CAPTIONS = 12  # captions of the last iteration on the page


def write_report(folder: Path) -> Path:
    """Write a run's page: one file that needs no other file, no network and no script.

    Args:
        folder: A run folder, finished or not.

    Returns:
        The page, ``report.html`` in the folder.

    Raises:
        CheckpointError: If the folder is no run folder, or a file of scores is damaged.
    """
    run = read_run(folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mvczigal_ref.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(**_content(run))
    path = folder / "report.html"
    atomic_write(path, page)
    return path


def _content(run: RunContent) -> dict[str, Any]:
    """Gather everything that the template names."""
    config, unit = run.config, reward_unit(run.config.reward)
    finished = run.rows[-1]["iteration"] + 1 if run.rows else 0
    gains = run.gains()
    figures, flat = _figures(run, unit)
    noises, prompts = run.before.joint.shape if run.before is not None else (0, 0)
    compared = max(run.evaluations) if gains else finished
    return {
        "light": Markup(variables(LIGHT)),
        "dark": Markup(variables(DARK)),
        "name": run.folder.resolve().name,
        "version": __version__,
        "config": config,
        "unit": unit,
        "facts": facts(config, finished),
        "command": repeating_command(run),
        "headline": headline(gains, finished=compared, unit=unit),
        "gains": {name: gain_text(gain) for name, gain in gains.items()},
        "less_error": {
            name: error_removed(gain.gain) for name, gain in gains.items() if unit == "dB"
        },
        "dots": _dots(run, unit),
        "noises": noises,
        "num_prompts": prompts,
        "num_images": len(image_gains(run)),
        "ranking": list(score_tables(config))[-1],
        "gallery": gallery(run),
        "captions": _captions(run),
        "figures": figures,
        "flat": flat,
        "stages": _stages(run.rows),
        "memory": _peak(run.rows),
        "run_facts": run_facts(run),
        "in_iterations": duration(_seconds(run.rows)),
        "settings": settings_of(config),
        "changed": changed_settings(config),
        "text": json.dumps,
        "files": _files(run.folder),
    }


def _figures(run: RunContent, unit: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw every panel but those that show nothing but 0, which are named."""
    rows = _with_scores(run)
    keys = informative_metrics(run.config, {key for row in rows for key in row})
    shown = panels(unit, keys)
    figures = [
        {"title": panel.title, "note": panel.note, "svg": Markup(svg),
         "legend": [curve for curve in panel.curves if curve.label]}
        for place, panel in enumerate(shown)
        if not panel.is_flat(rows) and (svg := draw(panel, rows, name=f"f{place}"))
    ]  # fmt: skip
    title = "Probability drift, all iterations"
    note = (
        "Change of the log-density of a sample under its caption in place of its prompt: share of "
        "all captions, samples and steps."
    )
    counts = drift_histogram(run.captions)
    label = "drift [nats/element]"
    if svg := draw_histogram(DRIFT_EDGES, counts, label=label, title=title, name="drift"):
        figures.append({"title": title, "legend": [], "svg": Markup(svg), "note": note})
    return figures, [panel.title for panel in shown if panel.is_flat(rows)]


def _dots(run: RunContent, unit: str) -> Markup | None:
    """Draw the gain of every pair of images, those of the gallery marked."""
    before, after = run.before, run.after
    if before is None or after is None:
        return None
    pairs = {
        name: getattr(after, field) - getattr(before, field)
        for name, field in score_tables(run.config).items()
    }
    chosen = choose(image_gains(run), run.prompts)
    marked = {one.reason: one.place for one in chosen if one.reason in ("best", "median", "worst")}
    figure = draw_gains(run.gains(), pairs, unit=unit, marked=marked)
    return Markup(element(figure, name="gains", title="Gain of every prompt and noise, as dots"))


def _with_scores(run: RunContent) -> list[dict[str, Any]]:
    """Gather the metrics, and the held-out scores where they were measured between the ends."""
    rows = {row["iteration"]: dict(row) for row in run.rows}
    if any("idle_steps" in row for row in run.rows):  # written only where there are some
        rows = {iteration: {"idle_steps": 0.0} | row for iteration, row in rows.items()}
    if len(run.evaluations) > 2:
        for finished, scores in run.evaluations.items():
            rows.setdefault(finished - 1, {"iteration": finished - 1}).update(scores.means())
    return [rows[iteration] for iteration in sorted(rows)]


def _captions(run: RunContent) -> list[dict[str, Any]]:
    """Give some captions of the last iteration, their rewards with the digits of their size."""
    rows = run.captions[-1]["captions"][:_CAPTIONS] if run.captions else []
    names = ("reward_under_prompt", "reward_under_caption")
    decimals = decimals_of_size(*(row[name] for row in rows for name in names))
    return [{**row, **{name: f"{row[name]:.{decimals}f}" for name in names}} for row in rows]


def _seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    stages = (row[key] for row in rows for key in row if key.startswith("seconds/"))
    return math.fsum(seconds or 0.0 for seconds in stages)


def _stages(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Give mean seconds per iteration and share of the whole, by stage, in the order they run."""
    # A stage may be absent from the first iteration, as the guard's is.
    names = dict.fromkeys(key for row in rows for key in row if key.startswith("seconds/"))
    means = [sum(row.get(name) or 0.0 for row in rows) / len(rows) for name in names]
    whole = sum(means) or 1.0
    return [
        (name.removeprefix("seconds/"), mean, mean / whole)
        for name, mean in zip(names, means, strict=True)
    ]


def _peak(rows: Sequence[Mapping[str, Any]]) -> int:
    """Give the main process's peak memory [MiB]; 0 if it was not measured."""
    return round(max((row.get("peak_memory") or 0 for row in rows), default=0) / 2**20)


def _files(folder: Path) -> list[tuple[str, str, int]]:
    """List relative path, link and size [KiB] of every file of the run but hidden ones."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [
        (str(path), quote(path.as_posix()), -(-(folder / path).stat().st_size // 1024))
        for path in paths
        if path.name != "report.html" and not any(part.startswith(".") for part in path.parts)
    ]
