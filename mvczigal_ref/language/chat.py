"""A client of chat models that are served over HTTP in OpenAI's request format.

A question is one message of text and images, an answer is a text. Answers are bounded in time,
in bytes and in tries. Only failures that may pass are retried, and no redirect is followed, so a
key goes to the named host alone.
"""

import base64
import io
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus

import torch
from jaxtyping import Float
from PIL import Image
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)
from torch import Tensor

from mvczigal_ref.errors import ConfigError, ServiceUnavailableError
from mvczigal_ref.language.bounded_http import TRANSIENT, TryAgainError, checked_url, exchange

__all__ = [
    "ChatAnswerError",
    "ChatEndpoint",
    "ChatRefusedError",
    "ChatUnavailableError",
    "png_data_url",
]

MAX_BODY_BYTES = 1 << 20
"""Longest response [bytes]; a longer one is refused. Thousands of tokens fit easily."""


MAX_PAUSE_S = 30.0
"""Longest pause between two tries, whatever the server asks for [s]."""


AnyImage = Float[Tensor, "rgb _ _"]
"""Image of any size; several in one question may differ in size."""


_PATH = "/chat/completions"


class ChatUnavailableError(ServiceUnavailableError):
    """No try within the allowed number was answered."""


class ChatAnswerError(ValueError):
    """The endpoint responded, but without a usable answer."""


class ChatRefusedError(ChatAnswerError, ConfigError):
    """The endpoint refuses the request; asking again would not help."""


