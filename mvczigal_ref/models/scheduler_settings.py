"""Settings of diffusers' schedulers: each is followed, refused by name, or without effect."""

import sys
from collections.abc import Mapping
from typing import Any

from mvczigal_ref.diffusion.schedule import PREDICTION_TYPES
from mvczigal_ref.diffusion.spacing import SPACINGS
from mvczigal_ref.errors import quoted

__all__ = ["FOLLOWED", "INERT", "REFUSED", "check_length", "check_scheduler"]

_NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")

FOLLOWED: Mapping[str, tuple[str, ...]] = {
    "LCMScheduler": (
        *_NOISE, "prediction_type", "original_inference_steps", "timestep_scaling",
    ),
    "DDIMScheduler": (
        *_NOISE, "prediction_type", "steps_offset", "timestep_spacing", "set_alpha_to_one",
    ),
    "FlowMatchEulerDiscreteScheduler": (
        "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
        "max_image_seq_len",
    ),
}  # fmt: skip
"""Settings that this package's steps follow, by the scheduler's class."""

_PLAIN: Mapping[str, Any] = {
    "clip_sample": False, "thresholding": False, "rescale_betas_zero_snr": False,
}  # fmt: skip

REFUSED: Mapping[str, Mapping[str, Any]] = {
    "LCMScheduler": _PLAIN,
    "DDIMScheduler": _PLAIN,
    "FlowMatchEulerDiscreteScheduler": {
        # The networks' timestep is 1000 times the noise level.
        "num_train_timesteps": 1000,
        "invert_sigmas": False, "shift_terminal": None, "use_karras_sigmas": False,
        "use_exponential_sigmas": False, "use_beta_sigmas": False, "stochastic_sampling": False,
        "time_shift_type": "exponential", "use_flow_sigmas": False,
    },
}  # fmt: skip
"""Settings with the one value that is supported; an absent setting has it."""

_CLIPPING = ("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value")

INERT: Mapping[str, tuple[str, ...]] = {
    "LCMScheduler": (*_CLIPPING, "set_alpha_to_one", "steps_offset", "timestep_spacing"),
    "DDIMScheduler": _CLIPPING,
    "FlowMatchEulerDiscreteScheduler": (),
}
"""Settings that change no step of diffusers either, as long as nothing above is refused."""

_NO_NUMBERS = (
    "beta_schedule", "prediction_type", "trained_betas", "use_dynamic_shifting",
    "timestep_spacing", "set_alpha_to_one",
)  # fmt: skip

_WHOLE = ("num_train_timesteps", "original_inference_steps", "steps_offset")

_MOST = 100_000  # training timesteps: diffusers makes tables of them when a scheduler is made

_WORDS: Mapping[str, tuple[Any, ...]] = {
    "prediction_type": PREDICTION_TYPES,
    "timestep_spacing": SPACINGS,
    "set_alpha_to_one": (True, False),
}


def check_length(config: Mapping[str, Any]) -> None:
    """Refuse settings of tables that fit no memory, before a scheduler is made of them.

    Args:
        config: Settings of a scheduler, as a file has them.

    Raises:
        ValueError: If there are too many training timesteps, or none.

    Examples:
        >>> check_length({"num_train_timesteps": 10**9})
        Traceback (most recent call last):
        ValueError: `scheduler` must have a num_train_timesteps of 1 to 100000; got 1000000000.
    """
    length = config.get("num_train_timesteps", 1)
    number = isinstance(length, int | float) and not isinstance(length, bool)
    if number and not 1 <= length <= _MOST:
        msg = f"`scheduler` must have a num_train_timesteps of 1 to {_MOST}; got {quoted(length)}."
        raise ValueError(msg)


def check_scheduler(scheduler: Any) -> None:  # noqa: ANN401 - diffusers is untyped
    """Refuse a scheduler with a setting that changes diffusers' steps but not this package's.

    Args:
        scheduler: A scheduler of a class in :data:`FOLLOWED`.

    Raises:
        ValueError: If the class is another, or a setting is refused; the message names it.

    Examples:
        >>> from diffusers import DDIMScheduler
        >>> check_scheduler(DDIMScheduler(clip_sample=True))
        Traceback (most recent call last):
        ValueError: `scheduler` must have clip_sample = False, the only supported value; got ...
    """
    kind, config = type(scheduler).__name__, scheduler.config
    if kind not in FOLLOWED:
        msg = f"`scheduler` must be one of {', '.join(FOLLOWED)}; got {kind}."
        raise ValueError(msg)
    dynamic = config.get("use_dynamic_shifting")
    for name, only in REFUSED[kind].items():
        value = config.get(name)
        # An absent and a false value are the same to code that asks whether it is set.
        if value != only and (value or only):
            if name == "time_shift_type" and not dynamic:
                continue
            msg = (
                f"`scheduler` must have {name} = {only!r}, the only supported value; got "
                f"{value!r}. Make one with {kind}.from_config(config, {name}={only!r})."
            )
            raise ValueError(msg)
    for name, words in _WORDS.items():
        if name in FOLLOWED[kind] and config[name] not in words:
            msg = (
                f"`scheduler` must have a {name} of {', '.join(map(str, words))}; got "
                f"{config[name]!r}."
            )
            raise ValueError(msg)
    unread = ("shift",) if dynamic else ("base_shift", "max_shift")
    for name in FOLLOWED[kind]:
        value = config.get(name)
        if name not in (*_NO_NUMBERS, *unread) and not _is_number(value):
            msg = f"`scheduler` must have a finite number as {name}; got {value!r}."
            raise ValueError(msg)
        if name in _WHOLE and not isinstance(value, int):
            msg = f"`scheduler` must have a whole number as {name}; got {value!r}."
            raise ValueError(msg)
    check_length(config)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # JSON has greater integers
