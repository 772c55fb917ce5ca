"""Docstrings as Markdown: their roles and equations, which are reStructuredText, rewritten."""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

EQUATION = re.compile(
    r"^(?P<indent> *)\.\. math::(?P<first>.*)\n"
    # What is indented further, and empty lines before it.
    r"(?P<rest>(?:(?P=indent) +\S.*\n?|\s*\n(?=(?P=indent) +))*)",
    re.MULTILINE,
)
INLINE = re.compile(r":math:`([^`]+)`")
ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([^`]+)`")


class ReStructuredText(griffe.Extension):
    """Rewrites every docstring as it is read; equations become MathML, which browsers draw."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401 - griffe's own
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Rewrite equations, inline mathematics and references to names."""
    text = EQUATION.sub(_equation, text)
    text = INLINE.sub(lambda match: _mathml(match[1], "inline"), text)
    return ROLE.sub(lambda match: f"`{match[1].removeprefix('mvczigal_ref.')}`", text)


def _equation(match: re.Match[str]) -> str:
    text = match["first"].strip() + "\n" + textwrap.dedent(match["rest"])
    equations = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    return "".join(f"{match['indent']}{_mathml(part, 'block')}\n\n" for part in equations)


def _mathml(tex: str, display: str) -> str:
    # On one line, and without what Markdown would read as emphasis.
    made = convert(" ".join(tex.split()), display=display)
    return made.replace("*", "&#42;").replace("_", "&#95;")
