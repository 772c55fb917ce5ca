"""Prompts of a run: the list that a setting names, and each iteration's batch of it."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mvczigal_ref.config import TrainConfig, scorer_weights
from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.rollout.noise import derived_generator
from mvczigal_ref.text_files import read_text, text_lines
from mvczigal_ref.tiny_world.grammar import parse, split_prompts

__all__ = ["in_world", "prompt_batch", "read_prompts", "run_prompts", "warn_of_cut_prompts"]

_SHIPPED = ("tiny", "tiny_flow")


_TOKENS_ADDED = 2  # at most, before and after a text


def read_prompts(name: str, *, setting: str = "prompts", world: bool = False) -> list[str]:
    """Read the prompts that a setting names; a warning tells blank and repeated lines.

    A line ends at a line feed, a carriage return or both, and nowhere else.

    Args:
        name: ``world.train``, ``world.held_out``, or the path of a text file in UTF-8
            with one prompt per line.
        setting: Setting that names them, for messages.
        world: Refuse prompts outside the tiny world's grammar.

    Returns:
        The prompts without surrounding blanks, blank lines left out, repeated ones kept.

    Raises:
        ConfigError: If there is no such list or file, it is empty or in another encoding, or a
            prompt is refused; names file and line.

    Examples:
        >>> len(read_prompts("world.held_out"))
        40
    """
    train_prompts, held_out = split_prompts()
    named = {"world.train": train_prompts, "world.held_out": held_out}
    if name in named:
        return named[name]
    path = Path(name).expanduser()
    if not os.path.isfile(path):  # which a name too long is not either
        msg = f"`{setting}` must be one of {sorted(named)} or a text file; got {quoted(name)}."
        raise ConfigError(msg)
    # A mark inside a file is left of another file that was joined to it.
    lines = [line.strip().strip("\ufeff").strip() for line in text_lines(read_text(path))]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        msg = f"`{setting}` must hold at least one prompt; {name!r} is empty."
        raise ConfigError(msg)
    prompts: list[str] = []
    first, blank, repeated = dict[str, int](), list[int](), list[int]()
    for number, line in enumerate(lines, 1):
        if not line:
            blank.append(number)
            continue
        if world:
            _check_grammar(line, f"line {number} of {name!r}")
        prompts.append(line)
        if first.setdefault(prompts[-1], number) != number:
            repeated.append(number)
    for what, numbers in (("blank lines, left out", blank), ("repeated prompts, kept", repeated)):
        if numbers:
            listed = ", ".join(map(str, numbers[:3])) + (", ..." if len(numbers) > 3 else "")
            msg = f"`{setting}`: {name!r} has {len(numbers)} {what}: line {listed}."
            warnings.warn(msg, stacklevel=2)
    return prompts


def run_prompts(
    config: TrainConfig, *, held_out: list[str] | None = None
) -> tuple[list[str], list[str]]:
    """Read a run's training and held-out prompts, and refuse what the run would stumble over.

    Args:
        config: The run.
        held_out: Prompts to evaluate on in place of those that ``run.held_out`` names.

    Returns:
        Both lists.

    Raises:
        ConfigError: As :func:`read_prompts`; or if a held-out prompt is trained on too, or the
            guard's unit needs more than one.
    """
    world = in_world(config)
    trained = read_prompts(config.run.prompts, setting="run.prompts", world=world)
    named = held_out is None
    if held_out is None:
        held_out = read_prompts(config.run.held_out, setting="run.held_out", world=world)
    both = sorted({*map(_meaning, trained)} & {*map(_meaning, held_out)})
    if both and named:
        msg = (
            "`run.held_out` must hold no prompt of `run.prompts`, since held-out scores are of "
            f"prompts never trained on; got {len(both)} of both, such as {quoted(both[0])}. Take "
            "them out of one of the two lists."
        )
        raise ConfigError(msg)
    if config.guard.every and config.guard.unit == "standard_errors" and len(held_out) < 2:
        msg = (
            '`run.held_out` must hold at least 2 prompts where `guard.unit` = "standard_errors"; '
            'got 1. Add prompts, or set `guard.unit` to "reward".'
        )
        raise ConfigError(msg)
    return trained, held_out


def in_world(config: TrainConfig, *, scored: bool = True) -> bool:
    """Say whether prompts must be sentences of the tiny world.

    Args:
        config: Any run.
        scored: Whether the run's scorers, its guard and its captions read the prompts too.

    Returns:
        True where something that knows no other sentences reads them.

    Examples:
        >>> in_world(TrainConfig())
        True
    """
    model, reward, guard = config.model, config.reward, config.guard
    if not scored:
        flow = model.network == "flow"
        return model.weights == "tiny_flow" if flow else model.rig == "world"
    readers = [
        *scorer_weights(reward.per_view),
        *scorer_weights(reward.joint),
        *(guard.per_view + guard.joint if guard.every else ()),
        config.condition.enhancer.replace("_", "."),
    ]
    return model.weights in _SHIPPED or any(name.split(".")[0] == "world" for name in readers)


def warn_of_cut_prompts(components: Any, prompts: Sequence[str], *, setting: str) -> None:  # noqa: ANN401 - of either kind
    """Warn of prompts whose end no text encoder reads.

    Args:
        components: Models of a run, with their tokenizers.
        prompts: Texts.
        setting: Setting that names them, for the message.
    """
    limits = _token_limits(components)
    longest = max((limit for _, limit in limits), default=math.inf)
    cut = [
        prompt
        for prompt in dict.fromkeys(prompts)
        if len(prompt.encode()) + _TOKENS_ADDED > longest
        and all(
            len(tokenizer(prompt, verbose=False).input_ids) > limit for tokenizer, limit in limits
        )
    ]
    if cut:
        warnings.warn(
            f"`{setting}`: words beyond {longest} tokens are not read by the model; so end "
            f"{len(cut)} of {len(prompts)} prompts, such as {quoted(cut[0])}. Shorten them.",
            stacklevel=2,
        )


def _token_limits(components: Any) -> list[tuple[Any, int]]:  # noqa: ANN401
    """Pair every tokenizer with the longest text that its encoder is given [tokens]."""
    if hasattr(components, "tokenizers"):
        *others, last = components.tokenizers
        return [(each, int(each.model_max_length)) for each in others] + [
            (last, int(components.max_tokens))
        ]
    both = [getattr(components, name, None) for name in ("tokenizer", "tokenizer_2")]
    return [(each, int(each.model_max_length)) for each in both if each is not None]


def _check_grammar(prompt: str, place: str) -> None:
    try:
        parse(prompt)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _meaning(prompt: str) -> str:
    """Spell a prompt as encoders read it: without the case of its letters."""
    return " ".join(prompt.lower().split())


def prompt_batch(prompts: Sequence[str], *, seed: int, iteration: int, count: int) -> list[str]:
    """Choose an iteration's prompts: shuffled passes over the list, whatever the processes.

    Args:
        prompts: All training prompts.
        seed: Run seed.
        iteration: Index of the iteration.
        count: Prompts wanted.

    Returns:
        ``count`` prompts; every prompt appears once a pass.

    Raises:
        ValueError: If there are no prompts.

    Examples:
        >>> sorted(prompt_batch(["a", "b"], seed=0, iteration=3, count=2))
        ['a', 'b']
    """
    if not prompts:
        msg = "`prompts` must hold at least one prompt; got none."
        raise ValueError(msg)
    chosen: list[str] = []
    for position in range(iteration * count, (iteration + 1) * count):
        turn, place = divmod(position, len(prompts))
        if not chosen or place == 0:
            order = torch.randperm(len(prompts), generator=derived_generator(seed, "prompts", turn))
        chosen.append(prompts[int(order[place])])
    return chosen
