"""What flow policies share: oracle, laws, errors."""

from dataclasses import replace

import pytest
import torch

from mvczigal_ref.policy import Policy
from tests.compare import FP64, assert_equal_to
from tests.unit.models.flow_small import (
    PROMPTS,
    TIMES,
    conditioning,
    fresh_flux,
    latents,
    predict,
    small_flux,
    small_sd3,
)

SMALL = pytest.mark.parametrize("small", [small_flux, small_sd3])


# -- oracle: two plain predictions, mixed by hand ----------------------------------------


@SMALL
@pytest.mark.parametrize("w", [1.5, 7.0])
def test_guidance_is_the_formula(small, w):
    """v0 + w (vc - v0), v0 predicted under the negative prompt."""
    c = small()
    positive = predict(c.policy, conditioning(c))
    negative = predict(c.policy, c.build_conditioning(["a black can"] * 2))
    found = predict(c.policy, conditioning(c), guidance_scale=w)

    assert_equal_to(found, (1 - w) * negative + w * positive, 100 * FP64, axes=3)
    assert (found - positive).abs().max() > 1e-3


# -- laws --------------------------------------------------------------------------------


@SMALL
def test_is_a_policy(small):
    """And has no cameras: their scale does nothing."""
    policy = small().policy
    given = conditioning(small())
    assert isinstance(policy, Policy)
    with torch.no_grad():
        y = policy(latents(), TIMES, given, guidance_scale=1.0, camera_scale=0.0)
    assert torch.equal(y, predict(policy, given))


@SMALL
@pytest.mark.parametrize("w", [0.0, 1.0])
def test_no_guidance_needs_no_negative_prompt(small, w):
    """The plain conditional prediction, from one row a call."""
    c, rows = small(), []
    hook = c.policy.transformer.register_forward_hook(
        lambda _module, _args, output: rows.append(output[0].shape[0])
    )
    y = predict(c.policy, c.build_conditioning(PROMPTS), guidance_scale=w)
    hook.remove()

    assert rows == [2]
    assert torch.equal(y, predict(c.policy, conditioning(c)))


@SMALL
@pytest.mark.parametrize("w", [1.0, 4.5])
@torch.no_grad()
def test_one_time_for_all_rows_or_one_each(small, w):
    """Whole numbers, numbers, one or many: the same times give the same velocity."""
    c, z = small(), latents()
    record = conditioning(c)
    times = (
        torch.tensor(250),
        torch.tensor(250.0),
        torch.tensor([250]),
        torch.tensor([250.0, 250.0], dtype=torch.float64),
    )
    first, *others = (c.policy(z, t, record, guidance_scale=w) for t in times)

    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(c.policy(z, torch.tensor(251.0), record, guidance_scale=w), first)


@SMALL
def test_rows_do_not_see_each_other(small):
    """Each predicts what it predicts alone, with its own prompt and time."""
    c = small()
    record = conditioning(c)
    together = predict(c.policy, record, guidance_scale=3.0)
    with torch.no_grad():
        for row in range(2):
            one = slice(row, row + 1)
            alone = c.policy(latents()[one], TIMES[one], record.objects(one), guidance_scale=3.0)
            assert_equal_to(together[one], alone, 100 * FP64, axes=3)


def test_a_half_precision_network_gives_what_it_was_given():
    """Only the network is narrow: latents and guidance stay in the caller's type."""
    c = fresh_flux().to(dtype=torch.bfloat16)
    record = conditioning(c)
    assert c.policy.dtype == torch.bfloat16
    with torch.no_grad():
        y = c.policy(latents().float(), TIMES.float(), record, guidance_scale=3.0)
    assert y.dtype == torch.float32
    # Three times a bf16 number minus twice another is no bf16 number.
    assert not torch.equal(y, y.to(torch.bfloat16).float())
    wide = predict(small_flux().policy, conditioning(small_flux()), guidance_scale=3.0)
    assert (y - wide).abs().max() < 0.1 * wide.abs().max()


def test_knows_where_it_is():
    """The transformer's device and type."""
    assert small_sd3().policy.device == torch.device("cpu")
    assert small_sd3().policy.dtype == torch.float64
    assert not small_sd3().policy.embeds_guidance


# -- errors ------------------------------------------------------------------------------


@SMALL
def test_rejects_other_rows(small):
    """One row an object."""
    with pytest.raises(ValueError, match=r"one row per object, 2; got 3"):
        small().policy(latents(3), TIMES[:1], conditioning(small()), guidance_scale=1.0)


@SMALL
@pytest.mark.parametrize(
    "cameras", [{"num_views": 2}, {"camera_features": (torch.zeros(1, 4, 4, 4),)}]
)
def test_rejects_cameras(small, cameras):
    """They would be ignored."""
    given = replace(conditioning(small()), **cameras)
    with pytest.raises(ValueError, match="`conditioning` must have one view and no cameras"):
        small().policy(latents(), TIMES, given, guidance_scale=1.0)


@SMALL
def test_rejects_guidance_away_from_nothing(small):
    """A negative prompt is needed, if only the empty one."""
    c = small()
    with pytest.raises(ValueError, match=r"`conditioning\.negative_prompt_embeds` must be given"):
        predict(c.policy, c.build_conditioning(PROMPTS), guidance_scale=4.5)
