"""Types of single settings: the values that are valid, whatever the section."""

import math
import sys
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator

__all__ = [
    "MOST_AT_ONCE",
    "SETTINGS",
    "Cap",
    "Count",
    "CountOrZero",
    "Dtype",
    "Elevation",
    "Fraction",
    "HalfOpenFraction",
    "Name",
    "Names",
    "NonNegative",
    "Positive",
    "PositiveFraction",
    "PowerOfTwo",
    "Rate",
    "RateOrZero",
    "Real",
    "Scorers",
    "Seed",
    "Size",
    "SizeOrZero",
    "Table",
    "Text",
    "Texts",
    "TrackerName",
]

_Value = TypeVar("_Value")


class Table(dict[str, _Value]):
    """A setting that is a mapping; it can be hashed, as frozen settings are, so never change it.

    Examples:
        >>> hash(Table(a=1, b=2)) == hash(Table(b=2, a=1))
        True
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _refuse_bool(value: object) -> object:
    # Python's bool is an int: without this, `lr: true` would mean a rate of 1.
    if isinstance(value, bool):
        msg = "must be a number"
        raise ValueError(msg)  # noqa: TRY004 - pydantic collects ValueError alone
    return value


def _scorers(value: object) -> str | Table[float]:
    """Read a scorer's name, or names with a weight each, into the one form of what they mean."""
    named = {value: 1.0} if isinstance(value, str) else value
    if not isinstance(named, Mapping) or not all(isinstance(k, str) and k for k in named):
        msg = "must be a scorer's name, or scorers' names with a weight each"
        raise ValueError(msg)
    if not all(type(w) in (int, float) and abs(w) <= sys.float_info.max for w in named.values()):
        msg = "must give every scorer a finite number as its weight"
        raise ValueError(msg)
    if not any(named.values()):
        msg = "must give at least one scorer a weight other than 0"
        raise ValueError(msg)
    # Sorted, so that the order in which they were written changes no bit of the sum.
    table = Table({name: float(named[name]) for name in sorted(named)})
    return next(iter(table)) if list(table.values()) == [1.0] else table


def _texts(value: object) -> Table[str]:
    """Read a text for each of some scorers."""
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) and text for item in value.items() for text in item
    ):
        msg = "must hold a text for each scorer that it names, as in {pickscore: FOLDER}"
        raise ValueError(msg)
    return Table({name: value[name] for name in sorted(value)})


def _fits_fp32(value: float) -> float:
    """Refuse what the fp32 of networks and rewards would round to infinity or to 0."""
    if value and not _SMALLEST <= abs(value) <= _LARGEST:
        msg = f"must be 0 or between {_SMALLEST:g} and {_LARGEST:g} in size"
        raise ValueError(msg)
    return value


def _power_of_two(value: float) -> float:
    if math.frexp(value)[0] != 0.5:
        msg = "must be a power of two, by which numbers are multiplied without rounding"
        raise ValueError(msg)
    return value


def _seed(value: int) -> int:
    if value >= 2**63:
        msg = f"must be at most {2**63 - 1}, the largest integer of 64 bits"
        raise ValueError(msg)
    return value


def _cap(value: object) -> object:
    if value == "none":
        return None
    if value == 0:
        msg = 'must be positive, or "none" for no cap'
        raise ValueError(msg)
    return value


_SMALLEST, _LARGEST = 1e-37, 1e37
_MOST = 10**9  # of iterations, and of what paces or caps them and costs nothing by itself
MOST_AT_ONCE = 10**5  # of anything that is made or held at once, between two chances to stop

SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)

# The names of accelerate's map, which is not imported here.
TrackerName = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
"""Name of an experiment tracker, and of its module."""

Dtype = Literal["fp32", "bf16", "fp16"]
Real = Annotated[
    float,
    BeforeValidator(_refuse_bool),
    Field(allow_inf_nan=False),
    AfterValidator(_fits_fp32),
]
Positive = Annotated[Real, Field(gt=0)]
PowerOfTwo = Annotated[Real, Field(ge=1, le=2**32), AfterValidator(_power_of_two)]
NonNegative = Annotated[Real, Field(ge=0)]
Fraction = Annotated[Real, Field(ge=0, le=1)]
Elevation = Annotated[Real, Field(ge=-90, le=90)]
PositiveFraction = Annotated[Real, Field(gt=0, le=1)]
HalfOpenFraction = Annotated[Real, Field(ge=0, lt=1)]
Rate = Annotated[Positive, Field(le=1e3)]
RateOrZero = Annotated[NonNegative, Field(le=1e3)]
Cap = Annotated[Positive | None, BeforeValidator(_cap)]
Count = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=1, le=_MOST)]
CountOrZero = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0, le=_MOST)]
Size = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=1, le=MOST_AT_ONCE)]
SizeOrZero = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0, le=MOST_AT_ONCE)]
Seed = Annotated[
    int,
    BeforeValidator(_refuse_bool),
    AfterValidator(_seed),  # pydantic would round the limit in its message
    Field(ge=0, lt=2**63),
]
Name = Annotated[str, Field(min_length=1)]
Text = Annotated[str, Field()]
Names = tuple[Name, ...]
Scorers = Annotated[str | Table[float], PlainValidator(_scorers)]
Texts = Annotated[Table[str], PlainValidator(_texts)]
