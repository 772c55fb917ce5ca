"""The pair's regression: oracle, laws, gradients, golden values, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mvczigal_ref.objective import reward_difference_gradients, reward_difference_loss
from tests.golden import constants, tensors
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import same_shape

CLIP = st.floats(1e-3, 3.0)
TEMPERATURE = st.floats(0.1, 10.0)
ARMS = ("log_ratio_zigzag", "log_ratio_standard", "advantage_gap")


def flat(*tensors):
    """Walk some tensors together, as floats."""
    return list(zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True))


def clip(value, bound):
    """Clamp one float."""
    return max(-bound, min(bound, value))


# -- oracle --------------------------------------------------------------------------------


@given(same_shape(3), CLIP, TEMPERATURE)
def test_loss_is_the_mean_of_the_worse_squared_error(arms, bound, eta):
    """Whatever the shape, each element is regressed alone."""
    loss, _ = reward_difference_loss(*arms, clip_range=bound, temperature=eta)
    worse = [
        max(((z - s) / eta - a) ** 2, ((clip(z, bound) - clip(s, bound)) / eta - a) ** 2)
        for z, s, a in flat(*arms)
    ]

    assert loss.shape == ()
    assert loss.item() == pytest.approx(math.fsum(worse) / len(worse), rel=1e-12)


@given(same_shape(3), CLIP)
def test_diagnostics_count_both_arms_and_both_signs(arms, bound):
    """The mean square is halved; a ratio is counted when it lies strictly outside."""
    _, stats = reward_difference_loss(*arms, clip_range=bound)
    both = [ratio for pair in flat(*arms[:2]) for ratio in pair]

    assert stats.approx_kl.item() == pytest.approx(
        math.fsum(x * x for x in both) / len(both) / 2, rel=1e-12
    )
    assert stats.clip_fraction.item() == pytest.approx(
        sum(abs(x) > bound for x in both) / len(both), rel=1e-12
    )


@given(same_shape(3), CLIP, TEMPERATURE)
def test_derivatives_follow_the_chosen_error(arms, bound, eta):
    """Where the clipped error is larger, an arm beyond the bound gets no derivative."""
    gradients = reward_difference_gradients(*arms, clip_range=bound, temperature=eta)
    count = arms[0].numel()
    for (z, s, a), by_zigzag, by_standard in zip(
        flat(*arms),
        gradients.zigzag.flatten().tolist(),
        gradients.standard.flatten().tolist(),
        strict=True,
    ):
        error, near = (z - s) / eta - a, (clip(z, bound) - clip(s, bound)) / eta - a
        # Where clipping changes the pair but not its error lies a kink, with two derivatives.
        if abs(error**2 - near**2) < 1e-9 and max(abs(z), abs(s)) > bound:
            continue
        far = near**2 > error**2
        slope = 2.0 * (near if far else error) / (eta * count)
        assert by_zigzag == pytest.approx(0.0 if far and abs(z) > bound else slope, rel=1e-12)
        assert by_standard == pytest.approx(0.0 if far and abs(s) > bound else -slope, rel=1e-12)


# -- laws ----------------------------------------------------------------------------------


@given(same_shape(3), CLIP, TEMPERATURE)
def test_relabelling_the_arms_changes_nothing(arms, bound, eta):
    """Which arm is called zigzag is a name."""
    z, s, a = arms
    one = reward_difference_gradients(z, s, a, clip_range=bound, temperature=eta)
    two = reward_difference_gradients(s, z, -a, clip_range=bound, temperature=eta)

    assert torch.equal(one.loss, two.loss)
    assert torch.equal(one.zigzag, two.standard)
    assert torch.equal(one.standard, two.zigzag)


@given(same_shape(1), CLIP, TEMPERATURE)
def test_on_policy_loss_is_the_mean_squared_gap(gaps, bound, eta):
    """Where the policy made the samples, nothing has moved and nothing is clipped."""
    (gap,) = gaps
    zero = torch.zeros_like(gap)
    loss, stats = reward_difference_loss(zero, zero, gap, clip_range=bound, temperature=eta)

    assert loss.item() == pytest.approx(gap.square().mean().item(), rel=1e-12)
    assert stats.approx_kl.item() == 0.0
    assert stats.clip_fraction.item() == 0.0


@given(same_shape(3), CLIP, TEMPERATURE)
def test_clipping_never_flatters(arms, bound, eta):
    """The clipped loss is at least the unclipped one."""
    clipped, _ = reward_difference_loss(*arms, clip_range=bound, temperature=eta)
    free, _ = reward_difference_loss(*arms, clip_range=math.inf, temperature=eta)

    assert clipped >= free


@given(same_shape(3), TEMPERATURE)
def test_an_infinite_range_is_the_plain_regression(arms, eta):
    """The paper's form: no ratio is clipped, none counted."""
    z, s, a = arms
    loss, stats = reward_difference_loss(z, s, a, clip_range=math.inf, temperature=eta)

    assert loss.item() == pytest.approx((((z - s) / eta - a) ** 2).mean().item(), rel=1e-12)
    assert stats.clip_fraction.item() == 0.0


