"""`spacing`: oracle, errors."""

import inspect

import pytest
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.spacing import SPACINGS, spaced_timesteps

# -- oracle: diffusers' scheduler ---------------------------------------------------------


@given(st.sampled_from(SPACINGS), st.integers(1, 400), st.sampled_from([1000, 600, 997]))
def test_the_grid_is_diffusers_own(spacing, num_steps, total):
    """To the timestep, ties and all; a grid of another length there is refused."""
    theirs = DDIMScheduler(num_train_timesteps=total, timestep_spacing=spacing)
    theirs.set_timesteps(num_steps)
    if len(theirs.timesteps) != num_steps:
        with pytest.raises(ValueError, match=f"gives {num_steps + 1} in diffusers"):
            spaced_timesteps(num_steps, spacing, num_train_timesteps=total)
        return
    ours = spaced_timesteps(num_steps, spacing, num_train_timesteps=total, steps_offset=0)
    assert ours.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("num_steps", [1, 2, 48, 61, 96, 112, 176, 208])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ends_and_ties_are_diffusers_own(spacing, num_steps):
    """One step, and numbers of steps at which a timestep lies half-way between two."""
    test_the_grid_is_diffusers_own.hypothesis.inner_test(spacing, num_steps, 1000)


# -- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, "karras"), "`spacing` must be .* got 'karras'"),
        ((0, "trailing"), "`num_steps` must be in 1..1000, .* got 0"),
        ((1001, "linspace"), "`num_steps` must be in 1..1000, .* got 1001"),
    ],
)
def test_unfit_arguments_are_refused(arguments, message):
    """By name."""
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(spaced_timesteps)(*arguments)
