"""`report.page`: one page that needs nothing else and says what came of the run."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.report import write_report
from tests.unit.report.folders import KINDS, learnt, metrics, write_run

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = '<script>alert("x")</script> & a "red" cube'


class Page(HTMLParser):
    """A page's elements, references and text; refuses what is not closed in order."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.references, self.words = [], [], [], []
        self.elements = []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.elements.append((tag, dict(attrs)))
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def scores(*values):
    """One noise, one number a prompt."""
    return torch.tensor([values])


@pytest.fixture
def finished(tmp_path):
    """A run of twelve iterations over two prompts, one of which is hostile."""
    generator = torch.Generator().manual_seed(0)
    images = {n: torch.rand(2, 6, 3, 8, 8, generator=generator) for n in (0, 12)}
    return write_run(
        tmp_path / "my <run>",
        rows=metrics(12),
        evaluated={
            0: (scores(10.0, 12.0), scores(5.0, 7.0)),
            12: (scores(11.0, 13.5), scores(5.5, 6.0)),
        },
        images=images,
        prompts=[HOSTILE, "a blue ball"],
        overrides=["run.seed=3", "run.iterations=12"],
    )


# -- laws --------------------------------------------------------------------------------


def test_a_page_needs_nothing_else(finished):
    """It refers to itself, to the run's own files, and to nothing else; it runs no script."""
    page = Page(write_report(finished))
    local = [r for r in page.references if not r.startswith(("data:image/png;base64,", "#"))]

    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert local
    assert all((finished / reference).is_file() for reference in local)
    assert "http" not in "".join(page.references)
    assert "@import" not in write_report(finished).read_text("utf-8")


def test_a_prompt_is_text(finished):
    """Whatever a prompt or a folder is called, it cannot become an element."""
    page = Page(write_report(finished))

    assert [word.strip() for word in page.words].count(HOSTILE) == 1
    assert "my <run>" in page.words
    assert "script" not in page.tags


def test_the_headline_and_the_table_are_the_runs(finished):
    """Before, after, gain and standard error of both scores."""
    text = Page(write_report(finished)).text

    assert "per view 11.00 12.25 +1.25 ± 0.25 +5.0" in text
    assert "joint view 6.00 5.75 -0.25 ± 0.75 -0.3" in text
    assert "The per-view score rose by 1.25 ± 0.25 dB" in text
    assert "the joint-view score did not change clearly (-0.25 ± 0.75 dB) in 12 iterations" in text


def test_pictures_are_the_runs_before_and_after(finished):
    """Two pictures a prompt, the colours of the stored images."""
    page = Page(write_report(finished))
    data = [r.partition(",")[2] for r in page.references if r.startswith("data:")]
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in data]
    one, two = ((image.width, image.height) for image in images[:2])

    assert len(images) == 4
    assert one == two
    assert one[0] > 5 * one[1]
    assert images[0].tobytes() != images[1].tobytes()


def test_pictures_carry_their_own_scores(finished):
    """Each strip shows the scores of the noise that made it."""
    text = Page(write_report(finished)).text

    assert "before: per view 10.00, joint view 5.00" in text
    assert "after: per view 11.00 (+1.00), joint view 5.50 (+0.50)" in text


def test_changed_settings_are_named_and_repeat_the_run(finished):
    """A reader sees what differs from the recipe, and the command that does it again."""
    text = Page(write_report(finished)).text

    assert "mvczigal train tiny run.iterations=12 run.seed=3" in text
    assert "2 changed from the recipe" in text
    assert "run.seed 3 (recipe: 0)" in text


def test_seconds_and_memory_are_told(finished):
    """Each stage's mean and share, and the most memory."""
    text = Page(write_report(finished)).text

    assert "update 1.90 63 %" in text
    assert "3.00 s in all" in text
    assert f"{round(900e6 / 2**20)} MiB" in text


def test_a_stage_of_later_iterations_is_told(tmp_path):
    """The guard's seconds are there only where it has looked."""
    rows = metrics(4)
    rows[3]["seconds/guard"] = 4.0
    text = Page(write_report(write_run(tmp_path / "a", rows=rows))).text

    assert "guard 1.00 25 %" in text
    assert "4.00 s in all" in text


