"""Settings in words: unit, values, default and meaning of each, read from the source.

This file needs Python's library alone, so that the site's pages are made by it too.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["CONFIG", "Setting", "described_sections"]

CONFIG = Path(__file__).parent
"""Folder of the sections' source."""

_WORDS = {"float": "number", "int": "whole number", "str": "text", "bool": "true, false"}
_UNIT = re.compile(r" \[(?!-?\d+,)([^\]]+)\]")  # and no interval
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Setting(NamedTuple):
    """One setting, as its section's source says it."""

    name: str
    """Name in its section."""

    unit: str
    """Unit of its values; empty without one."""

    values: str
    """Values that it takes: choices, or a type and its bounds."""

    default: str
    """Default, as the command line takes it."""

    meaning: str
    """Meaning of it, without the unit."""


def described_sections(folder: Path = CONFIG) -> dict[str, tuple[str, list[Setting]]]:
    """Read every section of a configuration.

    Args:
        folder: Folder of the sections' source.

    Returns:
        Docstring and settings of each section, in order.

    Raises:
        ValueError: If a setting has no docstring.

    Examples:
        >>> about, settings = described_sections()["optim"]
        >>> settings[1].name, settings[1].unit
        ('lr', 'parameter units per step')
    """
    nodes = [
        node
        for path in sorted(folder.glob("*.py"))
        for node in ast.parse(path.read_text("utf-8")).body
    ]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    kinds = {
        node.targets[0].id: node.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return {
        field.name: (
            ast.get_docstring(classes[field.values]) or "",
            _settings(classes[field.values], kinds),
        )
        for field in _settings(classes["TrainConfig"], kinds)
        if field.values in classes  # all but the recipe's name
    }


def _settings(section: ast.ClassDef, kinds: dict[str, ast.expr]) -> list[Setting]:
    settings = []
    for node, after in zip(section.body, section.body[1:], strict=False):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            msg = f"`{section.name}.{node.target.id}` must have a docstring; add one."
            raise ValueError(msg)  # noqa: TRY004 - it is the source that is wrong
        meaning = " ".join(str(after.value.value).split())
        unit = _UNIT.search(meaning)
        settings.append(
            Setting(
                name=node.target.id,
                unit=unit[1] if unit else "",
                values=_values(node.annotation, kinds),
                default=_default(node.value),
                meaning=_UNIT.sub("", meaning, count=1),
            )
        )
    return settings


def _values(kind: ast.expr, kinds: dict[str, ast.expr]) -> str:
    """Say what a setting may be: choices, or a type and its bounds."""
    if isinstance(kind, ast.Name):
        return _values(kinds[kind.id], kinds) if kind.id in kinds else _WORDS.get(kind.id, kind.id)
    if isinstance(kind, ast.Constant):
        return "null" if kind.value is None else str(kind.value)
    if isinstance(kind, ast.BinOp):
        return f"{_values(kind.left, kinds)} or {_values(kind.right, kinds)}"
    if not isinstance(kind, ast.Subscript):
        return ast.unparse(kind)
    parts = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
    outer = ast.unparse(kind.value)
    if outer == "Literal":
        return ", ".join(str(ast.literal_eval(part)) for part in parts)
    if outer == "Annotated":
        bounds = [
            _bound(word, kinds) for part in parts[1:] for word in getattr(part, "keywords", [])
        ]
        inner, bound = _values(parts[0], kinds), ", ".join(filter(None, bounds))
        comma = "," * any(sign in inner for sign in _SIGNS.values())
        return f"{inner}{comma} {bound}" if bound else inner
    inner = ", ".join(
        "..." if ast.unparse(part) == "..." else _values(part, kinds) for part in parts
    )
    return f"list of {inner.removesuffix(', ...')}" if outer == "tuple" else f"table of {inner}"


def _bound(word: ast.keyword, kinds: dict[str, ast.expr]) -> str:
    value = kinds.get(word.value.id) if isinstance(word.value, ast.Name) else word.value
    return f"{_SIGNS[word.arg]} {ast.unparse(value)}" if word.arg in _SIGNS and value else ""


def _default(value: ast.expr | None) -> str:
    """Write a default as the command line takes it."""
    try:
        plain = ast.literal_eval(value) if value is not None else None
    except ValueError:  # an empty table, or a section
        return "{}"
    if isinstance(plain, tuple):
        return "[" + ", ".join(map(str, plain)) + "]"
    if plain is None or isinstance(plain, bool):
        return "null" if plain is None else str(plain).lower()
    return str(plain) if plain != "" else '""'
