"""`errors`: what a caller catches, and what the message says."""

import json
import pickle

import pytest

from mvczigal_ref.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    ProcessLostError,
    ReplayMismatchError,
    RunFolderInUseError,
    ZeroGradientError,
    decode_error,
    encode_error,
    quoted,
)

BUILTIN = {
    CheckpointError: ValueError,
    ConfigError: ValueError,
    NonFiniteError: FloatingPointError,
    ProcessLostError: ConnectionError,
    ReplayMismatchError: RuntimeError,
    ZeroGradientError: ArithmeticError,
    RunFolderInUseError: OSError,
}


class ForeignError(OSError):
    """Neither Python's nor the package's."""


class OddError(Exception):
    """Of no more than Exception."""


@pytest.mark.parametrize(("ours", "builtin"), BUILTIN.items())
def test_each_is_the_builtin_that_a_caller_would_catch(ours, builtin):
    """One `except` of the builtin is enough."""
    with pytest.raises(builtin):
        raise ours("what")


@pytest.mark.parametrize(
    "value",
    [
        "http://me:hunter2@host/v1",
        ["x", {"judge": "https://me:hunter2@host:1/v1"}],
        "socks5://hunter2@host",
        "http://" + "hunter2" * 40 + "@host",
    ],
)
def test_a_quoted_value_shows_no_password(value):
    """Of a URL anywhere in it, also where the text is cut; other addresses stay."""
    assert "hunter2" not in quoted(value)
    assert "[password]@host" in quoted(value)
    assert quoted("mail a@b, http://host/a") == "'mail a@b, http://host/a'"


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


@pytest.mark.parametrize(
    "error",
    [
        NonFiniteError("loss", object=3, step=1, value=2.0),
        ConfigError("`seed` must be at least 0; got -1."),
        FileNotFoundError(2, "No such file or directory", "runs/tiny"),
        KeyError("absent"),
        ValueError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_is_sent_as_it_is(error):
    """Class, arguments, fields and sentence."""
    back = decode_error(encode_error(error))

    assert type(back) is type(error)
    assert back.__reduce__() == error.__reduce__()
    assert str(back) == str(error)


@pytest.mark.parametrize(
    ("error", "ancestor", "words"),
    [
        (ForeignError("no answer"), OSError, "ForeignError: no answer"),
        (OddError("what"), RuntimeError, "OddError: what"),
        (ConfigError({1, 2}), ValueError, "ConfigError: {1, 2}"),
        (UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"), ValueError, "UnicodeDecodeError: 'utf-8'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_cannot_be_sent_becomes_its_nearest_ancestor(error, ancestor, words):
    """With its words."""
    back = decode_error(encode_error(error))

    assert isinstance(back, ancestor)
    assert str(back).startswith(words)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "print"),
        ("builtins", "KeyboardInterrupt"),
        ("mvczigal_ref.errors", "decode_error"),
        ("mvczigal_ref.errors", "absent"),
        ("absent", "Error"),
        ("pathlib", "UnsupportedOperation"),
    ],
)
def test_nothing_but_an_exception_is_made_of_what_is_received(module, name, capfd):
    """Python's or the package's; anything else is words."""
    back = decode_error(json.dumps([module, name, ["echo ran"], "Error: words"]))

    assert type(back) is RuntimeError
    assert str(back) == "Error: words"
    assert capfd.readouterr().out == ""
