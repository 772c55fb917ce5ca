"""The condition enhancer that a configuration asks for."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mvczigal_ref.condition.online import ASPECTS, OnlineEnhancer
from mvczigal_ref.condition.protocol import CaptionError, ConditionEnhancer
from mvczigal_ref.condition.several_samples import CAPTION_TOKENS
from mvczigal_ref.condition.stored import StoredCaptions
from mvczigal_ref.condition.tiny_world import WORDS, GrammarEditor, GrammarEnhancer
from mvczigal_ref.config import ConditionConfig
from mvczigal_ref.config.plugins import load_plugin
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.language.chat import ChatEndpoint
from mvczigal_ref.language.local import LocalVisionLanguageModel
from mvczigal_ref.language.protocol import LanguageModel

__all__ = ["build_enhancer"]


def build_enhancer(
    condition: ConditionConfig, *, device: torch.device, prompts: Sequence[str] = ()
) -> ConditionEnhancer | None:
    """Build the enhancer, which makes captions beside the prompts.

    Where a sample cannot be described, its caption is the prompt; the log counts these.

    Args:
        condition: Settings of the enhancer.
        device: Device of a model in this process.
        prompts: Prompts of the run; a file of captions must hold them.

    Returns:
        The enhancer; None where the settings ask for none.

    Raises:
        ConfigError: If an instruction is unknown, or a file or model cannot be used.

    Examples:
        >>> build_enhancer(ConditionConfig(), device=torch.device("cpu")) is None
        True
    """
    try:  # the setting is named here; the model's own message says the rest
        enhancer = _built(condition, device)
        if isinstance(enhancer, StoredCaptions):
            enhancer.require(prompts)
    except (CaptionError, ValueError, TypeError, OSError) as error:
        raise ConfigError(f'`condition.enhancer` = "{condition.enhancer}": {error}') from error
    return enhancer


def _built(condition: ConditionConfig, device: torch.device) -> ConditionEnhancer | None:
    if condition.enhancer == "none":
        return None
    if condition.enhancer == "world":
        instructions = condition.instructions or ("plain",)
        return GrammarEnhancer(instructions=instructions, on_refusal="prompt")
    if condition.enhancer == "world_edits":
        words = condition.instructions or tuple(WORDS)
        return GrammarEditor(num_captions=condition.num_captions, words=words)
    if condition.enhancer == "stored":
        return StoredCaptions(Path(condition.file or ""), num_captions=condition.num_captions)
    if condition.enhancer not in ("chat", "local"):
        enhancer = load_plugin("enhancers", condition.enhancer)(condition, device)
        if not isinstance(enhancer, ConditionEnhancer):
            raise TypeError(f"it must give a ConditionEnhancer; got a {type(enhancer).__name__}.")
        return enhancer
    unknown = [name for name in condition.instructions if name not in ASPECTS]
    if unknown:
        msg = f"`condition.instructions` must be some of {list(ASPECTS)}; got {unknown}."
        raise ValueError(msg)
    aspects = {name: ASPECTS[name] for name in condition.instructions} or ASPECTS
    return OnlineEnhancer(
        _model(condition, device), aspects=aspects, on_refusal="prompt",
        workers=condition.requests_at_once, samples_per_question=condition.samples_per_question,
    )  # fmt: skip


def _model(condition: ConditionConfig, device: torch.device) -> LanguageModel:
    """Load or address the language model."""
    name = condition.model or ""
    if condition.enhancer == "local":
        folder = Path(name).expanduser()
        return LocalVisionLanguageModel.load(folder, device=device, max_new_tokens=CAPTION_TOKENS)
    endpoint = ChatEndpoint(
        condition.url or "", name, max_tokens=CAPTION_TOKENS, api_key_env=condition.api_key_env
    )
    endpoint.key()  # an absent one is refused now, and not after the first rollout
    return endpoint
