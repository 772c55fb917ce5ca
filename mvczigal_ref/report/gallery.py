"""Gallery: held-out objects before and after training, chosen by what they gained."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.scorer_names import VIEW_MEAN
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.evaluation.digits import decimals_of_size
from mvczigal_ref.evaluation.scores import Evaluation
from mvczigal_ref.pictures import contact_sheet, view_scale
from mvczigal_ref.pictures.heat import error_map
from mvczigal_ref.report.run_content import RunContent, reward_unit, score_tables
from mvczigal_ref.shapes import Images
from mvczigal_ref.tiny_world.grammar import parse
from mvczigal_ref.tiny_world.render import IMAGE_SIZE
from mvczigal_ref.tiny_world.score import nearest_renders

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


def image_gains(run: RunContent) -> Float[Tensor, " prompt"]:
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
        return torch.zeros(0)
    first: Tensor = getattr(before, field)[0].double()
    scores = first if after is None else getattr(after, field)[0].double() - first
    shown = min(len(e.images) for e in (before, after) if e is not None)
    return scores[:shown]


def choose(gains: Float[Tensor, " prompt"], prompts: Sequence[str]) -> list[Choice]:
    """Choose the best, the median and the worst prompt, and one of each shape that is left.

    Args:
        gains: Gain of each prompt's images [reward units].
        prompts: The prompts; those of the tiny world have a shape.

    Returns:
        Choices, best first; of a shape its median prompt. Without shapes the quartiles are added.

    Examples:
        >>> [c.reason for c in choose(torch.tensor([1.0, 3.0, 2.0]), ["a", "b", "c"])]
        ['best', 'median', 'worst']
    """
    order = gains.argsort(descending=True, stable=True).tolist()
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
            Strip(name, _png(with_errors(_object(scores, choice), prompt, run.config)),
                  _words(run, scores, choice, since=run.before if name == "after" else None))
            for name, scores in scored.items()
        )  # fmt: skip
        rows.append(Row(prompt, choice.reason, strips))
    return rows


def with_errors(
    images: Images, prompt: str, config: TrainConfig
) -> Float[Tensor, "row view rgb height width"]:
    """Put below an object's views where they differ from the nearest exact render.

    Args:
        images: Views of one object.
        prompt: Prompt of the object.
        config: Scorers and cameras of the run.

    Returns:
        Two rows, views and error maps; the views alone where no exact judge looked.
    """
    if reward_unit(config) != "dB" or not _shape(prompt) or images.shape[-1] != IMAGE_SIZE:
        return images
    from mvczigal_ref.system.rig import rig_of  # loads the libraries of models

    rig = None if config.reward.joint == VIEW_MEAN else rig_of(config.model)
    maps: Images = error_map(images, nearest_renders(images, [prompt], rig=rig))
    return torch.cat([images, maps])


def _object(scores: Evaluation, choice: Choice) -> Images:
    return scores.images[choice.place : choice.place + 1]


def _shape(prompt: str) -> str:
    """Name the shape of a prompt of the tiny world; nothing for others."""
    try:
        return parse(prompt).shape
    except ConfigError:
        return ""


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


def _png(rows: Float[Tensor, "row view rgb height width"]) -> str:
    """Encode rows of views as a data URL."""
    scale = view_scale(rows)
    sheet = contact_sheet(rows, scale=scale, gap=scale, paper=_PAPER)
    inside = sheet.crop((scale, scale, sheet.width - scale, sheet.height - scale))
    buffer = io.BytesIO()
    inside.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
