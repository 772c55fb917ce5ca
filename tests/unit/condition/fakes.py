"""Language models of a few lines, and a reader of captions, for tests."""

import hashlib
import re

__all__ = ["Scripted", "Talker", "read_caption"]


class Scripted:
    """Give set answers in turn, the last for ever, and keep what was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked, self.images, self.seeds = [], [], []

    def ask(self, text, images=(), *, seed=None):
        self.asked.append(text)
        self.images.append(images)
        self.seeds.append(seed)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Talker:
    """Answer by question and seed alone, from a few words: it often repeats itself."""

    def __init__(self, words=40):
        self.words = words

    def ask(self, text, images=(), *, seed=None):
        seen = [image.sum().item() for image in images]
        digest = hashlib.blake2b(repr((text, seen, seed)).encode(), digest_size=4).digest()
        number = int.from_bytes(digest, "little")
        # One answer in five is no caption.
        return "Here is it: a cat" if number % 5 == 0 else f"a cat on mat {number % self.words}."


def read_caption(caption):
    """Take a caption of the tiny world apart: its plain sentence, its size and its side."""
    article, size, rest, side = re.fullmatch(
        r"(an? )(?:(small|large) )?(.*?)(?: at (left|right))?", caption
    ).groups()
    return article + rest, size, side
