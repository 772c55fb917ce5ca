"""Results and sheet of a run, for the model card of its weights."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from mvczigal_ref.evaluation.digits import with_error
from mvczigal_ref.evaluation.scores import PairedGain
from mvczigal_ref.models.model_card import CardResult
from mvczigal_ref.pictures import contact_sheet, view_scale
from mvczigal_ref.report.run_content import RunContent

__all__ = ["card_results", "card_sheet"]

_MOST_PROMPTS = 4  # prompts on the sheet


def card_results(gains: Mapping[str, PairedGain], *, unit: str) -> list[CardResult]:
    """Write a run's gains as a card shows them.

    Args:
        gains: Gains by name of the score.
        unit: Unit of the scores; may be empty.

    Returns:
        One result per score.

    Examples:
        >>> gain = PairedGain(before=10.0, after=11.0, gain=1.0, standard_error=0.1)
        >>> card_results({"joint view": gain}, unit="dB")[0].text
        '10.00 to 11.00 dB, gain +1.00 ± 0.10 dB'
    """
    results = []
    for name, gain in gains.items():
        change, error = with_error(gain.gain, gain.standard_error, sign=True)
        before, _ = with_error(gain.before, gain.standard_error)
        after, _ = with_error(gain.after, gain.standard_error)
        ending = f" {unit}" if unit else ""
        text = f"{before} to {after}{ending}, gain {change} ± {error}{ending}"
        results.append(CardResult(name=name, gain=gain.gain, text=text))
    return results


def card_sheet(run: RunContent) -> Image.Image | None:
    """Lay out held-out prompts before and after training, one above the other.

    Args:
        run: Content of the run folder.

    Returns:
        The picture, or None while there is nothing to compare.
    """
    before, after = run.before, run.after
    if before is None or after is None or not len(before.images):
        return None
    count = min(len(before.images), len(after.images), _MOST_PROMPTS)
    pairs = np.stack([before.images[:count], after.images[:count]], axis=1)
    labels = [f"{prompt}: {when}" for prompt in run.prompts[:count] for when in ("before", "after")]
    return contact_sheet(np.concatenate(pairs), scale=view_scale(pairs), row_labels=labels)
