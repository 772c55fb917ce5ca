"""Tests on the pretend device: in a process of their own, which `tests/integration` starts."""

import pytest

from tests import pretend_device


@pytest.fixture(scope="session")
def device():
    """The device, as a user names it: without an index."""
    return pretend_device.install()
