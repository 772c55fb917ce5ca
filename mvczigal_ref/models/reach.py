"""Reach of the Hugging Face hub: one short probe, in place of minutes of retries."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["hub_answers", "without_retries"]

_PROBE_SECONDS = 3.0


@cache
def hub_answers() -> bool:
    """Ask the hub once per process whether it is there, for at most 3 s.

    Returns:
        False offline, and where nothing answers at the hub's address or the proxy's.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception:  # whatever the client raises of names, sockets, proxies and certificates
        return False
    return True


@contextmanager
def without_retries() -> Iterator[None]:
    """Keep the hub's clients to their caches where the hub does not answer."""
    if hub_answers():
        yield
        return
    from huggingface_hub import constants

    places: list[Any] = [constants, sys.modules.get("datasets.config")]
    before = [(place, place.HF_HUB_OFFLINE) for place in places if place is not None]
    for place, _ in before:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in before:
            place.HF_HUB_OFFLINE = value
