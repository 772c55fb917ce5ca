"""T5 at toy size with random weights: its tokenizer and its encoder."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from mvczigal_ref.models.tiny import TINY_WORDS

__all__ = ["tiny_t5", "tiny_t5_tokenizer"]


# Mark that T5 writes in front of a word.
_BEGIN = "\N{LOWER ONE EIGHTH BLOCK}"


_LETTER_SCORE, _WORD_SCORE = -10.0, -1.0


def tiny_t5_tokenizer(words: Sequence[str] = TINY_WORDS, *, length: int = 16) -> T5Tokenizer:
    """Build a T5 tokenizer that keeps some words whole and spells the others.

    Args:
        words: Non-empty texts; each becomes one token.
        length: Tokens per prompt, the end counted.

    Returns:
        A tokenizer of the words and of ASCII's printed characters; others are unknown.

    Raises:
        ValueError: If a word is empty.

    Examples:
        >>> tiny_t5_tokenizer().tokenize("a red")
        ['\u2581a', '\u2581red']
    """
    if not all(words):
        msg = f"`words` must be non-empty texts; got {list(words)}. Leave the empty one out."
        raise ValueError(msg)
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    letters = [(chr(code), _LETTER_SCORE) for code in range(ord("!"), ord("~") + 1)]
    whole = [(_BEGIN + word, _WORD_SCORE) for word in dict.fromkeys(words)]
    vocabulary = [*special, (_BEGIN, _LETTER_SCORE), *whole, *letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=length)


def tiny_t5(tokenizer: T5Tokenizer, *, width: int, seed: int) -> T5EncoderModel:
    """Build a random T5 encoder whose features depend on a word and on its neighbours.

    The transformer sees text tokens without their order, so what stands beside
    a word must be in its features: attention prefers some distances clearly.

    Args:
        tokenizer: Read for the number of tokens.
        width: Width of the features; even.
        seed: Seed of the weights. The global generator is not touched.

    Returns:
        A frozen encoder in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=width,
                d_kv=width // 2,
                d_ff=2 * width,
                num_layers=2,
                num_heads=4,
                relative_attention_max_distance=16,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        for name, weight in encoder.named_parameters():
            if "relative_attention_bias" in name:
                # T5's own initial values, 0.2, would weigh all distances alike.
                nn.init.normal_(weight, std=3.0)
    return encoder.eval().requires_grad_(requires_grad=False)
