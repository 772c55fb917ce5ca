"""Prompts as the tokenizers of OpenAI's CLIP and of OpenCLIP clean them before cutting words."""

from html import unescape

import ftfy

__all__ = ["repaired"]


def repaired(text: str) -> str:
    """Mend broken characters, typographic marks and HTML's names, and lower the case.

    Source:
        Radford et al., CLIP, arXiv:2103.00020, its released tokenizer, which OpenCLIP kept: ftfy,
        HTML's names twice, white space as one space, lower case. No deviation.

    Args:
        text: A prompt.

    Returns:
        What that tokenizer cuts into words.

    Examples:
        >>> repaired(" Red &amp;amp; white,  a cat\u2019s nose ")
        "red & white, a cat's nose"
    """
    plain = unescape(unescape(ftfy.fix_text(text)))
    return " ".join(plain.split()).lower()
