"""Page of a report: numbers and pictures put into the template."""

import base64
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from mvczigal_ref import __version__
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.evaluation.evaluate import PairedGain
from mvczigal_ref.files import atomic_write
from mvczigal_ref.method.caption import DRIFT_EDGES, drift_histogram
from mvczigal_ref.pictures import contact_sheet
from mvczigal_ref.recipes import RECIPES
from mvczigal_ref.report.figures import draw, draw_histogram
from mvczigal_ref.report.panels import panels
from mvczigal_ref.report.run_content import (
    RunContent,
    changed_settings,
    informative_metrics,
    read_run,
    reward_unit,
    score_tables,
    settings_of,
)
from mvczigal_ref.shapes import Images

__all__ = ["headline", "write_report"]

_CLEAR = 2.0  # standard errors above which a change is called one
_ANY = next(iter(RECIPES))  # a settings file that sets everything starts from any recipe
_CAPTIONS = 12  # captions of the last iteration on the page
_SHEET_EDGE = 96  # smallest edge of one view on the page [px]


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


def headline(gains: Mapping[str, PairedGain], *, finished: int, unit: str) -> str:
    """Say in a sentence what training did to the held-out scores.

    Args:
        gains: Gains by name of the score; empty while there is nothing to compare.
        finished: Finished iterations.
        unit: Unit of the scores; may be empty.

    Returns:
        The sentence.

    Examples:
        >>> gain = PairedGain(before=10.0, after=11.0, gain=1.0, standard_error=0.1)
        >>> headline({"joint view": gain}, finished=60, unit="dB")
        'The joint-view score rose by 1.00 ± 0.10 dB in 60 iterations.'
    """
    done = "1 iteration" if finished == 1 else f"{finished} iterations"
    if not gains:
        return f"Nothing to compare yet: {done} done, no held-out scores after training."
    parts = []
    for name, gain in gains.items():
        far = abs(gain.gain) > _CLEAR * gain.standard_error  # False where the error is NaN
        size = f"{abs(gain.gain):.2f} ± {gain.standard_error:.2f}{unit and ' ' + unit}"
        change = ("rose by " if gain.gain > 0 else "fell by ") + size
        if not far:
            change = f"did not change clearly ({_signed(gain)}{unit and ' ' + unit})"
        parts.append(f"the {name.replace(' ', '-')} score {change}")
    text = " and ".join(parts)
    return f"{text[0].upper()}{text[1:]} in {done}."


def _signed(gain: PairedGain) -> str:
    return f"{gain.gain:+.2f} ± {gain.standard_error:.2f}"


def _content(run: RunContent) -> dict[str, Any]:
    """Gather everything that the template names."""
    config, unit = run.config, reward_unit(run.config)
    finished = run.rows[-1]["iteration"] + 1 if run.rows else 0
    gains = run.gains()
    rows = _with_scores(run)
    keys = informative_metrics(config, {key for row in rows for key in row})
    figures = [
        {"title": panel.title, "note": panel.note, "svg": Markup(svg),
         "legend": [curve for curve in panel.curves if curve.label]}
        for place, panel in enumerate(panels(unit, keys))
        if (svg := draw(panel, rows, name=f"f{place}"))
    ]  # fmt: skip
    if svg := draw_histogram(
        DRIFT_EDGES, drift_histogram(run.captions), label="drift", name="drift"
    ):
        figures.append(
            {"title": "Probability drift, all iterations", "legend": [], "svg": Markup(svg),
             "note": "Change of the log-density of a sample under its caption in place of its "
             "prompt: share of all captions, samples and steps."}
        )  # fmt: skip
    noises, prompts = run.before.joint.shape if run.before is not None else (0, 0)
    return {
        "name": run.folder.resolve().name,
        "version": __version__,
        "config": config,
        "unit": unit,
        "finished": finished,
        "facts": _facts(config, finished),
        "command": _command(run),
        "headline": headline(
            gains, finished=max(run.evaluations) if gains else finished, unit=unit
        ),
        "gains": gains,
        "signed": _signed,
        "noises": noises,
        "num_prompts": prompts,
        "sheets": _sheets(run),
        "captions": run.captions[-1]["captions"][:_CAPTIONS] if run.captions else [],
        "figures": figures,
        "stages": _stages(run.rows),
        "memory": _peak(run.rows),
        "settings": settings_of(config),
        "changed": changed_settings(config),
        "text": json.dumps,
        "files": _files(run.folder),
    }


