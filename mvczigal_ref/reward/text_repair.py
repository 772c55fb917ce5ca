"""Cleaning of prompts, as in the tokenizers of OpenAI's CLIP and of OpenCLIP."""

from html import unescape

import ftfy

__all__ = ["repaired"]


def repaired(text: str) -> str:
    """Repair broken characters, typographic marks and HTML entities, and lower the case.

    Source:
        Radford et al., CLIP, arXiv:2103.00020, its released tokenizer, which OpenCLIP took over:
        ftfy, HTML entities twice, white space as one space, lower case. No deviation.

    Args:
        text: A prompt.

    Returns:
        The text that the tokenizer cuts into words.

    Examples:
        >>> repaired(" Red &amp;amp; white,  a cat\u2019s nose ")
        "red & white, a cat's nose"
    """
    plain = unescape(unescape(ftfy.fix_text(text)))
    return " ".join(plain.split()).lower()
