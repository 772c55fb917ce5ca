"""`reproduce.claims_record`: what is stored is what was measured."""

import pytest

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.reproduce.claims_record import claims_record, read_claims, record_text
from tests.unit.reproduce.made_arms import made_arm

# -- laws --------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(tmp_path):
    """Every digit, and arms in the order of the data."""
    arms = {"tiny_per_view": made_arm(joint=-0.5), "tiny": made_arm()}
    record = claims_record(arms)
    (tmp_path / "claims.json").write_text(record_text(record), "utf-8")

    assert read_claims(tmp_path / "claims.json") == record
    assert [arm.arm for arm in record.arms] == ["tiny", "tiny_per_view"]
    assert {one.letter: one.verdict for one in record.claims}["a"] == "holds"
    assert record == claims_record(arms)


def test_an_arm_keeps_its_gains_by_seed():
    """Beside the interval of their mean."""
    (arm,) = claims_record({"tiny": made_arm(per_view=1.0)}).arms

    assert arm.by_seed["per_view"] == pytest.approx((0.96, 0.98, 1.0, 1.02, 1.04), abs=1e-6)
    assert arm.gains["per_view"].low < 1.0 < arm.gains["per_view"].high
    assert arm.seeds == (0, 1, 2, 3, 4)


# -- errors ------------------------------------------------------------------------------


def test_a_file_of_something_else_is_refused(tmp_path):
    """By its name, with what to pass."""
    (tmp_path / "c.json").write_text("{}", "utf-8")

    with pytest.raises(ConfigError, match=r"cannot read claims in .*c\.json.*reproduce claims"):
        read_claims(tmp_path / "c.json")
