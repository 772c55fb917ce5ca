"""Tokenizers: read strictly and compared with the published ones, and their longest text."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from mvczigal_ref.errors import CheckpointError, first_line, quoted
from mvczigal_ref.models.file_kinds import describe_file
from mvczigal_ref.models.weight_files import read_json

__all__ = ["KNOWN_IDS", "fit_tokenizers", "longest_text", "read_tokenizer", "text_length"]

_JSON_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json",
    "vocab.json",
)  # fmt: skip
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_ENDS = ("_token", "_tokens", "_class", "_length", "_case", "_decoder", "_prefix_space")
_TEXT_FILES = ("merges.txt", "vocab.txt")
_WORDS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",))

_MARKS = ("<|startoftext|>", "<|endoftext|>")
_PADS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}  # of SDXL, FLUX.1 and SD3

KNOWN_IDS: dict[tuple[str, int], tuple[str, tuple[int, ...]]] = {
    ("CLIPTokenizer", 49408): (
        "A diagram, hello world! A photo of a cat",
        (49406, 320, 22697, 267, 3306, 1002, 256, 320, 1125, 539, 320, 2368, 49407),
    ),
    ("BertTokenizer", 30522): (
        "The cat sat on the mat",
        (101, 1996, 4937, 2938, 2006, 1996, 13523, 102),
    ),
    ("T5Tokenizer", 32100): (
        "translate English to German: The house is wonderful.",
        (13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1),
    ),
}
"""A text and its ids under a published vocabulary, by the tokenizer's class and its size."""


def read_tokenizer(kind: Any, folder: Path) -> Any:  # noqa: ANN401 - transformers' are untyped
    """Read a tokenizer; one of a published vocabulary's size must split words as that one does.

    Args:
        kind: Class of the tokenizer.
        folder: Folder of its files.

    Returns:
        The tokenizer.

    Raises:
        CheckpointError: If a file is of another kind, which is named; or if the ids are not those
            of the published tokenizer.
    """
    for name in _JSON_FILES:
        if (folder / name).is_file():
            content = read_json(folder / name)
            if name in _SETTINGS and content and not any(n.endswith(_ENDS) for n in content):
                msg = (
                    f"`{folder / name}` must hold a tokenizer's settings; got "
                    f"{quoted(content)}. Download it again."
                )
                raise CheckpointError(msg)
    for name in _TEXT_FILES:
        what = describe_file(folder / name) if (folder / name).exists() else "text"
        if not what.startswith("text"):
            msg = f"`{folder / name}` must be a tokenizer's text; it is {what}. Download it again."
            raise CheckpointError(msg)
    if not any(all((folder / name).is_file() for name in files) for files in _WORDS):
        # Without them the class would make a tokenizer of no words, and say nothing.
        layouts = ", or ".join(" and ".join(files) for files in _WORDS)
        msg = f"`{folder}` must hold a whole {kind.__name__}: {layouts}. Download its files again."
        raise CheckpointError(msg)
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
        size = len(tokenizer)
        ids = [int(n) for n in tokenizer("a cat").input_ids]
    except Exception as error:  # the libraries raise nothing narrower
        msg = (
            f"`{folder}` must hold a whole {kind.__name__}; got {type(error).__name__}: "
            f"{first_line(error)}. Download its files again."
        )
        raise CheckpointError(msg) from error
    name = kind.__name__.removesuffix("Fast")
    text, expected = KNOWN_IDS.get((name, size), ("", ()))
    if expected:
        ids = [int(n) for n in tokenizer(text).input_ids]
    if expected and tuple(ids) != expected:
        msg = (
            f"`{folder}` must split words as the published {kind.__name__} of {size} tokens does, "
            f"{text!r} into {list(expected)}; got {ids}. Download its files again."
        )
        raise CheckpointError(msg)
    if name == "CLIPTokenizer":
        _check_clip(tokenizer, folder)
    return tokenizer


def _check_clip(tokenizer: Any, folder: Path) -> None:  # noqa: ANN401
    """Refuse a CLIP vocabulary that is not 256 bytes twice, the merges in order, two marks.

    Source:
        Radford et al., CLIP, arXiv:2103.00020, its released tokenizer. No deviation.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    symbols = bytes_to_unicode().values()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    words += ["".join(pair).replace(" ", "") for pair in model["merges"]]  # pairs, or text
    ids = model["vocab"]
    marks = (tokenizer.bos_token, tokenizer.eos_token)
    if marks != _MARKS:
        msg = (
            f"`{folder}` must begin and end a text as CLIP does, by {_MARKS[0]} and {_MARKS[1]}; "
            f"got {quoted(marks)}. Download its files again."
        )
        raise CheckpointError(msg)
    odd = [w for place, w in enumerate(words) if ids.get(w) != place]
    odd += sorted(set(ids) - {*words, *_MARKS})
    if odd:
        msg = (
            f"`{folder}` must number CLIP's 512 symbols, and the merges in their order after them; "
            f"its vocabulary and merges differ in {len(odd)} tokens, such as {quoted(odd[0])}. "
            "Download its files again."
        )
        raise CheckpointError(msg)


def fit_tokenizers(pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Give tokenizers the length that their encoders read, which must be one.

    A warning says where one pads texts otherwise than published, since the features then differ.

    Args:
        pairs: CLIP's tokenizer and encoder by the tokenizer's name in a pipeline.

    Raises:
        CheckpointError: If an id has no embedding in its encoder, or the lengths differ.
    """
    lengths = {}
    for name, (tokenizer, encoder) in pairs.items():
        most, size = max(tokenizer.get_vocab().values()), int(encoder.config.vocab_size)
        if most >= size:
            msg = (
                f"`{name}` must have ids below {size}, the embeddings of its encoder; got {most} "
                f"in {getattr(tokenizer, 'name_or_path', '')!r}. "
                "Take both from one place."
            )
            raise CheckpointError(msg)
        if tokenizer.pad_token != _PADS[name]:
            place = getattr(tokenizer, "name_or_path", "")
            warnings.warn(
                f"`{name}` in {place!r} pads texts with {quoted(tokenizer.pad_token)}, where the "
                f"published one pads with {_PADS[name]!r}: text features differ.",
                stacklevel=3,
            )
        tokenizer.model_max_length = lengths[name] = text_length(tokenizer, encoder)
    if len(set(lengths.values())) > 1:
        listed = " and ".join(f"{length} in {name}" for name, length in lengths.items())
        msg = f"`model_max_length` must be one for both tokenizers; got {listed}. Correct one."
        raise CheckpointError(msg)


def text_length(tokenizer: Any, encoder: Any) -> int:  # noqa: ANN401 - transformers is untyped
    """Give the length to which prompts are padded: the tokenizer's, but at most the encoder's.

    Args:
        tokenizer: A tokenizer; where its files name no length, its length has no bound.
        encoder: Text encoder with one embedding per position.

    Returns:
        The length [tokens].

    Raises:
        CheckpointError: If the tokenizer's length is no positive number.
    """
    return min(longest_text(tokenizer), int(encoder.config.max_position_embeddings))


def longest_text(tokenizer: Any) -> int:  # noqa: ANN401
    """Give the longest text of a tokenizer.

    Args:
        tokenizer: A tokenizer.

    Returns:
        The length, 10**30 where its files name none [tokens].

    Raises:
        CheckpointError: If it is no number, or below 2.
    """
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 2:
        msg = f"`model_max_length` of the tokenizer must be a number of tokens; got {length!r}."
        raise CheckpointError(msg)
    return int(min(length, 10**30))
