"""Values of a checkpoint beside its parameters, checked before a run goes on with them."""

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mvczigal_ref.errors import CheckpointError, quoted

__all__ = ["REQUIRED", "require_state", "restored"]

_Value = TypeVar("_Value")
_Count = Annotated[int, Field(ge=0)]
_STRICT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

REQUIRED = ("constraint", "optimizer", "prompts")
"""Values without which no run goes on; the others may be absent in checkpoints of old versions."""


class _Constraint(BaseModel):
    model_config = _STRICT
    multiplier: float
    threshold: float
    initialised: bool


class _Optimizer(BaseModel):
    model_config = _STRICT
    numbers: dict[str, float]
    param_groups: list[dict[str, Any]]


class _Seal(BaseModel):
    model_config = _STRICT
    rows: _Count
    sha256: str


class _Reward(BaseModel):
    model_config = _STRICT
    place: str
    sha256: str | None


class _LossScale(BaseModel):
    model_config = _STRICT
    scale: float
    good_steps: _Count


class _Origin(BaseModel):
    model_config = _STRICT
    place: str
    sha256: str
    parameters: str


class _State(BaseModel):
    model_config = _STRICT
    constraint: _Constraint | None = None
    optimizer: _Optimizer | None = None
    loss_scale: _LossScale | None = None
    prompts: str = ""
    prompts_met: str | None = None
    prompt_position: _Count = 0
    guard: dict[str, Any] | None = None
    pending: dict[str, float | None] | None = None
    records: dict[str, _Seal] = {}
    rewards: dict[str, _Reward] = {}
    weights: dict[str, str] | None = None
    paths: dict[str, str] = {}
    origin: _Origin | None = None


def require_state(text: str) -> dict[str, Any]:
    """Refuse values that no run has written.

    Args:
        text: JSON of a checkpoint.

    Returns:
        Values by name.

    Raises:
        CheckpointError: If one is of another kind; names it.

    Examples:
        >>> require_state('{"prompts": 3}')
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: its `prompts` must be what a run has written; got 3...
    """
    try:
        _State.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "state"
        msg = (
            f"its `{place[:80]}` must be what a run has written; got {quoted(first['input'])} "
            f"({first['msg'].lower()})."
        )
        raise CheckpointError(msg) from error
    values: dict[str, Any] = json.loads(text)
    return values


def restored(name: str, build: Callable[[], _Value]) -> _Value:
    """Build a part of a run from a checkpoint's values.

    Args:
        name: Name of the part.
        build: Makes it.

    Returns:
        The part.

    Raises:
        CheckpointError: If the values do not make one.
    """
    try:
        return build()
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        msg = (
            f"the checkpoint's `{name}` must be what this run has written; got {reason}. Remove "
            "the checkpoint to go on from the one before, or choose another folder."
        )
        raise CheckpointError(msg) from error
