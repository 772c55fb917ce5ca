"""`diffusion.precision`: oracle, laws, errors."""

import pytest
import torch

from mvczigal_ref.diffusion.precision import (
    per_latent,
    require_choice,
    require_full_dtype,
    require_full_precision,
    require_positive,
    widest_dtype,
    working_dtype,
)

HALF = [torch.float16, torch.bfloat16]
FULL = [torch.float32, torch.float64]


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("left", FULL)
@pytest.mark.parametrize("right", FULL)
def test_working_dtype_is_what_torch_promotes_to(left, right):
    """The wider one wins, in either place."""
    one = torch.zeros(1, 1, 1)

    assert working_dtype(a=one.to(left), b=one.to(right)) == torch.promote_types(left, right)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FULL)
def test_per_latent_appends_three_axes_and_keeps_the_numbers(dtype):
    """Any number of leading axes, none included."""
    for shape in [(), (2,), (2, 3)]:
        value = torch.rand(shape, dtype=torch.float64)
        spread = per_latent(value, dtype)

        assert spread.dtype == dtype
        assert spread.shape == (*shape, 1, 1, 1)
        assert torch.equal(spread.reshape(shape), value.to(dtype))


@pytest.mark.parametrize("dtype", FULL)
def test_full_precision_passes(dtype):
    """fp32 and fp64 are both served, together too."""
    require_full_dtype("dtype", dtype)
    require_full_precision(a=torch.zeros(1, dtype=dtype), b=torch.zeros(1))


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*HALF, torch.int64])
def test_a_narrow_tensor_is_refused_by_its_name(dtype):
    """The message says the rule, the dtype and the remedy, whichever place the tensor is in."""
    narrow = torch.zeros(1, dtype=dtype)
    rule = rf"`late` must be float32 or float64; got {dtype}\. Call it with `late\.float\(\)`"
    with pytest.raises(ValueError, match=rule):
        require_full_precision(early=torch.zeros(1), late=narrow)
    with pytest.raises(ValueError, match=rule):
        working_dtype(late=narrow, early=torch.zeros(1))


@pytest.mark.parametrize("dtype", HALF)
def test_a_narrow_dtype_is_refused_by_its_name(dtype):
    """Before any tensor is made in it."""
    with pytest.raises(ValueError, match=rf"`dtype` must be .*; got {dtype}"):
        require_full_dtype("dtype", dtype)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_number_that_is_not_positive_and_finite_is_refused_by_its_name(bad):
    """NaN compares false, so it is refused too; whichever place it is in."""
    require_positive(early=1e-300, late=1e300)
    with pytest.raises(ValueError, match=rf"`late` must be positive and finite; got {bad}"):
        require_positive(early=1.0, late=bad)


def test_an_unknown_word_is_refused_with_the_known_ones():
    """The reader sees what to write instead."""
    require_choice("mode", "b", ("a", "b"))
    with pytest.raises(ValueError, match=r"`mode` must be one of \('a', 'b'\); got 'c'"):
        require_choice("mode", "c", ("a", "b"))


# -- devices -----------------------------------------------------------------------------


def test_the_widest_dtype_is_what_the_device_takes(monkeypatch):
    """Doubles where there are some; a device that refuses them, as MPS does, has floats."""
    assert widest_dtype(torch.device("cpu")) == torch.float64

    def refuse(*_, **__):
        raise TypeError

    monkeypatch.setattr(torch, "empty", refuse)
    assert widest_dtype.__wrapped__(torch.device("meta")) == torch.float32
