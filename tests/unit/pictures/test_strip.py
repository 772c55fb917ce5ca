"""`pictures.strip`: states side by side."""

import numpy as np
import pytest
import torch

from mvczigal_ref.pictures.strip import strip

BLACK, WHITE = torch.zeros(2, 6, 3, 8, 8), torch.ones(2, 6, 3, 8, 8)
NOTES = {"before": ["1 dB", "2 dB"], "after": ["3 dB", "4 dB"]}

# -- laws --------------------------------------------------------------------------------


def test_every_state_stands_in_its_column():
    """Black on the left half, white on the right one."""
    sheet = strip({"before": BLACK, "after": WHITE}, rows=["a cat", "a dog"], notes=NOTES)
    pixels = np.asarray(sheet)
    half = sheet.width // 2
    left, right = pixels[50:90, 12:half], pixels[50:90, half + 7 : -12]

    assert (left == 0).mean() > 0.7
    assert (right == 255).mean() > 0.7


# -- errors ------------------------------------------------------------------------------


def test_states_of_other_objects_are_refused():
    """Named, with both numbers."""
    with pytest.raises(ValueError, match=r"`columns` must hold as many .* 2; got 1 .*'after'"):
        strip({"before": BLACK, "after": WHITE[:1]}, rows=["a", "b"], notes=NOTES)
