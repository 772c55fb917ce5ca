"""Table of a comparison, as Markdown."""

from mvczigal_ref.evaluation.digits import decimals_of_size, in_errors, plus_minus
from mvczigal_ref.reproduce.summary import Gain, MethodSummary, Summary

__all__ = ["SCORE_NAMES", "markdown", "table"]

SCORE_NAMES = {"per_view": "per view", "joint": "joint"}
"""Names of scores by their fields of an evaluation."""


def markdown(summary: Summary) -> str:
    """Lay a comparison out: gains that are measured here beside the published ones.

    Args:
        summary: Numbers of one paper's methods.

    Returns:
        A heading, the table, the scores before training, and the paired test.
    """
    before = [f"{SCORE_NAMES[score]} {_before(summary, score)} dB" for score in summary.scores]
    lines = [f"### {summary.title}", "", table(summary), f"Before training: {', '.join(before)}."]
    for score, (mean, error) in summary.paired.items():
        ratio = in_errors(mean, error)
        lines += [
            "",
            f"`{summary.full}` minus `{summary.rival}`, paired, {SCORE_NAMES[score]}: "
            f"{plus_minus(mean, error, sign=True)} dB"
            f"{ratio and f' ({ratio} standard errors)'}.",
        ]
    return "\n".join(lines) + "\n"


def table(summary: Summary) -> str:
    """Write one row per method.

    Gains stand in errors twice: with seeds and prompts as random, and with prompts alone.

    Args:
        summary: Numbers of one paper's methods.

    Returns:
        The table, with a line's end after its last row.
    """
    head = [
        "method",
        *(
            f"{SCORE_NAMES[score]} [dB]: gain ± SE (SEs; over prompts alone)"
            for score in summary.scores
        ),
        "iterations",
        "latents through the network (forward)",
        "s per run",
        *(f"published: {name}" for name in summary.published),
    ]
    rows = [head, ["---"] * len(head), *(_cells(one, summary) for one in summary.methods)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(method: MethodSummary, summary: Summary) -> list[str]:
    published = method.published or (None,) * len(summary.published)
    return [
        f"{method.name} (`{method.recipe}`)",
        *(_gain(method.gains[score]) for score in summary.scores),
        str(method.iterations),
        f"{method.calls:,}",
        f"{method.seconds:.0f}",
        *("" if value is None else f"{value:+g}" for value in published),
    ]


def _gain(gain: Gain) -> str:
    ratios = [in_errors(gain.mean, error) for error in (gain.error, gain.prompts_error)]
    both = "; ".join(filter(None, ratios))
    return plus_minus(gain.mean, gain.error, sign=True) + (f" ({both})" if both else "")


def _before(summary: Summary, score: str) -> str:
    """Give the score of all methods; those that sample otherwise start from another."""
    scores = sorted(method.before[score] for method in summary.methods)
    decimals = decimals_of_size(*scores)
    least, most = f"{scores[0]:.{decimals}f}", f"{scores[-1]:.{decimals}f}"
    return least if least == most else f"{least} to {most}"
