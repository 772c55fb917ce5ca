"""Gallery: held-out objects before and after training, chosen by what they gained."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.scorer_names import reward_unit
from mvczigal_ref.evaluation.digits import decimals_of_size
from mvczigal_ref.evaluation.scores import Evaluation
from mvczigal_ref.pictures import contact_sheet, view_scale
from mvczigal_ref.pictures.heat import heat
from mvczigal_ref.report.run_content import RunContent, score_tables
from mvczigal_ref.tiny_world.grammar import is_sentence, parse

__all__ = ["Choice", "Row", "Strip", "choose", "gallery", "image_gains", "with_errors"]

_PAPER = (112, 112, 112)  # seen between views, on light and on dark pages


@dataclass(frozen=True, slots=True)
class Choice:
    """One prompt of a gallery, and the reason for it."""

    place: int
    """Index of the prompt among the held-out ones."""

    reason: str
    """Words such as ``best``."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One object's views on one occasion."""

    occasion: str
    """Either ``before`` or ``after``."""

    image: str
    """Data URL of a PNG: the views, and below them the error maps where there are some."""

    scores: str
    """Scores of these images, in words."""


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt before and, where there is such, after training."""

    prompt: str
    """The prompt."""

    reason: str
    """Reason for which it was chosen."""

    strips: tuple[Strip, ...]
    """One strip per occasion."""


def image_gains(run: RunContent) -> list[float]:
    """Give what each stored image has gained, by the score that judges most of it.

    Args:
        run: A run with scores.

    Returns:
        Gains of the first noise in the joint score, or in the per-view score where there is no
        other [reward units]; before there is anything to compare, the scores themselves.
    """
    field = list(score_tables(run.config).values())[-1]
    before, after = run.before, run.after
    if before is None:
        return []
    first: list[float] = getattr(before, field)[0].tolist()
    scores = first
    if after is not None:
        pairs = zip(first, getattr(after, field)[0].tolist(), strict=True)
        scores = [new - old for old, new in pairs]
    shown = min(len(e.images) for e in (before, after) if e is not None)
    return scores[:shown]


def choose(gains: Sequence[float], prompts: Sequence[str]) -> list[Choice]:
    """Choose the best, the median and the worst prompt, and one of each shape that is left.

    Args:
        gains: Gain of each prompt's images [reward units].
        prompts: The prompts; those of the tiny world have a shape.

    Returns:
        Choices, best first; of a shape its median prompt. Without shapes the quartiles are added.

    Examples:
        >>> [c.reason for c in choose([1.0, 3.0, 2.0], ["a", "b", "c"])]
        ['best', 'median', 'worst']
    """
    order = sorted(range(len(gains)), key=lambda place: -gains[place])
    if not order:
        return []
    last = len(order) - 1
    places = {"best": 0, "median": last // 2, "worst": last}
    shapes = [_shape(prompt) for prompt in prompts]
    if not any(shapes) and last >= 4:
        places |= {"upper quartile": last // 4, "lower quartile": 3 * last // 4}
    reasons: dict[int, str] = {}
    for reason, rank in places.items():
        reasons.setdefault(order[rank], reason)
    for shape in dict.fromkeys(filter(None, shapes)):
        like = [place for place in order if shapes[place] == shape]
        if like and not reasons.keys() & set(like):
            reasons[like[(len(like) - 1) // 2]] = f"median {shape}"
    return [Choice(place, reasons[place]) for place in order if place in reasons]


def gallery(run: RunContent) -> list[Row]:
    """Lay out the chosen prompts of a run.

    Args:
        run: A run, finished or not.

    Returns:
        Rows, the greatest gain first; empty before there are scores.
    """
    occasions = {"before": run.before, "after": run.after}
    scored = {name: scores for name, scores in occasions.items() if scores is not None}
    rows = []
    for choice in choose(image_gains(run), run.prompts):
        prompt = run.prompts[choice.place]
        strips = tuple(
            Strip(name, _png(with_errors(scores, choice.place, prompt, run.config)),
                  _words(run, scores, choice, since=run.before if name == "after" else None))
            for name, scores in scored.items()
        )  # fmt: skip
        rows.append(Row(prompt, choice.reason, strips))
    return rows


def with_errors(
    scores: Evaluation, place: int, prompt: str, config: TrainConfig
) -> Float[np.ndarray, "row view rgb height width"]:
    """Put below an object's views where they differ from the nearest exact render.

    Args:
        scores: Scores and images of an occasion, of NumPy.
        place: Index of the object among the images.
        prompt: Prompt of the object.
        config: Scorers and cameras of the run.

    Returns:
        Two rows, views and error maps; the views alone where no exact judge looked.
    """
    images: np.ndarray = scores.images[place : place + 1]
    levels = _levels(scores, place, prompt, config)
    return images if levels is None else np.concatenate([images, heat(levels)])


def _levels(
    scores: Evaluation, place: int, prompt: str, config: TrainConfig
) -> UInt8[np.ndarray, "one view height width"] | None:
    """Take an object's error levels, or render anew what an older version has not kept."""
    if scores.errors is not None:
        levels: np.ndarray = scores.errors[place : place + 1]
        return levels
    if reward_unit(config.reward) != "dB":
        return None
    import torch

    from mvczigal_ref.evaluation.exact_errors import exact_errors

    images = torch.from_numpy(scores.images[place : place + 1])
    anew = exact_errors(images, [prompt], config)
    return None if anew is None else anew.numpy()


def _shape(prompt: str) -> str:
    """Name the shape of a prompt of the tiny world; nothing for others."""
    return parse(prompt).shape if is_sentence(prompt) else ""


def _words(run: RunContent, scores: Evaluation, choice: Choice, since: Evaluation | None) -> str:
    """Say the scores of these images, and by how much they have changed."""
    parts = []
    for name, field in score_tables(run.config).items():
        value = float(getattr(scores, field)[0, choice.place])
        decimals = decimals_of_size(value)
        text = f"{name} {value:.{decimals}f}"
        if since is not None:
            change = value - float(getattr(since, field)[0, choice.place])
            text += f" ({change:+.{decimals}f})"
        parts.append(text)
    return ", ".join(parts)


def _png(rows: Float[np.ndarray, "row view rgb height width"]) -> str:
    """Encode rows of views as a data URL."""
    scale = view_scale(rows)
    sheet = contact_sheet(rows, scale=scale, gap=scale, paper=_PAPER)
    inside = sheet.crop((scale, scale, sheet.width - scale, sheet.height - scale))
    buffer = io.BytesIO()
    inside.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
