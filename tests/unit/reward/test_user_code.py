"""`reward.user_code`: torch stays as it was, and what is raised is told in a line."""

import pytest
import torch

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.reward.user_code import raised, unchanged_defaults


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: torch.set_default_dtype(torch.float64), "dtype"),
        (lambda: torch.set_default_device("meta"), "device"),
    ],
)
def test_a_changed_default_is_refused_and_put_back(change, name):
    """Since the run would compute in it."""
    with (
        pytest.raises(ConfigError, match=f"'my.py' must leave torch's default {name} as it is"),
        unchanged_defaults("'my.py'"),
    ):
        change()

    assert torch.ones(1).dtype == torch.float32
    assert torch.ones(1).device.type == "cpu"


def test_gradients_are_on_again():
    """A file for scoring often turns them off at its top, and the run could not learn."""
    with unchanged_defaults("'my.py'"):
        torch.set_grad_enabled(False)

    assert torch.is_grad_enabled()


def test_what_is_raised_fits_a_line():
    """With the kind of the error."""
    assert raised(ValueError("one\ntwo"), len) == "it raised ValueError: one two"
    assert raised(SystemExit(0), int).endswith(
        "SystemExit: 0; it is a class, so name an instance of it"
    )