def _with_scores(run: RunContent) -> list[dict[str, Any]]:
    """Gather the metrics, and the held-out scores where they were measured between the ends."""
    rows = {row["iteration"]: dict(row) for row in run.rows}
    if any("idle_steps" in row for row in run.rows):  # written only where there are some
        rows = {iteration: {"idle_steps": 0.0} | row for iteration, row in rows.items()}
    if len(run.evaluations) > 2:
        for finished, scores in run.evaluations.items():
            row = rows.setdefault(finished - 1, {"iteration": finished - 1})
            row["held_out/per_view"] = float(scores.per_view.double().mean())
            row["held_out/joint"] = float(scores.joint.double().mean())
    return [rows[iteration] for iteration in sorted(rows)]


def _facts(config: TrainConfig, finished: int) -> list[str]:
    """Describe the run, in a few words per fact."""
    sampler, model, run = config.sampler, config.model, config.run
    kind = sampler.kind if sampler.kind == "flow" else sampler.kind.upper()
    trained = f"LoRA of rank {model.lora_rank}" if model.finetune == "lora" else "every weight"
    return [
        f"{finished} of {run.iterations} iterations",
        f"{run.objects_per_iteration} {_sampled(config)}",
        f"advantage: {config.advantage.mode.replace('_', ' ')}"
        + (", shuffled" if config.advantage.shuffle else ""),
        f"{kind}, {sampler.num_steps} steps, guidance {sampler.guidance_scale:g}",
        f"trains {trained}, learning rate {config.optim.lr:g}",
        f"seed {run.seed}",
    ]


def _sampled(config: TrainConfig) -> str:
    """Describe what is sampled of each prompt."""
    rollout = config.rollout
    if rollout.kind == "pair":
        zigzag = config.objective.pairing == "zigzag"
        return f"pairs per iteration ({'zigzag against standard' if zigzag else 'two standard'})"
    if rollout.kind == "tree":
        steps = ", ".join(map(str, rollout.split_steps))
        return f"trees per iteration, which divide at steps {steps}"
    if rollout.kind == "branches":
        branches = f"{rollout.members} branches of {rollout.trunks} trunks at every step"
        return f"prompts per iteration, {branches}"
    enhancer = config.condition.enhancer
    captions = "" if enhancer == "none" else f", captions: {enhancer}"
    return f"groups of {rollout.members} per iteration{captions}"


def _command(run: RunContent) -> str:
    """Write the command that repeats the run."""
    if run.config.recipe not in RECIPES:
        return shlex.join(["mvczigal", "train", _ANY, "--config", str(run.folder / "config.json")])
    words = [
        f"{path}={value if isinstance(value, str) else json.dumps(value)}"
        for path, (_, value) in changed_settings(run.config).items()
    ]
    return shlex.join(["mvczigal", "train", run.config.recipe, *words])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sheet:
    """One prompt's views before and after training, with the scores of these images."""

    prompt: str
    before: str
    after: str | None
    scores: list[tuple[str, float, float | None]]


def _sheets(run: RunContent) -> list[_Sheet]:
    before, after = run.before, run.after
    if before is None:
        return []
    shown = len(before.images)
    sheets = []
    for place in range(shown):
        scores = [
            (
                name,
                float(getattr(before, field)[0, place]),
                None if after is None else float(getattr(after, field)[0, place]),
            )
            for name, field in score_tables(run.config).items()
        ]
        sheets.append(
            _Sheet(
                prompt=run.prompts[place],
                before=_png(before.images[place : place + 1]),
                after=None if after is None else _png(after.images[place : place + 1]),
                scores=scores,
            )
        )
    return sheets


def _png(images: Images) -> str:
    """Encode one row of views as a data URL."""
    scale = max(1, -(-_SHEET_EDGE // images.shape[-1]))
    sheet = contact_sheet(images, scale=scale, gap=scale)
    inside = sheet.crop((scale, scale, sheet.width - scale, sheet.height - scale))
    buffer = io.BytesIO()
    inside.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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
