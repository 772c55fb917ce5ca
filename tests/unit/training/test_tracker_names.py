"""`training.tracker_names`: what is not installed is refused with the command that installs it."""

import pytest

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.training import tracker_names
from mvczigal_ref.training.tracker_names import require_trackers


@pytest.mark.parametrize(
    ("name", "command"),
    [("wandb", 'pip install -e ".[tracking]"'), ("comet_ml", "pip install comet-ml"),
     ("mlflow", "pip install mlflow")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_command(monkeypatch, name, command):
    """The extra's by the extra, others by the name that they are installed by."""
    monkeypatch.setattr(tracker_names.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match="is not installed") as caught:
        require_trackers([name])
    assert command in str(caught.value)
