"""Claims as Markdown: what is put to the test, and what was found."""

from mvczigal_ref.evaluation.digits import decimals_of
from mvczigal_ref.reproduce.bootstrap import Interval
from mvczigal_ref.reproduce.claims import ARM_SETS, CLAIMS, SEEDS, Requirement
from mvczigal_ref.reproduce.claims_record import ArmRecord, ClaimsRecord
from mvczigal_ref.reproduce.verdicts import UNITS, Finding, Verdict

__all__ = ["NAMES", "arm_table", "claim_table", "claims_markdown", "gain_table"]

NAMES = {row.arm: row.name for arms in ARM_SETS.values() for row in arms.methods}
"""Method of each arm."""

_SCORES = {"per_view": "per view", "joint": "joint", "sum": "sum of both"}
_WORDS: dict[Verdict, str] = {"holds": "met", "does not": "missed", "open": "open"}


def claim_table() -> str:
    """Write one row per claim, as it stands before any run.

    Returns:
        Markdown with a line's end after its last row.

    Examples:
        >>> claim_table().splitlines()[0]
        '| | claim | holds if | arms |'
    """
    rows = [
        f"| ({claim.letter}) | {claim.sentence} | {claim.rule} | "
        f"{'; '.join(NAMES[arm] for arm in claim.arms)} |\n"
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


def claims_markdown(record: ClaimsRecord) -> str:
    """Write the answers, then the gains of every arm.

    Args:
        record: Numbers and verdicts.

    Returns:
        Two tables with a line's end after their last rows.
    """
    lines = [
        "| | claim | verdict | requirement: estimate [95 % interval], bound; P(X > Y) |\n",
        "| --- | --- | --- | --- |\n",
    ]
    for claim, judged in zip(CLAIMS, record.claims, strict=True):
        outcome = "<br>".join(_finding(one) for one in judged.findings)
        answer = f"**{judged.verdict}** | {outcome}"
        lines.append(f"| ({claim.letter}) | {claim.sentence} | {answer} |\n")
    return "".join([*lines, "\n", gain_table(record)])


def gain_table(record: ClaimsRecord) -> str:
    """Write one row per arm: gains with their intervals, and what a run cost.

    Args:
        record: Numbers and verdicts.

    Returns:
        Markdown with a line's end after its last row.
    """
    head = (
        "set", "arm", "seeds", "per view [dB]: before, gain [95 %]",
        "joint [dB]: before, gain [95 %]", "iterations", "latents through the network (forward)",
        "s per run",
    )  # fmt: skip
    rows = [head, ("---",) * len(head), *(_cells(arm) for arm in record.arms)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(arm: ArmRecord) -> tuple[str, ...]:
    gains = [
        f"{arm.before[score]:.2f}, {_interval(arm.gains[score])}" if score in arm.gains else ""
        for score in ("per_view", "joint")
    ]
    return (
        arm.arm_set, f"{arm.name} (`{arm.arm}`)", str(len(arm.seeds)), *gains,
        f"{arm.iterations:.0f}", f"{arm.calls:,.0f}", f"{arm.seconds:.0f}",
    )  # fmt: skip


def _finding(finding: Finding) -> str:
    requirement = finding.requirement
    text = f"{_quantity(requirement)}: "
    if finding.interval is None:
        return text + "no runs"
    unit = UNITS.get(requirement.measure, "dB")
    bound = f"{requirement.side} {requirement.bound:g}"
    if requirement.measure == "errors":
        text += f"{finding.interval.estimate:.1f} {unit}"
    else:
        text += f"{_interval(finding.interval)} {unit}"
    text += f", {bound}: {_WORDS[finding.verdict]}"
    if finding.improvement is not None:
        one = finding.improvement
        text += f"; P {one.estimate:.2f} [{one.low:.2f}, {one.high:.2f}]"
    return (
        text if finding.seeds >= len(SEEDS) else f"{text} ({finding.seeds} of {len(SEEDS)} seeds)"
    )


def _quantity(requirement: Requirement) -> str:
    first, *others = (NAMES[arm] for arm in requirement.arms)
    score = _SCORES[requirement.score]
    match requirement.measure:
        case "gain" | "errors":
            return f"{first}, {score}"
        case "difference":
            factor = "" if requirement.factor == 1.0 else f"{requirement.factor:g} times "
            return f"{first} minus {factor}{others[0]}, {score}"
        case "front":
            return f"{first} beyond every mixture of {len(others)} weighted sums"
        case "slack":
            return f"{first}, joint training reward minus threshold, last quarter"
        case "zigzag":
            return f"zigzag minus standard, {score}, first quarter of {first}"
        case "zigzag_change":
            return f"change of zigzag minus standard, {score}, first to last quarter of {first}"
        case "small_drift":
            return f"{first}, drift below 0.01 nats/element"


def _interval(value: Interval) -> str:
    decimals = min(max(decimals_of((value.high - value.low) / 4, value.estimate), 2), 3)
    low, high = (f"{end:+.{decimals}f}" for end in (value.low, value.high))
    return f"{value.estimate:+.{decimals}f} [{low}, {high}]"
