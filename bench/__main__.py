"""`python -m bench [NAME] [...]`: one measurement by name, with its own arguments."""

import importlib
import sys

NAMES = ("cost", "flow", "budget", "learning", "pictures", "plans", "zigzag", "gpu_day")


def main(argv: list[str]) -> None:
    """Run what the first word names; `cost`, which takes a minute, if it names nothing."""
    named = argv[0] if argv and argv[0] in NAMES else None
    name = named or "cost"
    # Each reads its own words from there.
    sys.argv = [f"bench {name}", *(argv[1:] if named else argv)]
    importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
