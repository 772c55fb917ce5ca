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
# A docstring, and an entry of its `Args:` or `Returns:`, is read alone in a hover.
DEPENDENT = re.compile(r"(?:What|How|Which|Where|Of|Their|Its|The same)\b")
# "one a view" is "one per view".
A_FOR_PER = re.compile(
    r"\b(?:one|number|row|table|entry|map|tensor|file|line|text|weight|branches|members|slices?|"
    r"calls?|steps?|objects?|views?|prompts?) an? (?:view|object|prompt|process|decision|step|arm|"
    r"depth|pair|slice|level|scorer|caption|leaf|run|iteration|pass|group|epoch|sample|microbatch|"
    r"latent|call|node|column|channel|parent|member|condition|cell|setting)\b"
)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def parts(name: str) -> set[str]:
    """Take a name apart into its words, in lower case."""
    return set(re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).lower().split("_"))


def name_faults(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Find names that are no nouns: of variables as a whole, of definitions in any part."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in NO_NOUNS:
        yield node.lineno, f"the name `{node.id}` is no noun"
    if isinstance(node, ast.arg) and node.arg in NO_NOUNS:
        yield node.lineno, f"the argument `{node.arg}` is no noun"
    if isinstance(node, DEFINITIONS):
        for word in sorted(parts(node.name) & NO_NOUNS):
            yield node.lineno, f"the name `{node.name}` holds {word!r}, which is no noun"


def entries(docstring: str) -> Iterator[str]:
    """Give the text of every entry of a docstring's `Args:`, `Returns:` and `Yields:`."""
    for section in re.finditer(r"^( *)(Args|Returns|Yields):\n", docstring, re.MULTILINE):
        indent = section[1] + "    "
        for line in docstring[section.end() :].split("\n"):
            if line.strip() and not line.startswith(indent):
                break
            if line.startswith(indent) and not line.startswith(indent + " "):
                named = re.match(r"\*{0,2}\w+: ", line.strip()) if section[2] == "Args" else None
                yield line.strip()[named.end() if named else 0 :]
                if section[2] != "Args":
                    break


def text_faults(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Find docstrings, and entries of them, that do not stand alone."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return
    docstring = str(node.value.value)
    for kind, text in (("a docstring", docstring), *(("an entry", e) for e in entries(docstring))):
        if first := DEPENDENT.match(text):
            words = f"{kind} that begins with {first[0]!r} does not stand alone"
            yield node.lineno, f"{words}: {text.splitlines()[0]:.60}"


def faults(path: Path) -> Iterator[tuple[int, str]]:
    """Find what breaks a rule, with its line."""
    text = path.read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        yield from name_faults(node)
        yield from text_faults(node)
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
