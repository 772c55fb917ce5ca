"""`report.gains`: every pair is a dot, and none hides another."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.evaluation.scores import PairedGain
from mvczigal_ref.pictures.drawing import element
from mvczigal_ref.report.gains import draw_gains, swarm

# -- laws --------------------------------------------------------------------------------


@given(st.lists(st.integers(-3, 3).map(float), max_size=30))
def test_dots_of_equal_numbers_stand_apart(values):
    """At most 0.35 from the middle of their row, and symmetric to it."""
    offsets = swarm(values, width=0.5)

    assert len({*zip(values, offsets, strict=True)}) == len(values)
    assert all(abs(offset) <= 0.35 + 1e-12 for offset in offsets)
    assert sum(offsets) == pytest.approx(0.0, abs=1e-9)


def test_every_pair_is_a_dot():
    """Of each score, with its mean; the marked prompts are named once."""
    generator = torch.Generator().manual_seed(0)
    pairs = {name: torch.randn(4, 10, generator=generator) for name in ("per view", "joint view")}
    gain = PairedGain(before=0.0, after=1.0, gain=1.0, standard_error=0.1)
    marked = {"best": 3, "worst": 5}
    figure = draw_gains(dict.fromkeys(pairs, gain), pairs, unit="dB", marked=marked)
    svg = element(figure, name="g", title="Gains")
    dots = [
        group.count("<use ") for group in re.findall(r"((?:<use [^>]*--curve-1[^>]*/>\s*)+)", svg)
    ]

    assert dots == [40, 40]
    assert svg.count(">best<") == svg.count(">worst<") == 1
    assert ">gain, after minus before [dB]<" in svg
