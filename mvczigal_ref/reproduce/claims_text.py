"""Claims as Markdown: what is put to the test, and what was found."""

from mvczigal_ref.reproduce.claims import ARM_SETS, CLAIMS, SEEDS

__all__ = ["arm_table", "claim_table"]


def claim_table() -> str:
    """Write one row per claim, as it stands before any run.

    Returns:
        Markdown with a line's end after its last row.

    Examples:
        >>> claim_table().splitlines()[0]
        '| | claim | holds if | arms |'
    """
    names = {row.arm: row.name for arms in ARM_SETS.values() for row in arms.methods}
    rows = [
        f"| ({claim.letter}) | {claim.sentence} | {claim.rule} | "
        f"{'; '.join(names[arm] for arm in claim.arms)} |\n"
        for claim in CLAIMS
    ]
    return "".join(["| | claim | holds if | arms |\n", "| --- | --- | --- | --- |\n", *rows])


def arm_table() -> str:
    """Write one row per arm: recipe, settings that differ from it, and the arm's set.

    Returns:
        Markdown with a line's end after its last row.
    """
    folders = f"run folders ARM-{SEEDS[0]} to ARM-{SEEDS[-1]}"
    lines = [
        f"| set | arm ({folders}) | method | recipe | settings |\n",
        "| --- | --- | --- | --- | --- |\n",
    ]
    for name, arms in ARM_SETS.items():
        common = " ".join(f"`{word}`" for word in arms.settings)
        lines.append(f"| {name} | all | | | {common} |\n")
        for row in arms.methods:
            settings = " ".join(f"`{word}`" for word in row.settings)
            lines.append(f"| {name} | `{row.arm}` | {row.name} | `{row.recipe}` | {settings} |\n")
    return "".join(lines)
