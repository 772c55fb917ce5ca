"""The type checker's block of the package's root, written from its one table of public names.

``python -m tests.public_names`` writes it anew after the table was changed.
"""

from pathlib import Path

import mvczigal_ref

__all__ = ["SOURCE", "block", "main"]

SOURCE = Path(mvczigal_ref.__file__)
BEGIN = "if TYPE_CHECKING:  # written by `python -m tests.public_names` from the table below\n"
END = "    # ruff: isort: on\n"
LENGTH = 101  # of a line, its end included


def block() -> str:
    """Write every import of the table, in its order, under the stage that it belongs to."""
    lines = ["    # ruff: isort: off\n"]
    for stage, homes in mvczigal_ref._NAMES.items():
        lines += ["\n"] * (len(lines) > 1) + [f"    # {stage}\n"]
        for home, names in homes.items():
            one = f"    from mvczigal_ref.{home} import {names} as {names}\n"
            if len(names.split()) == 1 and len(one) <= LENGTH:
                lines.append(one)
                continue
            lines.append(f"    from mvczigal_ref.{home} import (\n")
            lines += [f"        {name} as {name},\n" for name in names.split()]
            lines.append("    )\n")
    return BEGIN + "".join(lines) + END


def main() -> None:
    """Replace the block in the file."""
    text = SOURCE.read_text("utf-8")
    start, end = text.index("if TYPE_CHECKING:"), text.index(END) + len(END)
    SOURCE.write_text(text[:start] + block() + text[end:], "utf-8")


if __name__ == "__main__":
    main()
