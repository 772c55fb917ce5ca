"""Prompts of a run: the list that a setting names, checked before anything is loaded."""

import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

from mvczigal_ref.config import TrainConfig, scorer_weights
from mvczigal_ref.config.types import MOST_AT_ONCE
from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.models.published import SHIPPED
from mvczigal_ref.tiny_world.grammar import parse, split_prompts
from mvczigal_ref.training.prompt_datasets import dataset_rows, is_dataset
from mvczigal_ref.training.prompt_rows import Rows, file_rows, list_rows, split_column
from mvczigal_ref.training.prompt_sources import shipped_list, where_to_get

__all__ = [
    "in_world", "read_prompts", "require_few_samples", "run_prompts", "warn_of_cut_prompts",
]  # fmt: skip

_TOKENS_ADDED = 2  # at most, before and after a text


def read_prompts(
    name: str | Sequence[str], *, setting: str = "prompts", world: bool = False
) -> list[str]:
    """Read the prompts that a setting names; a warning tells blank and repeated lines.

    A line ends at a line feed, a carriage return or both, and nowhere else. Files are in UTF-8,
    with or without a byte-order mark.

    Args:
        name: ``world.train``, ``world.held_out``, or the path of a text file with one prompt per
            line; ``file.jsonl:column`` or ``file.csv:column``; ``hf:user/dataset:column``, with
            ``/split`` after the dataset and ``@revision`` at the end where they are needed; or the
            prompts themselves. A list that the package ships, such as
            ``prompts/simple_animals.txt``, is looked up in the working directory first.
        setting: Name of the setting or argument, for messages.
        world: Refuse prompts outside the tiny world's grammar.

    Returns:
        The prompts without surrounding blanks, blank lines left out, repeated ones kept.

    Raises:
        ConfigError: If there is no such list, file or column, it is empty or in another encoding,
            or a prompt is refused; names file and line.

    Examples:
        >>> len(read_prompts("world.held_out"))
        40
    """
    if isinstance(name, str):
        train_prompts, held_out = split_prompts()
        named = {"world.train": train_prompts, "world.held_out": held_out}
        if name in named:
            return named[name]
        rows, source = _rows(name, setting), repr(name)
    else:
        rows, source = list_rows(name, setting=setting), "the list"
    if not any(text for _, text in rows.texts):
        msg = f"`{setting}` must hold at least one prompt; {source} is empty."
        raise ConfigError(msg)
    prompts: list[str] = []
    first, blank, repeated = dict[str, int](), list[int](), list[int]()
    for number, text in rows.texts:
        if not text:
            blank.append(number)
            continue
        if world:
            _check_grammar(text, f"{rows.place} {number} of {source}")
        prompts.append(text)
        if first.setdefault(text, number) != number:
            repeated.append(number)
    for fault, numbers in (
        (f"blank {rows.place}s, left out", blank),
        ("repeated prompts, kept", repeated),
    ):
        if numbers:
            listed = ", ".join(map(str, numbers[:3])) + (", ..." if len(numbers) > 3 else "")
            msg = f"`{setting}`: {source} has {len(numbers)} {fault}: {rows.place} {listed}."
            warnings.warn(msg, stacklevel=2)
    return prompts


def _rows(name: str, setting: str) -> Rows:
    """Read the rows of a file, of a list that is shipped, or of a dataset."""
    path, column = split_column(name)
    if os.path.isfile(path):  # which a name too long is not either
        return file_rows(path, column, setting=setting)
    if is_dataset(name):
        return dataset_rows(name, setting=setting)
    shipped = shipped_list(name)
    if shipped is not None:
        return file_rows(shipped, None, setting=setting)
    if place := where_to_get(name):
        msg = f"`{setting}` = {name!r} is not in this folder. {place}; or name another list."
        raise ConfigError(msg)
    msg = (
        f"`{setting}` must be one of ['world.held_out', 'world.train'], a text file, FILE.csv:"
        f"COLUMN, FILE.jsonl:COLUMN or hf:USER/DATASET:COLUMN; got {quoted(name)}."
    )
    raise ConfigError(msg)


def run_prompts(
    config: TrainConfig,
    *,
    prompts: Sequence[str] | None = None,
    held_out: Sequence[str] | None = None,
) -> tuple[list[str], list[str]]:
    """Read a run's training and held-out prompts, and refuse what the run would stumble over.

    Args:
        config: The run.
        prompts: Prompts to train on in place of those that ``run.prompts`` names.
        held_out: Prompts to evaluate on in place of those that ``run.held_out`` names.

    Returns:
        Both lists.

    Raises:
        ConfigError: As :func:`read_prompts`; or if a held-out prompt is trained on too, the
            guard's unit needs more than one, or noises are too many for them.
    """
    world = in_world(config)
    trained = read_prompts(
        config.run.prompts if prompts is None else prompts, setting="run.prompts", world=world
    )
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
    require_few_samples("run.evaluation_noises", config.run.evaluation_noises, len(held_out))
    if config.guard.every:
        require_few_samples("guard.noises", config.guard.noises, len(held_out))
    return trained, list(held_out)


def require_few_samples(setting: str, noises: int, prompts: int) -> None:
    """Refuse noises by which one measurement would make more than 10^5 samples.

    Args:
        setting: Setting of the noises, for the message.
        noises: Initial noises per prompt.
        prompts: Prompts that are measured; however many they are, each may have one noise.

    Raises:
        ConfigError: If the samples are too many.

    Examples:
        >>> require_few_samples("guard.noises", 2000, 60)
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: `guard.noises` must be at most 1666 with 60 prompts, \
since one measurement makes at most 100000 samples; got 2000.
    """
    most = max(1, MOST_AT_ONCE // max(1, prompts))
    if noises > most:
        msg = (
            f"`{setting}` must be at most {most} with {prompts} prompts, since one measurement "
            f"makes at most {MOST_AT_ONCE} samples; got {noises}."
        )
        raise ConfigError(msg)


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
        views = model.network == "multiview"
        return model.rig == "world" if views else model.weights in SHIPPED
    readers = [
        *scorer_weights(reward.per_view),
        *scorer_weights(reward.joint),
        *(guard.per_view + guard.joint if guard.every else ()),
        config.condition.enhancer.replace("_", "."),
    ]
    return model.weights in SHIPPED or any(name.split(".")[0] == "world" for name in readers)


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
