"""`models.reach`: one probe, and clients that do not retry where nothing answers."""

import sys
from types import ModuleType

import huggingface_hub
import pytest
from huggingface_hub import constants

from mvczigal_ref.models import reach


class Session:
    """Count requests, and answer or fail."""

    def __init__(self, error=None):
        self.requests, self._error = [], error

    def head(self, url, *, timeout):
        """Note a request."""
        self.requests.append((url, timeout))
        if self._error is not None:
            raise self._error


@pytest.fixture
def online(monkeypatch):
    """Be online, before any probe."""
    probe = reach.hub_answers
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    probe.cache_clear()
    yield monkeypatch
    probe.cache_clear()


@pytest.mark.parametrize("error", [None, OSError("no such host"), RuntimeError("no proxy")])
def test_the_hub_is_asked_once_and_for_seconds(online, error):
    """Whatever the client raises, nothing answers."""
    session = Session(error)
    online.setattr(huggingface_hub, "get_session", lambda: session)

    assert [reach.hub_answers() for _ in range(3)] == [error is None] * 3
    assert session.requests == [(constants.ENDPOINT, 3.0)]


def test_offline_nothing_is_asked(online):
    """As `HF_HUB_OFFLINE` says."""
    session = Session()
    online.setattr(huggingface_hub, "get_session", lambda: session)
    online.setattr(constants, "HF_HUB_OFFLINE", True)

    assert not reach.hub_answers()
    assert session.requests == []


@pytest.mark.parametrize("answers", [True, False])
def test_clients_are_offline_only_where_nothing_answers(online, answers):
    """The hub's client and the library of datasets; afterwards as before."""
    library = ModuleType("datasets.config")
    library.HF_HUB_OFFLINE = False
    online.setitem(sys.modules, "datasets.config", library)
    online.setattr(reach, "hub_answers", lambda: answers)

    with reach.without_retries():
        inside = (constants.HF_HUB_OFFLINE, library.HF_HUB_OFFLINE)

    assert inside == (not answers, not answers)
    assert (constants.HF_HUB_OFFLINE, library.HF_HUB_OFFLINE) == (False, False)
