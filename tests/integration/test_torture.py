"""A slice of every area of `nox -s torture`; the same draws each time, and all of them hold."""

import re
import warnings

import pytest

from tests.torture.__main__ import AREAS, torture
from tests.torture.page import PAGE, write_rows

SCALES = {
    "configurations": 0.02, "prompts": 0.1, "pictures": 0.1, "tensors": 0.03, "pickles": 0.1,
    "servers": 0.1, "clients": 0.1, "folders": 0.02, "kills": 0.02, "owners": 0.05, "trained": 0.02,
    "permissions": 0.1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("area", AREAS)
def test_a_slice_holds(area):
    """Nothing escapes, hangs, is left behind or comes out wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tally = torture(area, scale=SCALES[area], seed=1)
    assert tally.tried >= 2
    assert tally.failures == []


def test_every_area_has_a_row_that_is_written_anew(tmp_path):
    """In the page of what held; the others stay as they are."""
    page = tmp_path / "torture.md"
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    row = torture("prompts", scale=0.001, seed=0).row(scale=0.001)
    write_rows({"prompts": row}, page=page)
    before, after = (path.read_text("utf-8").splitlines() for path in (PAGE, page))

    assert all(any(re.match(rf"\| {area} \| \d", line) for line in before) for area in AREAS)
    assert [new for old, new in zip(before, after, strict=True) if old != new] == [row]
