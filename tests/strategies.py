"""What Hypothesis draws: one file, so that every test means the same by a latent or a level."""

import random

import torch
from hypothesis import strategies as st

from mvczigal_ref.cameras import OrthographicRig

BATCH_SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
"""Leading axes of latents: none, rows, objects and views, steps and objects and views."""

PREDICTION_TYPES = st.sampled_from(["epsilon", "v_prediction", "sample"])


def randn(*shape: int, seed: int = 0, **how):
    """Draw standard-normal numbers that are the same in every run and order of tests."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **how)


@st.composite
def latents(draw, count: int):
    """Draw ``count`` standard-normal float64 latents of one shape, with any leading axes."""
    shape = (*draw(BATCH_SHAPES), *draw(st.tuples(*[st.integers(1, 3)] * 3)))
    return tuple(randn(count, *shape, seed=draw(st.integers(0, 2**31)), dtype=torch.float64))


@st.composite
def level_pairs(draw):
    """Draw two signal shares, the noisier first, well apart."""
    noisy = draw(st.floats(0.001, 0.9))
    gap = draw(st.floats(0.05, 0.95))
    return noisy, noisy + gap * (0.999 - noisy)


@st.composite
def levels_of(draw, latent: torch.Tensor):
    """Draw a pair of signal shares and a timestep for every latent of a batch."""
    batch = latent.shape[:-3]
    count = batch.numel()
    pairs = draw(st.lists(level_pairs(), min_size=count, max_size=count))
    timesteps = draw(st.lists(st.integers(1, 999), min_size=count, max_size=count))
    noisy, clean = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    return noisy.reshape(batch), clean.reshape(batch), torch.tensor(timesteps).reshape(batch)


@st.composite
def steps(draw):
    """Draw ``(output, latent, noisy level, clean level, timestep)`` for a batch of any shape."""
    output, latent = draw(latents(2))
    return output, latent, *draw(levels_of(latent))


@st.composite
def rigs(draw, max_elevation: float = 90.0):
    """Draw one to five orthographic cameras."""
    count = draw(st.integers(1, 5))

    def numbers(low: float, high: float):
        return tuple(draw(st.lists(st.floats(low, high), min_size=count, max_size=count)))

    near = draw(st.floats(0.01, 1.0))
    fields = {
        "azimuth_deg": numbers(-360.0, 360.0),
        "elevation_deg": numbers(-max_elevation, max_elevation),
        "distance": numbers(0.1, 10.0),
        "half_width": draw(st.floats(0.1, 5.0)),
        "near": near,
        "far": near + draw(st.floats(0.5, 100.0)),
    }
    # The type checker looks at one random entry of a tuple, which Hypothesis forbids while drawing.
    state = random.getstate()
    rig = OrthographicRig(**fields)
    random.setstate(state)
    return rig
