"""Prompt files: read as Python reads UTF-8, or refused by name and line."""

import random
from pathlib import Path

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.training.prompts import read_prompts
from tests.torture.damage import damaged
from tests.torture.tally import Tally, require_line

WORDS = ("a red cube", "caf\u00e9", "\u732b", "a\u2028b", "\x0c", "\U0001f600", "x" * 3000, "# no")
ENDS = ("\n", "\r\n", "\r", "\n\n", " \n")
CODES = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252")


def torture(tally: Tally, chance: random.Random, count: int, folder: Path) -> None:
    """Write lists in many encodings, whole and damaged."""
    path = folder / "prompts.txt"
    for place in range(count):
        lines = [chance.choice(WORDS) for _ in range(chance.randrange(6))]
        text, code = "".join(line + chance.choice(ENDS) for line in lines), chance.choice(CODES)
        content = text.encode(code, "replace")
        if chance.random() < 0.4:
            content = damaged(chance, content)
        with tally.attempt(f"{code} {place}"):
            path.write_bytes(content)
            try:
                prompts = read_prompts(str(path))
            except ConfigError as error:
                tally.note("refused")
                require_line(str(error), path.name)
            else:
                decoded = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
                expected = [line.strip() for line in decoded.split("\n") if line.strip()]
                assert prompts == expected or prompts == list(dict.fromkeys(expected))
