"""Scorer that is a plain function of the user's: looked up by name, checked once, called."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.errors import ConfigError, ServiceUnavailableError, quoted
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.source import Source
from mvczigal_ref.reward.user_code import FAULTS, raised, unchanged_defaults
from mvczigal_ref.shapes import Images

__all__ = ["SIGNATURE", "CallableScorer", "callable_scorer", "require_contract"]

SIGNATURE = {
    "per_view": "score(images: (B, V, 3, H, W) float in [0, 1], prompts: list[str]) -> (B, V)",
    "joint": "score(images: (B, V, 3, H, W) float in [0, 1], prompts: list[str]) -> (B,)",
}
"""Signature of a function of each kind."""

_ROUNDING = 0.05  # of the largest reward: more than kernels of other sizes make in bf16
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
            ConfigError: If the function raises, or returns anything else.
            ServiceUnavailableError: If the function raises it, since a service that it asks is out.
        """
        begin = f"{self.source.name!r} must be a function `{SIGNATURE[self.kind]}`"
        rewards = _called(
            self, images if self.device is None else images.to(self.device), prompts, begin
        )
        if problem := _problem(rewards, images, self.kind):
            raise ConfigError(f"{begin}; {problem}.")
        # A copy: a function may write into its own memory again at the next call.
        return rewards.detach().to(device=images.device, dtype=torch.float32, copy=True)


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
    """Call a function on a small batch and on half of it; refuse it if it breaks the contract.

    Args:
        setting: Setting that names it.
        scorer: The function as a scorer.
        images: Two objects.

    Raises:
        ConfigError: If it raises, returns another shape or type, a non-finite number, other numbers
            at the second call or for an object alone, changes its images, or changes a default of
            torch.
    """
    begin = f"`{setting}` = {scorer.source.name!r} must be a function `{SIGNATURE[scorer.kind]}`"
    passed = images.clone()
    with unchanged_defaults(f"`{setting}` = {scorer.source.name!r}"):
        table = _checked(scorer, passed, _PROMPTS, begin)
        if not torch.equal(passed, images):
            raise ConfigError(f"{begin} that leaves its images as they are; it changed them. Copy.")
        if not torch.equal(table, _checked(scorer, passed, _PROMPTS, begin)):
            msg = "that is deterministic; two calls on equal images differ. Seed what it draws."
            raise ConfigError(f"{begin} {msg}")
        alone = _checked(scorer, passed[1:], _PROMPTS[1:], begin)
    # Kernels of other sizes round otherwise; what mixes objects differs by more.
    if (alone - table[1:]).abs().max() > _ROUNDING * table.abs().max():
        msg = (
            "that scores an object by its own images and prompt; with another object before it "
            f"one had {quoted(table[1:].tolist())}, alone {quoted(alone.tolist())}. Leave out what "
            "mixes objects, such as a mean over the batch."
        )
        raise ConfigError(f"{begin} {msg}")


def _called(scorer: CallableScorer, images: Images, prompts: Sequence[str], begin: str) -> Any:  # noqa: ANN401 - the user's
    """Call a function without gradients; what it raises becomes one line."""
    try:
        with torch.no_grad():
            return scorer.source.function(images, list(prompts))
    except ServiceUnavailableError:
        raise
    except FAULTS as error:
        raise ConfigError(f"{begin}; {raised(error, scorer.source.function)}.") from error


def _checked(scorer: CallableScorer, images: Images, prompts: Sequence[str], begin: str) -> Tensor:
    """Call a function, and refuse what it returns if that is no table of finite numbers."""
    rewards = _called(scorer, images, prompts, begin)
    if problem := _problem(rewards, images, scorer.kind):
        raise ConfigError(f"{begin}; {problem}.")
    table: Tensor = rewards.detach().clone()  # which the function may write into again
    if not torch.isfinite(table.float()).all():
        raise ConfigError(f"{begin} of finite numbers; got {quoted(table.tolist())}.")
    return table


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
    if rewards.layout != torch.strided or rewards.is_meta:
        return "it returned a sparse tensor or one on the device meta, not one of plain numbers"
    return ""
