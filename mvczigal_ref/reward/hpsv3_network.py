"""HPSv3's network, tokenizer and instruction, from files of the published layout."""

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.loading import load_strict
from mvczigal_ref.models.weight_files import read_json
from mvczigal_ref.reward.provenance import note

__all__ = [
    "IMAGE_TOKEN",
    "INSTRUCTION_FILE",
    "REWARD_TOKEN",
    "build_hpsv3",
    "read_instruction",
    "read_tokenizer",
]

INSTRUCTION_FILE = "hpsv3_instruction.txt"
"""Name of the file with the words that the network was trained with."""

IMAGE_TOKEN = "<|image_pad|>"
"""Token in whose place an image's features are put."""

REWARD_TOKEN = "<|Reward|>"
"""Token whose features the head reads."""

# Prefixes of the library's names, and of the names in files; the first layout is the published.
_LAYOUTS = (
    {"visual.": "visual.", "language_model.": "model."},
    {"visual.": "model.visual.", "language_model.": "model.language_model."},
)


def read_instruction(weights: Path) -> str:
    """Read the words around the prompt, byte for byte.

    Args:
        weights: File of the weights; the words lie beside it.

    Returns:
        The words.

    Raises:
        CheckpointError: If they are absent; says where to get them.
    """
    path = weights.parent / INSTRUCTION_FILE
    try:
        return note(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = (
            f"`{path}` must hold the words that HPSv3 was trained with (3 kB); it cannot be read "
            f"({type(error).__name__}). Save there, joined, the texts INSTRUCTION and "
            "prompt_with_special_token of hpsv3/dataset/data_collator_qwen.py in "
            "https://github.com/MizzenAI/HPSv3, or pass them as `instruction`."
        )
        raise CheckpointError(msg) from error


def read_tokenizer(path: Path) -> Tokenizer:
    """Read the base's tokenizer and add the reward token under the next free number.

    Args:
        path: The base's ``tokenizer.json``.

    Returns:
        The tokenizer, as long as the network's embedding.

    Raises:
        CheckpointError: If the file is not a tokenizer.
    """
    read_json(path)  # which says what another file is
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        msg = f"`{path}` must be a tokenizer; got {type(error).__name__}: {error}."
        raise CheckpointError(msg) from error
    tokenizer.add_special_tokens([REWARD_TOKEN])
    return tokenizer


def build_hpsv3(
    config: Qwen2VLConfig, tensors: Mapping[str, Tensor], *, source: str, dtype: torch.dtype
) -> tuple[Qwen2VLModel, nn.Module]:
    """Build the networks without memory, and take the file's tensors as their parameters.

    Args:
        config: Configuration of the base, with the vocabulary of the extended tokenizer.
        tensors: The checkpoint, under the published names or those of newer versions of the
            library.
        source: Origin of the tensors, for the message.
        dtype: Floating type of the network; the head is float32.

    Returns:
        Network and head in evaluation mode, without gradients, on the CPU.

    Raises:
        CheckpointError: If a tensor is missing, left over or of another shape; each is named.
    """
    with torch.device("meta"):
        model = Qwen2VLModel(config)
        head = nn.Sequential(
            nn.Linear(config.text_config.hidden_size, 1024),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )
    old = any(name.startswith("visual.") for name in tensors)
    layout = _LAYOUTS[0 if old else 1]
    names = {_published(name, layout): (model, name, dtype) for name in model.state_dict()} | {
        f"rm_head.{name}": (head, name, torch.float32) for name in head.state_dict()
    }
    # The file also holds the language head, on which no score depends.
    held = {name: value for name, value in tensors.items() if name != "lm_head.weight"}
    layouts = {name: part.state_dict()[key] for name, (part, key, _) in names.items()}
    load_strict(layouts, held, source=source)
    for part in (model, head):
        values = {key: held[n].to(kind) for n, (who, key, kind) in names.items() if who is part}
        part.load_state_dict(values, assign=True)
    # Buffers that are computed and not stored are built anew, in memory.
    model.visual.rotary_pos_emb = _rounded(type(model.visual.rotary_pos_emb)(config.vision_config))
    rotary = type(model.language_model.rotary_emb)
    model.language_model.rotary_emb = _rounded(rotary(config=config.text_config))
    for part in (model, head):
        part.eval().requires_grad_(requires_grad=False)
    return model, head


def _published(name: str, layout: Mapping[str, str]) -> str:
    prefix = next(prefix for prefix in layout if name.startswith(prefix))
    return layout[prefix] + name.removeprefix(prefix)


def _rounded(rotary: nn.Module) -> nn.Module:
    """Round rotary frequencies as the released code did when it cast the whole network."""
    for buffer in rotary.buffers():
        buffer.copy_(buffer.bfloat16())
    return rotary
