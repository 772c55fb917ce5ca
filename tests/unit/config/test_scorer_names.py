"""`config.scorer_names`: the names that the registry builds, found without torch."""

import subprocess
import sys

from mvczigal_ref.config.scorer_names import SCORER_NAMES
from mvczigal_ref.reward.builders import JOINT, PER_VIEW


def test_the_names_are_those_that_can_be_built():
    """Of both kinds, each once."""
    assert sorted(SCORER_NAMES["per_view"]) == sorted(PER_VIEW)
    assert sorted(SCORER_NAMES["joint"]) == sorted(JOINT)


def test_names_are_checked_without_torch():
    """Which takes a second to import."""
    script = (
        "import sys, mvczigal_ref.config.scorer_names, mvczigal_ref.training.tracker_names;"
        "print({'torch', 'accelerate', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"
