"""Find a published scorer's files, and build its network from exactly their tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.utils import cached_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.loading import load_strict, quiet
from mvczigal_ref.models.tokenizer_files import read_tokenizer
from mvczigal_ref.models.weight_files import described_by
from mvczigal_ref.reward.provenance import note

__all__ = [
    "Published",
    "Source",
    "build_network",
    "load_tokenizer",
    "locate",
    "renamed",
]

_Network = TypeVar("_Network", bound=nn.Module)
_Renaming = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
Source = str | Path
# Those of these files that lie in a tokenizer's folder decide its ids.
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Address of a published checkpoint, for the loader and its messages."""

    repo: str
    """Id of the repository on the Hugging Face hub."""

    files: tuple[str, ...]
    """Names under which the file is published, the preferred one first."""

    size: str
    """Size of the file, with its unit."""


def locate(
    source: Source,
    published: Published,
    *,
    local_files_only: bool,
    files: Sequence[str] | None = None,
) -> Path:
    """Find a file in a folder, or in a hub repository and its cache.

    A converted file, with the published name and the suffix ``.safetensors``, is preferred.

    Args:
        source: A folder, a hub id, or the file itself.
        published: File to find, and to download according to the message.
        local_files_only: If true, a hub id is looked up in the cache alone.
        files: Names of a companion to find instead, such as ``config.json``; it lies beside
            ``source`` if that is a file.

    Returns:
        The file on the disk.

    Raises:
        CheckpointError: If there is none; says where to get it and how large it is.
    """
    folder = Path(source)
    if folder.is_file() and files is None:
        return note(folder)
    names = files or published.files
    converted = [Path(name).with_suffix(".safetensors").name for name in published.files]
    for name in dict.fromkeys([*([] if files else converted), *names]):
        place = str(folder.parent if folder.is_file() else source)
        try:
            path = cached_file(place, name, local_files_only=local_files_only)
        except OSError:
            continue
        if path is not None:
            return note(Path(path))
    allowed = ", or allow it with `local_files_only=False`" if local_files_only else ""
    size = "" if files else f" ({published.size})"
    msg = (
        f"`source` must be a folder or hub id that holds {' or '.join(names)}; got "
        f"{str(source)!r}. Download it with `hf download {published.repo} {names[0]}`{size}"
        f"{allowed}."
    )
    raise CheckpointError(msg)


def load_tokenizer(
    kind: Any,  # noqa: ANN401 - transformers' tokenizers are untyped
    source: Source,
    *,
    published: Published,
    vocab_size: int,
    local_files_only: bool,
) -> Any:  # noqa: ANN401
    """Read a tokenizer whose ids the network's embedding can hold.

    Args:
        kind: Class of the tokenizer.
        source: A folder or a hub id.
        published: Files of the tokenizer; at least one must be there.
        vocab_size: Rows of the network's embedding [1].
        local_files_only: If true, a hub id is looked up in the cache alone.

    Returns:
        The tokenizer.

    Raises:
        CheckpointError: If it is absent or damaged, has more tokens than the embedding has rows,
            or splits words in another way than the published tokenizer of its size.
    """
    # Without its files the class would silently build an empty vocabulary.
    path = locate(source, published, local_files_only=local_files_only, files=published.files)
    for name in _TOKENIZER_FILES:
        if (path.parent / name).is_file():
            note(path.parent / name)
    with quiet():
        tokenizer = read_tokenizer(kind, path.parent)
    if len(tokenizer) > vocab_size:
        msg = (
            f"`tokenizer` must have at most the network's {vocab_size} tokens; got "
            f"{len(tokenizer)} in {str(path.parent)!r}. Use the one of `{published.repo}`."
        )
        raise CheckpointError(msg)
    return tokenizer


def build_network(
    build: Callable[[], _Network],
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    dtype: torch.dtype,
    to_published: _Renaming = dict,
    from_published: _Renaming = dict,
) -> _Network:
    """Build a frozen network around a checkpoint's tensors.

    No random number is drawn: the network is built without memory, its names and shapes are
    compared with the file's, and copies of the file's tensors become the parameters. Position
    indices, which older files hold, are counted anew.

    Args:
        build: Makes the network.
        tensors: The checkpoint, by its published names.
        source: Origin of the tensors, for the message.
        dtype: Floating type of the parameters, float32 or bfloat16.
        to_published: Renames a state dict of the network to the published names.
        from_published: Inverse of ``to_published``.

    Returns:
        The network in evaluation mode, without gradients, on the CPU.

    Raises:
        ValueError: If ``dtype`` is another.
        CheckpointError: If a tensor is missing, left over or of another shape; each is named.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        msg = f"`dtype` must be torch.float32 or torch.bfloat16; got {dtype}."
        raise ValueError(msg)
    with torch.device("meta"), described_by(f"the settings of {source}"):
        network = build()
    held = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    # Copying into tensors without memory does nothing; only the comparison remains.
    load_strict(to_published(network.state_dict()), held, source=source)
    # Copied even where the type fits: a file's alignment would change a product's last bit.
    values = {name: value.to(dtype, copy=True) for name, value in from_published(held).items()}
    network.load_state_dict(values, assign=True)
    for name, buffer in list(network.named_buffers()):
        if name.endswith("position_ids"):
            owner, _, leaf = name.rpartition(".")
            count = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            setattr(network.get_submodule(owner), leaf, count)
    return network.eval().requires_grad_(requires_grad=False)


def renamed(name: str, table: Sequence[tuple[str, str]]) -> str:
    """Replace every part of a name that a table names, in the table's order.

    Args:
        name: Name of a tensor.
        table: Pairs of an old and a new part.

    Returns:
        The new name.

    Examples:
        >>> renamed("text.layer.0.norm1.bias", [("text.", "t."), (".norm1.", ".ln_1.")])
        't.layer.0.ln_1.bias'
    """
    for old, new in table:
        name = name.replace(old, new)
    return name