def png_data_url(image: Float[Tensor, "rgb height width"]) -> str:
    """Encode an image as a PNG inside a URL, for a message.

    Args:
        image: RGB, finite; values outside [0, 1] are clamped, then rounded to 8 bits.

    Returns:
        A ``data:`` URL; equal pixels give equal text.

    Raises:
        ValueError: If the image has no pixels, other than three channels, or a NaN.

    Examples:
        >>> png_data_url(torch.zeros(3, 2, 2))[:22]
        'data:image/png;base64,'
    """
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        msg = f"`image` must be of shape (3, height, width); got {tuple(image.shape)}."
        raise ValueError(msg)
    if not bool(image.isfinite().all()):
        msg = "`image` must be finite; got NaN or infinity. Check the decoder."
        raise ValueError(msg)
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True, slots=True)
class ChatEndpoint:
    """A served model: its address, and the settings of its questions.

    Each question opens its own connection, so one endpoint serves several threads.
    Proxies named in the environment are used, but not on the way to this machine itself.

    Examples:
        >>> endpoint = ChatEndpoint("http://127.0.0.1:8000/v1", "judge", temperature=0.0)
        >>> endpoint.url
        'http://127.0.0.1:8000/v1/chat/completions'
    """

    base_url: str
    """URL up to and including the version, such as ``http://127.0.0.1:8000/v1``."""

    model: str
    """Name under which the server knows the model."""

    timeout_s: float = field(default=120.0, kw_only=True)
    """Longest duration of one try, from connecting to the last byte [s]."""

    retries: int = field(default=3, kw_only=True)
    """Further tries after the first [1]."""

    max_tokens: int = field(default=512, kw_only=True)
    """Longest answer [tokens]."""

    temperature: float = field(default=0.0, kw_only=True)
    """Temperature of the model's sampling [1]; 0 takes the likeliest token."""

    seed: int | None = field(default=0, kw_only=True)
    """Seed of the model's sampling, sent along; None leaves it out for servers that refuse it."""

    api_key_env: str | None = field(default=None, kw_only=True)
    """Environment variable that holds the key; None sends no key."""

    backoff_s: float = field(default=0.5, kw_only=True)
    """Pause before the second try, doubled for each further one, up to 30 s [s]."""

    sleep: Callable[[float], None] | None = field(default=None, kw_only=True, repr=False)
    """Waits so many seconds; its exceptions end the question. ``time.sleep`` if None."""

    def __post_init__(self) -> None:
        checked_url(self.base_url)
        if not self.model:
            msg = "`model` must name the served model; got ''. Ask the server for its /models."
            raise ValueError(msg)
        for name, least in {"retries": 0, "max_tokens": 1}.items():
            value = getattr(self, name)
            if value < least:
                msg = f"`{name}` must be at least {least}; got {value!r}."
                raise ValueError(msg)
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            msg = f"`timeout_s` must be positive and finite; got {self.timeout_s!r}."
            raise ValueError(msg)
        for name in ("temperature", "backoff_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                msg = f"`{name}` must be finite and not negative; got {value!r}."
                raise ValueError(msg)

    @property
    def url(self) -> str:
        """Address that questions are sent to."""
        return self.base_url.rstrip("/") + _PATH

    def longer(self, more_tokens: int) -> "ChatEndpoint":
        """Allow longer answers, as one needs that holds several.

        Args:
            more_tokens: Length beyond ``max_tokens`` [tokens].

        Returns:
            The endpoint with longer answers.

        Examples:
            >>> ChatEndpoint("http://127.0.0.1:8000/v1", "judge").longer(64).max_tokens
            576
        """
        return replace(self, max_tokens=self.max_tokens + more_tokens)

    def ask(
        self,
        text: str,
        images: Sequence[AnyImage] = (),
        *,
        seed: int | None = None,
    ) -> str:
        """Send one message and wait for its answer.

        Args:
            text: Text that the model reads after the images.
            images: RGB in [0, 1], in the order in which the model sees them; sizes may
                differ.
            seed: Seed of this question; the endpoint's own when None.

        Returns:
            The answer, stripped; never empty.

        Raises:
            ChatUnavailableError: If no try was answered.
            ChatRefusedError: If the endpoint refuses the request.
            ChatAnswerError: If its answer is cut, empty, too long or of an unexpected
                form.
            ConfigError: If the environment lacks the key.
            ValueError: If an image is unfit.
        """
        key = self.key()
        body = self._body(text, images, self.seed if seed is None else seed)
        tries = Retrying(
            retry=retry_if_exception_type(TryAgainError),
            stop=stop_after_attempt(self.retries + 1),
            wait=self._pause,
            sleep=self.sleep or time.sleep,
            reraise=True,
        )
        try:
            return tries(lambda: _answer(self._post(body, key), key))
        except TryAgainError as error:
            last = _without(str(error), key)
        msg = f"`{self.url}` must answer; got {last} at the last of {self.retries + 1} tries."
        raise ChatUnavailableError(msg)

    def _pause(self, state: RetryCallState) -> float:
        """Double the pause from try to try [s]; the server may ask for a longer one."""
        error = state.outcome.exception() if state.outcome else None
        longer = error.pause_s if isinstance(error, TryAgainError) else 0.0
        return min(max(longer, wait_exponential(self.backoff_s)(state)), MAX_PAUSE_S)

    def key(self) -> str | None:
        """Read the key from the environment.

        Returns:
            The key; None where none is sent.

        Raises:
            ConfigError: If the variable is unset, or holds what no header can; the key is not
                quoted.

        Examples:
            >>> ChatEndpoint("http://127.0.0.1:8000/v1", "judge").key() is None
            True
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key and key.isascii() and key.isprintable()):
            msg = (
                f"`api_key_env` must name a variable that holds a key in printable ASCII; "
                f"{self.api_key_env!r} is {'not printable ASCII' if key else 'unset or empty'}."
            )
            raise ConfigError(msg)
        return key

    def _body(self, text: str, images: Sequence[AnyImage], seed: int | None) -> bytes:
        """Write the request."""
        parts: list[object] = [
            {"type": "image_url", "image_url": {"url": png_data_url(image)}} for image in images
        ]
        request: dict[str, object] = {
            "model": self.model,
            # Text-only servers accept strings alone.
            "messages": [
                {
                    "role": "user",
                    "content": [*parts, {"type": "text", "text": text}] if parts else text,
                }
            ],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": False,
        }
        if seed is not None:
            request["seed"] = seed
        return json.dumps(request, allow_nan=False).encode()

    def _post(self, body: bytes, key: str | None) -> bytes:
        """Send the request once, and return the body of an accepting response."""
        secret = {} if key is None else {"Authorization": f"Bearer {key}"}
        reply = exchange(
            "POST",
            self.url,
            body,
            headers={"Content-Type": "application/json", **secret},
            timeout_s=self.timeout_s,
            max_bytes=MAX_BODY_BYTES,
        )
        if reply.status == HTTPStatus.OK:
            return reply.content
        answer = f"status {reply.status}: {_excerpt(reply.content, key)}"
        if reply.status in TRANSIENT:
            raise TryAgainError(answer, reply.retry_after_s)
        msg = f"`{self.url}` must accept the request; got {answer}"
        raise ChatRefusedError(msg)


def _answer(content: bytes, key: str | None) -> str:
    """Take the text out of a response; a key that the server quotes is left out."""
    if len(content) > MAX_BODY_BYTES:
        msg = f"The answer must be at most {MAX_BODY_BYTES} bytes long; got more. Lower max_tokens."
        raise ChatAnswerError(msg)
    try:
        response = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TryAgainError(f"no JSON but {_excerpt(content, key)}") from error
    try:
        choice = response["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError) as error:
        msg = f"The answer must hold choices[0].message.content; got {_excerpt(content, key)}."
        raise ChatAnswerError(msg) from error
    if reason == "length":
        msg = "The answer must be whole; got one that was cut. Raise `max_tokens`."
        raise ChatAnswerError(msg)
    if not isinstance(text, str) or not text.strip() or reason == "content_filter":
        msg = f"The answer must hold text; got {_excerpt(content, key)}."
        raise ChatAnswerError(msg)
    # Half a surrogate pair is a string that no file takes.
    return _without(text.strip(), key).encode("utf-8", "replace").decode("utf-8")


def _excerpt(content: bytes, key: str | None) -> str:
    """Quote the start of a response, without the key that a server may send back."""
    text = _without(content[: 1 << 16].decode("utf-8", "replace"), key)
    return repr(text[:200])


def _without(text: str, key: str | None) -> str:
    """Leave a key out of a text, as it is or as JSON writes it."""
    for form in {key, json.dumps(key)[1:-1]} if key else ():
        text = text.replace(str(form), "[key]")
    return text
