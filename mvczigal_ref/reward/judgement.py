"""Scores out of a judge's answers; :mod:`.judge_question` asks for them.

A judge writes one line per criterion, ``Alignment Score (1-5): 3.5``, and the reward is the mean
of the scores. The prompt is quoted, as material and not as a request. If it speaks of scores
itself, the judge's lines must carry a code that the prompt cannot contain, so that a quotation of
the prompt is never taken for a judgement.
"""

import re
from collections.abc import Sequence

from mvczigal_ref.reward.judge_question import HIGHEST, LOWEST

__all__ = ["NUMBER", "JudgementError", "parse_scores", "require_scale", "score_lines"]

NUMBER = r"[0-9]{1,3}(?:\.[0-9]{1,9})?"
"""Form of a score [regular expression]."""

_ONE = rf"({NUMBER})(?: */ *{HIGHEST:g})?"
_LONGEST_LINE = 200


class JudgementError(ValueError):
    """A judge's answers hold no scores."""


def parse_scores(answer: str, names: Sequence[str], *, code: str = "") -> dict[str, float]:
    r"""Read a judge's score lines.

    A score counts only on a line of its own, with name and code, and within the scale. Bold type,
    bullets, letter case and a trailing ``/5`` do not matter.

    Args:
        answer: Text that the judge wrote; text around the score lines is ignored.
        names: Names of the criteria; each must be scored.
        code: Code that each score line must carry; none if empty.

    Returns:
        Scores by name [points], within the scale.

    Raises:
        JudgementError: If a criterion has no score, two different ones, or one off the scale.

    Examples:
        >>> parse_scores("It fits.\n**Alignment Score (1-5):** 3.5", ["Alignment"])
        {'Alignment': 3.5}
        >>> parse_scores("I would say 5 out of 5.", ["Alignment"])
        Traceback (most recent call last):
        mvczigal_ref.reward.judgement.JudgementError: `answer` must score 'Alignment' ...
    """
    scores = {}
    for name in names:
        values = {float(value) for value in score_lines(answer, name, _ONE, code=code)}
        if len(values) != 1:
            fault = f"{sorted(values)}" if values else "no such line"
            msg = f"`answer` must score {name!r} once; got {fault} in {answer[:_LONGEST_LINE]!r}."
            raise JudgementError(msg)
        (scores[name],) = values
        require_scale(scores[name], name, answer)
    return scores


def require_scale(score: float, name: str, answer: str) -> None:
    """Refuse a score off the scale.

    Args:
        score: Score of a criterion [points].
        name: Name of the criterion.
        answer: Text that a judge wrote, for the message.

    Raises:
        JudgementError: If the score is off the scale.

    Examples:
        >>> require_scale(5.0, "Style", "Style Score: 5")
    """
    if not LOWEST <= score <= HIGHEST:
        msg = (
            f"`answer` must score {name!r} from {LOWEST:g} to {HIGHEST:g}; got {score:g} in "
            f"{answer[:_LONGEST_LINE]!r}."
        )
        raise JudgementError(msg)


def score_lines(answer: str, name: str, value: str, *, code: str = "", more: int = 0) -> list[str]:
    r"""Find the score lines of a criterion, whatever their decoration.

    Args:
        answer: Text that a judge wrote.
        name: Name of the criterion.
        value: Form of what follows the colon [regular expression], with one group.
        code: Code that the line must carry; none if empty.
        more: Characters that a line may have beyond the usual 200 [1].

    Returns:
        The group's text on each line, in their order.

    Examples:
        >>> score_lines("Style Score: 3\n- **Style Score (1-5):** 3.0", "Style", f"({NUMBER})")
        ['3', '3.0']
    """
    tag = rf" *#{code}" if code else ""
    scale = rf"(?: *\({LOWEST:g} ?[-–] ?{HIGHEST:g}\))?"
    text = rf"[-*_>`# ]*{name} Score{scale}{tag}[*_`]* *:[*_` ]*{value}[*_`]*\.?"
    pattern = re.compile(text, re.IGNORECASE | re.ASCII)
    lines = [line.strip() for line in answer.splitlines() if len(line) <= _LONGEST_LINE + more]
    return [match[1] for line in lines if (match := pattern.fullmatch(line))]
