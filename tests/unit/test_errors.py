"""`errors`: what a caller catches, and what the message says."""

import pickle

import pytest

from mvczigal_ref.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    ReplayMismatchError,
    ZeroGradientError,
)

BUILTIN = {
    CheckpointError: ValueError,
    ConfigError: ValueError,
    NonFiniteError: FloatingPointError,
    ReplayMismatchError: RuntimeError,
    ZeroGradientError: ArithmeticError,
}


@pytest.mark.parametrize(("ours", "builtin"), BUILTIN.items())
def test_each_is_the_builtin_that_a_caller_would_catch(ours, builtin):
    """One `except` of the builtin is enough."""
    with pytest.raises(builtin):
        raise ours("what")


def test_non_finite_says_what_and_where():
    """Index 0 is a place; None is not."""
    error = NonFiniteError("loss", object=0, view=2, step=1, value=float("inf"))

    assert str(error) == "`loss` must be finite; got inf at object 0, view 2, step 1."
    assert (error.what, error.object, error.view, error.step) == ("loss", 0, 2, 1)


def test_non_finite_without_a_place_still_names_the_quantity():
    """A gradient's norm belongs to no object."""
    assert str(NonFiniteError("gradient norm")) == (
        "`gradient norm` must be finite; got a non-finite value."
    )


def test_non_finite_crosses_a_process_boundary():
    """Pickling keeps the fields and the sentence."""
    error = NonFiniteError("loss", object=3, step=1, value=2.0)
    back = pickle.loads(pickle.dumps(error))

    assert str(back) == str(error)
    assert (back.object, back.view, back.step, back.value) == (3, None, 1, 2.0)
