"""`config.sharding`: settings of a network in parts."""

import pytest

from mvczigal_ref.config import RunConfig
from mvczigal_ref.config.sharding import processes_contradiction

# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"), [("compute_dtype", "bf16"), ("offload_parameters", True)]
)
def test_one_process_is_refused_what_acts_on_parts(setting, value):
    """It would hold the whole network, and train other numbers or spare nothing."""
    run = RunConfig(sharding="full", **{setting: value})

    assert processes_contradiction(run, 2) is None
    assert processes_contradiction(RunConfig(sharding="full"), 1) is None
    message = processes_contradiction(run, 1)
    assert message is not None
    assert message.startswith(f"`run.{setting}` = {value!r} acts on the parts of a network")
    assert "--processes" in message