@given(same_shape(3), CLIP, TEMPERATURE)
def test_temperature_is_the_unit_of_the_log_ratios(arms, bound, eta):
    """Dividing ratios and range by it is the same as setting it."""
    z, s, a = arms
    set_to, _ = reward_difference_loss(z, s, a, clip_range=bound, temperature=eta)
    divided, _ = reward_difference_loss(z / eta, s / eta, a, clip_range=bound / eta)

    assert set_to.item() == pytest.approx(divided.item(), rel=1e-9, abs=1e-12)


@given(same_shape(2), TEMPERATURE)
def test_a_gap_that_the_ratios_explain_costs_nothing(arms, eta):
    """The minimum is where the scaled log-ratio gap equals the advantage gap."""
    z, s = arms
    loss, _ = reward_difference_loss(z, s, (z - s) / eta, clip_range=math.inf, temperature=eta)

    assert loss.item() == 0.0


@given(same_shape(3), CLIP)
def test_repeating_the_batch_changes_nothing(arms, bound):
    """Loss and diagnostics are means, so they do not grow with the batch."""
    once, stats_once = reward_difference_loss(*arms, clip_range=bound)
    twice, stats_twice = reward_difference_loss(
        *(torch.stack([x, x]) for x in arms), clip_range=bound
    )

    assert twice.item() == pytest.approx(once.item(), rel=1e-12)
    for name in ("approx_kl", "clip_fraction"):
        assert getattr(stats_twice, name).item() == pytest.approx(
            getattr(stats_once, name).item(), rel=1e-12
        )


@pytest.mark.parametrize("place", range(3))
def test_a_nan_is_passed_on(place):
    """The maximum does not hide a broken number from whoever looks at the loss."""
    arms = [torch.zeros(2) for _ in ARMS]
    arms[place][1] = math.nan
    loss, _ = reward_difference_loss(*arms, clip_range=0.1)

    assert loss.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_the_inputs(dtype):
    """Nothing is widened or narrowed on the way."""
    gradients = reward_difference_gradients(*(torch.ones(2, dtype=dtype),) * 3, clip_range=0.1)
    loss, stats, zigzag, standard = gradients

    assert {x.dtype for x in (loss, stats.approx_kl, stats.clip_fraction, zigzag, standard)} == {
        dtype
    }


# -- gradients -----------------------------------------------------------------------------


@given(same_shape(3), CLIP, TEMPERATURE)
def test_derivatives_from_values_equal_those_through_a_graph(arms, bound, eta):
    """Both ways are one function."""
    z, s, a = arms[0].requires_grad_(), arms[1].requires_grad_(), arms[2]
    loss, stats = reward_difference_loss(z, s, a, clip_range=bound, temperature=eta)
    loss.backward()
    gradients = reward_difference_gradients(z, s, a, clip_range=bound, temperature=eta)

    assert torch.equal(gradients.loss, loss)
    assert torch.equal(gradients.zigzag, z.grad)
    assert torch.equal(gradients.standard, s.grad)
    assert torch.equal(gradients.stats.approx_kl, stats.approx_kl)


@given(same_shape(1, low=0.1), TEMPERATURE)
def test_on_policy_derivative_is_the_scaled_gap(gaps, eta):
    """Minus two gaps over temperature and count: the better arm becomes likelier."""
    (gap,) = gaps
    zero = torch.zeros_like(gap)
    gradients = reward_difference_gradients(zero, zero, gap, clip_range=1e-4, temperature=eta)

    torch.testing.assert_close(
        gradients.zigzag, -2.0 * gap / (eta * gap.numel()), rtol=1e-12, atol=0
    )
    assert torch.equal(gradients.standard, -gradients.zigzag)