OWN = {
    "pairs": ["Per-view reward", "Gap, zigzag minus standard"],
    "groups": ["Reward of single views", "Spread within groups", "Divergence from the reference"],
    "forward": ["Forward-process loss", "Optimality"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_method_has_a_page(kind, tmp_path):
    """Its own panels and no other's, the decoding's seconds, and how half precision went."""
    text = Page(write_report(write_run(tmp_path / "a", rows=learnt(kind), name=KINDS[kind]))).text

    for title in OWN[kind]:
        assert title in text
    assert {"pairs": "32 pairs per", "groups": "32 groups of 8 per"}.get(kind, "32 groups") in text
    for other in set(OWN) - {kind}:
        assert OWN[other][-1] not in text
    assert "Loss scale" in text
    assert "Optimiser steps that changed nothing" in text
    assert "decode 1.00 17 %" in text


def test_a_reward_of_any_scale_has_a_page(tmp_path):
    """Decibels are read as a share of error; another reward's fall by thousands is none."""
    before, noise = torch.full((1, 8), 5e3), torch.rand(1, 8)
    tables = {0: (before, before), 4: (noise - 1e4, noise + 1e30)}
    reward = ["reward.per_view=a.py:b", "reward.joint=a.py:c"]
    folder = write_run(
        tmp_path / "a", rows=metrics(4), evaluated=tables, prompts=["a red cube"] * 8,
        overrides=reward,
    )  # fmt: skip

    text = Page(write_report(folder)).text
    assert "The per-view score fell by" in text
    assert "error in the" not in text


def test_iterations_without_idle_steps_are_drawn_at_zero(tmp_path):
    """They write none; a run without any has no such panel."""
    rows = metrics(4)
    none = write_report(write_run(tmp_path / "a", rows=rows)).read_text("utf-8")
    rows[2]["idle_steps"] = 1.0
    some = write_report(write_run(tmp_path / "b" / "a", rows=rows)).read_text("utf-8")
    rows = [{"idle_steps": 0.0, **row} for row in rows]
    zeros = write_report(write_run(tmp_path / "c" / "a", rows=rows)).read_text("utf-8")

    assert "changed nothing" not in none
    assert "changed nothing" in some
    assert some.partition("Settings and files")[0] == zeros.partition("Settings and files")[0]


def test_the_page_is_replaced_whole(finished):
    """Written twice it is the same, and nothing is left beside it."""
    first = write_report(finished).read_bytes()
    second = write_report(finished).read_bytes()

    assert first == second
    assert not list(finished.glob(".*"))


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    """No iteration, no scores: the page says so."""
    page = Page(write_report(write_run(tmp_path / "a")))

    assert "Nothing to compare yet: 0 iterations done" in page.text
    assert not {"svg", "img"} & set(page.tags)


def test_a_run_of_one_iteration_has_a_page(tmp_path):
    """Curves of one point, pictures before training."""
    evaluated = {0: (scores(1.0, 2.0), scores(1.0, 2.0))}
    page = Page(write_report(write_run(tmp_path / "a", rows=metrics(1), evaluated=evaluated)))

    assert "Nothing to compare yet: 1 iteration done" in page.text
    assert "Before training" in page.text
    assert page.tags.count("img") == 2
    assert page.tags.count("svg") == 9


def test_scores_on_the_way_become_a_curve(tmp_path):
    """Only where there are more than the two of the table."""
    one = scores(1.0, 2.0)
    evaluated = {n: (one + n, one - n) for n in (0, 5, 10)}
    page = Page(write_report(write_run(tmp_path / "a", rows=metrics(10), evaluated=evaluated)))

    assert "Held-out scores Mean over" in page.text
    assert page.tags.count("svg") == 11

    del evaluated[5]
    page = Page(write_report(write_run(tmp_path / "b", rows=metrics(10), evaluated=evaluated)))

    assert page.tags.count("svg") == 10


def test_a_run_of_single_views_speaks_of_no_other_judge(tmp_path):
    """No joint view, no constraint, and the unit of the one score; no legend of absent curves."""
    row = {
        "iteration": 0, "per_view_reward/mean": 15.0, "joint_view_reward/mean": 15.0,
        "per_view_reward/group_std": 1.0, "joint_view_reward/group_std": 1.0,
        "multiplier": 0.1, "threshold": 15.0, "slack": 0.0, "reward/world.per_view": 15.0,
    }  # fmt: skip
    one = scores(1.0, 2.0)
    evaluated = {n: (one + n, one + n) for n in (0, 1, 2)}
    folder = write_run(tmp_path / "a", rows=[row], evaluated=evaluated, name="tiny_flow_grpo")
    text = Page(write_report(folder)).text.partition("Settings and files")[0]

    assert "score [dB]" in text
    assert "Reward of single views Mean over" in text
    assert "reward [dB]" in text
    assert not re.search("(?i)joint|multiplier|slack|threshold|captions|Reward of world", text)


def test_a_headline_is_of_the_iteration_that_was_scored(tmp_path):
    """A run that has gone on since is not credited with more."""
    one = scores(1.0, 2.0)
    evaluated = {n: (one + n, one + n) for n in (0, 5)}
    text = Page(write_report(write_run(tmp_path / "a", rows=metrics(9), evaluated=evaluated))).text

    assert "in 5 iterations." in text
    assert "9 of" in text


def test_a_run_of_no_known_recipe_names_its_settings_file(tmp_path):
    """The command that repeats it starts from all of its settings."""
    folder = write_run(tmp_path / "a", overrides=["recipe=mine"])
    text = Page(write_report(folder)).text

    assert re.search(r"mvczigal train tiny --config \S+/a/config\.json", text)


def test_pictures_and_tables_serve_those_who_do_not_see_or_point(finished):
    """Each image and figure has a name, and what scrolls sideways is reached by keyboard."""
    page = Page(write_report(finished))
    wide = [a for _, a in page.elements if a.get("class") == "wide"]

    assert all(a.get("alt") for tag, a in page.elements if tag == "img")
    figures = [a for tag, a in page.elements if tag == "svg"]
    ids = {a.get("id") for tag, a in page.elements if tag == "title"}
    assert figures
    assert all(a["role"] == "img" and a["aria-labelledby"] in ids for a in figures)
    assert wide
    assert all(a["tabindex"] == "0" and a["aria-label"] and a["role"] == "region" for a in wide)


def test_a_panel_of_zeros_is_a_word(finished):
    """Its name stands in a line, and no figure is drawn."""
    page = Page(write_report(finished))

    assert "At 0 in every iteration, and so not drawn: Replay deviation." in page.text
    assert "Clip fraction Share of log-ratios" in page.text


def test_decibels_are_explained_by_what_was_gained(finished):
    """In error, and only where scores are in decibels."""
    other = write_run(
        finished.parent / "b", rows=metrics(2), overrides=["reward.joint=other.joint"],
        evaluated={n: (scores(1.0, 2.0) + n, scores(1.0, 2.0) - n) for n in (0, 2)},
    )  # fmt: skip

    assert "25 % less error in the per view score and 6 % more error" in Page(
        write_report(finished)
    ).text.replace("\n", " ")
    assert "decibel" not in Page(write_report(other)).text


def test_a_run_says_where_and_how_it_ran(finished):
    """Command, machine, versions and duration; those of two starts one after the other."""
    start = {
        "began": "2026-01-02T03:04:05+00:00", "command": "mvczigal train tiny --processes 2",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "machine": "Linux x86_64, CPU, 2 cores",
        "device": "cpu", "processes": 2, "threads": 1, "seconds": 290.0,
    }  # fmt: skip
    (finished / "starts.json").write_text(json.dumps([start, {**start, "seconds": 20.0}]), "utf-8")
    text = Page(write_report(finished)).text

    assert "typed mvczigal train tiny --processes 2 began" in text
    assert "began 2026-01-02 03:04:05 UTC machine Linux x86_64, CPU, 2 cores" in text
    assert "processes 2 on cpu, threads per process: 1" in text
    assert "versions python 3.11.7, torch 2.13.0" in text
    assert "took 5 min 10 s in 2 starts" in text
    assert "recorded no machine" not in text


# -- errors ------------------------------------------------------------------------------


def test_a_folder_of_something_else_gets_no_page(tmp_path):
    """Nothing is written where no run is."""
    with pytest.raises(CheckpointError, match="no run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
