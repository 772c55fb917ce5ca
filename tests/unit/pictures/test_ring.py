"""`pictures.ring`: every view where its camera stands."""

import numpy as np
import pytest
import torch

from mvczigal_ref.pictures.ring import camera_ring

COLOURS = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 1.0]])


def views(number, edge=8):
    """Views of one colour each."""
    return COLOURS[:number, :, None, None].expand(number, 3, edge, edge)


def middles(ring, number):
    """Find the middle of each view by its colour, relative to the picture's middle."""
    pixels = np.asarray(ring)
    places = [
        np.argwhere((pixels == (COLOURS[view].numpy() * 255)).all(-1)) for view in range(number)
    ]
    return [(p.mean(0) - (ring.height - 1) / 2).round().tolist() for p in places], places


def test_each_view_stands_at_its_camera():
    """Seen from above: -90 degrees below, 0 right, 90 above, 180 left."""
    ring = camera_ring(views(4), [-90.0, 0.0, 90.0, 180.0], scale=2)
    (front, right, back, left), places = middles(ring, 4)

    assert front[0] > 20
    assert abs(front[1]) <= 1
    assert right[1] > 20
    assert left[1] < -20
    assert back[0] < -20
    assert [len(place) for place in places] == [16 * 16] * 4  # none covers another


@pytest.mark.parametrize("azimuths", [[0.0], [0.0, 10.0], [0.0, 30.0, 60.0, 350.0]])
def test_no_view_covers_another(azimuths):
    """However near the cameras."""
    number = len(azimuths)
    _, places = middles(camera_ring(views(number), azimuths), number)

    assert [len(place) for place in places] == [64] * number


def test_cameras_must_be_one_per_view():
    """And there must be one."""
    with pytest.raises(ValueError, match="one angle per view, 2; got 3"):
        camera_ring(views(2), [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="at least one view"):
        camera_ring(torch.zeros(0, 3, 8, 8), [])
