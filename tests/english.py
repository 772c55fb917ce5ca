"""Plain English, as far as a program can tell: names are nouns, and docstrings stand alone.

``python -m tests.english [ROOM ...]`` lists what breaks the rules, by file and line.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mvczigal_ref"
NO_NOUNS = {"found", "told", "said", "known", "wanted", "own", "made", "kept"}
FIRST_WORDS = {"What", "How", "Which", "Where", "Of", "Their"}
# "one a view" is "one per view".
A_FOR_PER = re.compile(
    r"\b(?:one|number|row|table|entry|map|tensor|file|line|text|weight|branches|members|slices?|"
    r"calls?|steps?|objects?|views?|prompts?) an? (?:view|object|prompt|process|decision|step|arm|"
    r"depth|pair|slice|level|scorer|caption|leaf|run|iteration|pass|group|epoch|sample|microbatch|"
    r"latent|call|node|column|channel|parent|member|condition|cell|setting)\b"
)


def faults(path: Path) -> Iterator[tuple[int, str]]:
    """Find what breaks a rule, with its line."""
    text = path.read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in NO_NOUNS:
            yield node.lineno, f"the name `{node.id}` is no noun"
        if isinstance(node, ast.arg) and node.arg in NO_NOUNS:
            yield node.lineno, f"the argument `{node.arg}` is no noun"
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            words = str(node.value.value).split()
            if words and words[0] in FIRST_WORDS:
                yield node.lineno, f"a docstring that begins with {words[0]!r} does not stand alone"
    for match in A_FOR_PER.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, f"{match[0]!r}: write `per`"


def main() -> int:
    """Print every fault; the exit status is 1 if there is one."""
    rooms = [PACKAGE / name for name in sys.argv[1:]] or [PACKAGE]
    count = 0
    for room in rooms:
        for path in sorted(room.rglob("*.py")) if room.is_dir() else [room]:
            for line, fault in sorted(faults(path)):
                print(f"{path.relative_to(PACKAGE.parent)}:{line}: {fault}")
                count += 1
    print(f"{count} faults of English")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
