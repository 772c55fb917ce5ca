"""`cli.display`: the right numbers, whether someone is watching or not."""

import io
import re

import pytest
from rich.console import Console

from mvczigal_ref.cli import display
from mvczigal_ref.cli.display import TrainingDisplay, gain_table, guard_table, guard_text
from mvczigal_ref.evaluation.guard import GuardCheck, GuardState
from mvczigal_ref.evaluation.scores import PairedGain
from mvczigal_ref.recipes import recipe
from tests.unit.report.folders import metrics

ROW = {
    "per_view_reward/zigzag": 12.0,
    "per_view_reward/standard": 13.0,
    "per_view_reward/gap": -1.0,
    "joint_view_reward/zigzag": 8.5,
    "joint_view_reward/standard": 8.25,
    "joint_view_reward/gap": 0.25,
    "threshold": 7.123,
    "multiplier": 0.0625,
    "grad_norm": 0.01234,
}
SAID = ["12.50", "-1.00", "8.38", "+0.25", "7.12", "0.062", "0.0123"]


class Clock:
    """Time that a test moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(display.time, "monotonic", lambda: self.now)


def watched():
    """A console that believes someone is watching, and what it wrote."""
    text = io.StringIO()
    return Console(file=text, force_terminal=True, width=120, _environ={}), text


def unwatched():
    """A console that writes to a file, and what it wrote."""
    text = io.StringIO()
    return Console(file=text, force_terminal=False, width=80, _environ={}), text


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [watched, unwatched])
def test_an_iteration_is_a_line_of_its_numbers(make):
    """Rewards are the mean of both arms; the gap, the constraint and the gradient as they are."""
    console, text = make()
    with TrainingDisplay(console) as shown:
        shown.iteration(1, 3, ROW)
    (line,) = [line for line in text.getvalue().split("\n") if "12.50" in line]

    assert re.findall(r"[+-]?\d+(?:\.\d+)?", line[line.index("12.50") - 8 :])[:8] == ["1", *SAID]


def test_numbers_stand_under_their_names():
    """Header and line end each column at the same place."""
    console, text = unwatched()
    with TrainingDisplay(console) as shown:
        shown.iteration(100, 100, ROW)
    header, line = text.getvalue().splitlines()

    assert len(header) == len(line) <= 80
    ends = [match.end() for match in re.finditer(r"\S+(?: \S+)*", header)]
    assert ends == [match.end() for match in re.finditer(r"\S+", line)]


# -- laws --------------------------------------------------------------------------------


def test_where_no_one_watches_a_line_comes_now_and_then(monkeypatch):
    """The first and the last iteration, and one each quarter of a minute, with the time left."""
    clock = Clock(monkeypatch)
    console, text = unwatched()
    with TrainingDisplay(console) as shown:
        for finished in range(1, 101):
            clock.now += 1.0
            shown.iteration(finished, 100, ROW)
    lines = text.getvalue().splitlines()

    assert [int(line.split()[0]) for line in lines[1:]] == [1, 16, 31, 46, 61, 76, 91, 100]
    assert lines[2].endswith("1 min 24 s left")
    assert lines[-2].endswith("  9 s left")
    assert "left" not in lines[1]
    assert "left" not in lines[-1]


def test_after_a_resume_the_time_left_is_of_this_pace(monkeypatch):
    """Iterations that were done before do not count as fast."""
    clock = Clock(monkeypatch)
    console, text = unwatched()
    with TrainingDisplay(console) as shown:
        for finished in (51, 52, 53):
            clock.now += 20.0
            shown.iteration(finished, 60, ROW)

    assert text.getvalue().splitlines()[2].endswith("2 min 40 s left")


def test_who_watches_sees_every_iteration_and_a_bar(monkeypatch):
    """A line per iteration, a bar with the time left, and what is being done."""
    clock = Clock(monkeypatch)
    console, text = watched()
    with TrainingDisplay(console) as shown:
        shown.stage("loading models")
        shown.stage("scoring")
        for finished in (1, 2, 3):
            shown.iteration(finished, 6, ROW)
            clock.now += 2.0
        shown.stage("scoring again")
        shown._progress.refresh()
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())

    assert len([line for line in said.split("\n") if "12.50" in line]) == 3
    assert "scoring again" in said
    assert "3/6  6 s left" in said


def test_a_stage_says_how_far_it_is(monkeypatch):
    """A bar for who watches; a plain line every 15 s elsewhere."""
    clock = Clock(monkeypatch)
    console, text = unwatched()
    with TrainingDisplay(console) as shown:
        shown.stage("scoring")
        for done in range(1, 5):
            clock.now += 8.0
            shown.progress(done, 4)
    assert text.getvalue().splitlines() == ["scoring", "scoring: 2 of 4", "scoring: 4 of 4"]

    console, text = watched()
    with TrainingDisplay(console) as shown:
        shown.stage("scoring")
        shown.progress(3, 4)
        shown._progress.refresh()
    assert "3/4" in text.getvalue()


def test_what_was_not_measured_is_a_dash():
    """A null of the metrics file, or an absent number, stops no one."""
    console, text = unwatched()
    with TrainingDisplay(console) as shown:
        shown.iteration(1, 2, {**ROW, "grad_norm": None, "per_view_reward/zigzag": None})
        shown.iteration(2, 2, {})
    first, second = (line.split() for line in text.getvalue().splitlines()[1:])

    assert first == ["1", "-", *SAID[1:-1], "-"]
    assert second == ["2", *"-------"]


def test_columns_of_what_a_run_lacks_are_left_out():
    """Without a judge of all views and a constraint there is nothing to see of either."""
    row = {
        "per_view_reward/mean": 1.5, "per_view_reward/group_std": 0.5, "multiplier": 0.1,
        "joint_view_reward/mean": 1.5, "drift/median": 0.25, "clip_fraction": 0.125,
        "grad_norm": 2.0,
    }  # fmt: skip
    console, text = unwatched()
    with TrainingDisplay(console, recipe("tiny_flow_grpo")) as shown:
        shown.iteration(1, 1, row)
    header, line = text.getvalue().splitlines()

    assert re.findall(r"\S+(?: \S+)*", header) == [
        "done", "per view", "spread", "drift", "clipped", "grad norm"
    ]  # fmt: skip
    assert line.split() == ["1", "1.50", "0.50", "0.25", "0.125", "2"]


def test_a_small_reward_keeps_its_digits():
    """PickScore divided by 100 is 0.2 and gains 0.01; names stand over their numbers still."""
    small = {name: value / 600 for name, value in ROW.items() if name.startswith("per_view")}
    console, text = unwatched()
    with TrainingDisplay(console) as shown:
        shown.iteration(1, 2, {**ROW, **small})
        shown.iteration(2, 2, {**ROW, **small, "per_view_reward/gap": 0.25})
    header, line, _ = text.getvalue().splitlines()

    assert line.split() == ["1", "0.02083", "-0.00167", *SAID[2:]]
    assert len(header) == len(line)


def test_real_metrics_fill_every_column():
    """Each name is one that training writes."""
    console, text = unwatched()
    with TrainingDisplay(console) as shown:
        row = metrics(1)[0]
        del row["iteration"]
        shown.iteration(1, 1, row)

    assert "-" not in text.getvalue().splitlines()[1].split()


def test_stages_are_told_where_no_one_watches():
    """One line each, whatever is in it."""
    console, text = unwatched()
    with TrainingDisplay(console) as shown:
        shown.stage("loading [bold]models")

    assert text.getvalue() == "loading [bold]models\n"


def test_a_table_of_gains():
    """As many digits as the error allows, and how many errors the gain is."""
    console, text = unwatched()
    gain = PairedGain(before=1.0, after=3.0, gain=2.0, standard_error=0.25)
    sure = PairedGain(before=1.0, after=1.0, gain=0.0, standard_error=0.0)
    small = PairedGain(before=0.2134, after=0.2203, gain=0.0069, standard_error=0.0011)
    gains = {"per view": gain, "joint view": sure, "pickscore": small}
    console.print(gain_table(gains, unit="dB", before="then", after="now"))
    rows = [re.findall(r"[^│┃]+", line) for line in text.getvalue().splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows]

    assert ["score [dB]", "then", "now", "gain", "standard error", "gain / error"] in cells
    assert ["per view", "1.00", "3.00", "+2.00", "0.25", "+8.0"] in cells
    assert ["pickscore", "0.2134", "0.2203", "+0.0069", "0.0011", "+6.3"] in cells
    assert ["joint view", "1.00", "1.00", "+0.00", "0.00", ""] in cells


# -- the guard ---------------------------------------------------------------------------


def guard_state(*, fired):
    """A trained reward that rose by 2, a watched one that fell by 1."""
    best = GuardCheck(iteration=10, trained={"joint": (1.0, 3.0)}, watched={"hps[v2]": (5.0, 5.0)})
    late = GuardCheck(iteration=20, trained={"joint": (2.0, 6.0)}, watched={"hps[v2]": (4.0, 4.0)})
    return GuardState(best=best, latest=late, fired=fired)


def test_a_guard_s_table_compares_its_best_check_with_its_latest():
    """Means, the mean of the paired differences, and its error; names as they are."""
    console, text = unwatched()
    console.print(guard_table(guard_state(fired=True)))
    rows = [re.split(r" *│ *", line.strip("│ ")) for line in text.getvalue().splitlines()]

    assert ["joint", "trained", "2.0", "4.0", "+2.0", "1.0"] in rows
    assert ["hps[v2]", "watched", "5.00", "4.00", "-1.00", "0.00"] in rows


@pytest.mark.parametrize(
    ("fired", "returned", "said"),
    [
        (False, True, r"let the run go on; its best check is that of iteration 10$"),
        (True, False, r"ended the run at iteration 20,.* since iteration 10; kept the parameters$"),
        (True, True, r"ended the run at iteration 20,.*put back the parameters of iteration 10$"),
    ],
)
def test_a_guard_s_sentence_says_what_became_of_the_run(fired, returned, said):
    """And of its parameters."""
    assert re.search(said, guard_text(guard_state(fired=fired), returned=returned))
