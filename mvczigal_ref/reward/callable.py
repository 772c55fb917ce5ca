"""Scorer that is a plain function of the user's: looked up by name, checked once, called."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.source import Source
from mvczigal_ref.shapes import Images

__all__ = ["SIGNATURE", "CallableScorer", "callable_scorer", "require_contract"]

SIGNATURE = {
    "per_view": "score(images: (B, V, 3, H, W) float in [0, 1], prompts: list[str]) -> (B, V)",
    "joint": "score(images: (B, V, 3, H, W) float in [0, 1], prompts: list[str]) -> (B,)",
}
"""Signature of a function of each kind."""

_PROMPTS = ("a red cube with a white nose", "a blue ball with a green fin")


@dataclass(frozen=True, slots=True)
class CallableScorer:
    """Scorer that calls a function, without gradients, and checks the shape of what it returns."""

    source: Source
    """The function, and where its source is."""

    kind: str
    """``per_view`` or ``joint``."""

    device: torch.device | None = None
    """Device of the images that the function takes; None is where they are."""

    def __call__(self, images: Images, prompts: Sequence[str]) -> Any:  # noqa: ANN401 - either kind
        """Score by the function.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt per object.

        Returns:
            One reward per view or per object, fp32, on the images' device [reward units].

        Raises:
            ValueError: If the function returns anything else.
        """
        with torch.no_grad():
            rewards = self.source.function(
                images if self.device is None else images.to(self.device), list(prompts)
            )
        if problem := _problem(rewards, images, self.kind):
            msg = f"{self.source.name!r} must be a function `{SIGNATURE[self.kind]}`; {problem}."
            raise ValueError(msg)
        return rewards.to(device=images.device, dtype=torch.float32)


def callable_scorer(
    setting: str, kind: str, source: Source, options: ScorerOptions
) -> CallableScorer:
    """Check a function once, and make a scorer of it.

    Args:
        setting: Setting that names it, such as ``reward.per_view``.
        kind: ``per_view`` or ``joint``.
        source: The function.
        options: Device, number and size of the images.

    Returns:
        The scorer.

    Raises:
        ConfigError: If it breaks the contract; names the rule.
    """
    scorer = CallableScorer(source, kind, options.device)
    shape = (len(_PROMPTS), options.num_views, 3, options.image_size, options.image_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(options.device)
    require_contract(setting, scorer, images)
    return scorer


def require_contract(setting: str, scorer: CallableScorer, images: Images) -> None:
    """Call a function twice on a small batch, and refuse it if it breaks the contract.

    Args:
        setting: Setting that names it.
        scorer: The function as a scorer.
        images: Two objects.

    Raises:
        ConfigError: If it raises, returns another shape or type, a non-finite number, other numbers
            at the second call, or changes its images.
    """
    begin = f"`{setting}` = {scorer.source.name!r} must be a function `{SIGNATURE[scorer.kind]}`"
    passed = images.clone()
    tables = []
    for _ in range(2):
        try:
            with torch.no_grad():
                tables.append(scorer.source.function(passed, list(_PROMPTS)))
        except Exception as error:
            raise ConfigError(f"{begin}; {_raised(error, scorer.source.function)}.") from error
    if problem := _problem(tables[0], images, scorer.kind):
        raise ConfigError(f"{begin}; {problem}.")
    if not torch.isfinite(tables[0]).all():
        raise ConfigError(f"{begin} of finite numbers; got {quoted(tables[0].tolist())}.")
    if not isinstance(tables[1], Tensor) or not torch.equal(tables[0], tables[1]):
        msg = "that is deterministic; two calls on equal images differ. Seed what it draws."
        raise ConfigError(f"{begin} {msg}")
    if not torch.equal(passed, images):
        raise ConfigError(f"{begin} that leaves its images as they are; it changed them. Copy.")


def _problem(rewards: object, images: Images, kind: str) -> str:
    """Say what is wrong with what a function has returned; nothing if it is right."""
    if not isinstance(rewards, Tensor):
        return f"it returned a {type(rewards).__name__}, not a torch tensor"
    expected = images.shape[:2] if kind == "per_view" else images.shape[:1]
    if rewards.shape != expected:
        other = "joint" if kind == "per_view" else "per_view"
        swapped = rewards.shape == (images.shape[:1] if kind == "per_view" else images.shape[:2])
        hint = f", as `reward.{other}` takes" if swapped else ""
        return f"of {tuple(images.shape)} images it returned shape {tuple(rewards.shape)}{hint}"
    if not rewards.is_floating_point():
        return f"it returned {str(rewards.dtype).removeprefix('torch.')}, not a floating type"
    return ""


def _raised(error: Exception, function: Callable[..., Any]) -> str:
    """Say in a line what a function has raised, and in which line of which file."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is the call here
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    text = " ".join(str(error).split())
    hint = "; it is a class, so name an instance of it" if isinstance(function, type) else ""
    return f"it raised {type(error).__name__}: {text}{place}{hint}"