def test_derivatives_agree_with_finite_differences():
    """Clipped and free elements, both arms."""
    z = torch.tensor([0.05, 0.30, -0.20, 0.02], dtype=torch.float64, requires_grad=True)
    s = torch.tensor([-0.02, 0.01, 0.40, -0.50], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([1.0, 0.1, 2.0, -3.0], dtype=torch.float64)

    assert torch.autograd.gradcheck(
        lambda x, y: reward_difference_loss(x, y, a, clip_range=0.1, temperature=0.7)[0], (z, s)
    )


def test_no_gradient_reaches_the_gap_or_the_diagnostics():
    """Only the policy learns, and what is logged keeps no graph alive."""
    z, s, a = (torch.tensor([x], requires_grad=True) for x in (0.3, -0.2, 1.0))
    loss, stats = reward_difference_loss(z, s, a, clip_range=0.25)
    loss.backward()

    assert a.grad is None
    assert not stats.approx_kl.requires_grad
    assert not stats.clip_fraction.requires_grad


def test_gradients_are_detached_and_need_no_grad_mode():
    """They are made from values, so neither a graph nor grad mode is asked for."""
    arms = [torch.tensor([x], requires_grad=True) for x in (0.3, -0.2, 1.0)]
    with torch.no_grad():
        gradients = reward_difference_gradients(*arms, clip_range=0.25)

    assert not any(x.requires_grad for x in (gradients.loss, gradients.zigzag, gradients.standard))
    assert all(x.grad is None for x in arms)


def test_one_arm_after_the_other_equals_both_at_once():
    """Two small backwards, never two graphs, give the parameter gradient of one big one."""
    weight = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    inputs = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    gap = torch.tensor(0.8, dtype=torch.float64)

    def log_ratio(arm):
        return (inputs[arm] * weight).sum().tanh()

    settings = {"clip_range": 0.2, "temperature": 0.5}
    loss, _ = reward_difference_loss(log_ratio(0), log_ratio(1), gap, **settings)
    (together,) = torch.autograd.grad(loss, weight)
    with torch.no_grad():
        values = log_ratio(0), log_ratio(1)
    gradients = reward_difference_gradients(*values, gap, **settings)
    log_ratio(0).backward(gradients.zigzag)
    log_ratio(1).backward(gradients.standard)

    torch.testing.assert_close(weight.grad, together, rtol=1e-12, atol=0)


# -- golden --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", "abc")
def test_released_trainer(case, dtype):
    """Loss, diagnostics and both gradients; the recorded gap is standard minus zigzag."""
    golden = tensors("objective", f"mvzigal_loss_{case}")
    made_with = constants("objective", f"mvzigal_loss_{case}")
    zigzag = (golden["log_prob2"] - golden["old_log_prob2"]).to(dtype)
    standard = (golden["log_prob1"] - golden["old_log_prob1"]).to(dtype)
    gradients = reward_difference_gradients(
        zigzag, standard, -golden["advantage_diff"].to(dtype), clip_range=made_with["clip_range"]
    )
    # In fp32 a gap and a difference of log-ratios cancel in places: errors are of the largest.
    tolerance = (
        {"rtol": 1e-12, "atol": 1e-15} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 2e-6}
    )

    def close(actual, expected):
        torch.testing.assert_close(actual, expected.to(dtype).reshape(actual.shape), **tolerance)

    close(gradients.loss, golden["loss"])
    close(gradients.loss, golden["loss_per_view"].mean())
    close(gradients.zigzag, golden["grad_log_prob2"])
    close(gradients.standard, golden["grad_log_prob1"])
    torch.testing.assert_close(
        gradients.stats.approx_kl,
        golden["approx_kl"][0].to(dtype),
        rtol=1e-12 if dtype == torch.float64 else 2e-6,
        atol=0,
    )
    # Recorded in fp32.
    assert gradients.stats.clip_fraction.item() == pytest.approx(
        golden["clipfrac"].item(), rel=2e-6
    )


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [reward_difference_loss, reward_difference_gradients])
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("clip_range", 0.0),
        ("clip_range", -1.0),
        ("clip_range", math.nan),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
    ],
)
def test_refuses_a_setting_out_of_range(function, name, bad):
    """A range may be infinite, a temperature may not; NaN is neither."""
    zero, finite = torch.zeros(1), {"temperature": " and finite"}.get(name, "")
    with pytest.raises(ValueError, match=rf"`{name}` must be positive{finite}; got {bad}"):
        function(zero, zero, zero, **{"clip_range": 0.1, name: bad})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", range(3))
def test_refuses_half_precision(place, dtype):
    """Rounding alone would exceed the clip range."""
    arms = [torch.zeros(2) for _ in ARMS]
    arms[place] = arms[place].to(dtype)
    with pytest.raises(ValueError, match=rf"`{ARMS[place]}` must be float32 or float64"):
        reward_difference_loss(*arms, clip_range=0.1)


@pytest.mark.parametrize("place", [1, 2])
def test_refuses_arms_that_would_broadcast(place):
    """With and without the annotations' own check."""
    arms = [torch.zeros(2, 3) for _ in ARMS]
    arms[place] = torch.zeros(3)
    with pytest.raises(TypeCheckError):
        reward_difference_loss(*arms, clip_range=0.1)
    with without_shape_checks(), pytest.raises(ValueError, match=rf"`{ARMS[place]}` must have the"):
        reward_difference_loss(*arms, clip_range=0.1)


@pytest.mark.parametrize("function", [reward_difference_loss, reward_difference_gradients])
def test_refuses_a_loss_of_nothing(function):
    """Its mean would be NaN."""
    empty = torch.zeros(0, 3)
    with pytest.raises(ValueError, match=r"`log_ratio_zigzag` must not be empty; got .*\(0, 3\)"):
        function(empty, empty, empty, clip_range=0.1)


@pytest.mark.parametrize("inside", [False, True])
def test_values_of_inference_mode_are_read(inside):
    """Values alone are asked for, so that a replay without gradient may give them in any mode."""
    with torch.inference_mode():
        arms = [torch.tensor([0.3, -0.2]), torch.tensor([0.1, 0.1]), torch.tensor([1.0, -1.0])]
    plain = [arm.clone() for arm in arms]
    expected = reward_difference_gradients(*plain, clip_range=0.2)
    with torch.inference_mode(inside):
        gradients = reward_difference_gradients(*arms, clip_range=0.2)

    for name in ("loss", "zigzag", "standard"):
        assert torch.equal(getattr(gradients, name), getattr(expected, name))
        assert not getattr(gradients, name).is_inference()
