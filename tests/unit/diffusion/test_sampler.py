"""`diffusion.sampler`, the two samplers and their `grid`: oracle, laws, golden values, errors."""

import inspect
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch.utils._python_dispatch import TorchDispatchMode

from mvczigal_ref.diffusion.ddim import DdimSampler, ddim_invert, ddim_transition
from mvczigal_ref.diffusion.euler_ancestral import EulerAncestralSampler
from mvczigal_ref.diffusion.gaussian import joint_log_prob, kl_divergence, log_prob, sample
from mvczigal_ref.diffusion.guidance import classifier_free_guidance, guidance_embedding
from mvczigal_ref.diffusion.lcm import LcmSampler, lcm_invert, lcm_transition
from mvczigal_ref.diffusion.sampler import Transition
from mvczigal_ref.diffusion.schedule import (
    ddim_timesteps,
    lcm_timesteps,
    scaled_linear_alpha_bar,
    shift_snr,
)
from mvczigal_ref.diffusion.tcd import TcdSampler
from tests import golden
from tests.compare import FP64, assert_equal_to
from tests.strategies import PREDICTION_TYPES, randn
from tests.unit.diffusion.sampler_laws import assert_steps_are_alone

ALPHA_BAR = shift_snr(scaled_linear_alpha_bar(), 8.0)
# The last step of these ends at the image and draws nothing.
ENDING = [TcdSampler, EulerAncestralSampler]
SAMPLERS = [LcmSampler, DdimSampler, *ENDING]


def fields(step):
    """Take a transition apart."""
    return step.mean, step.std, step.denoised


# -- oracle ------------------------------------------------------------------------------


@given(st.integers(1, 50), PREDICTION_TYPES, st.floats(0.1, 2.0), st.floats(0.001, 20.0), st.data())
def test_lcm_sampler_is_the_step_function_at_the_grid_s_levels(n, kind, sigma, scaling, data):
    """Down to the next timestep of the grid, the lowest to itself; and back up."""
    sampler = LcmSampler.create(
        num_steps=n,
        alpha_bar=ALPHA_BAR,
        prediction_type=kind,
        sigma_data=sigma,
        timestep_scaling=scaling,
    )
    grid = lcm_timesteps(n).tolist()
    step = data.draw(st.integers(0, n - 1))
    t, s = grid[step], grid[min(step + 1, n - 1)]
    output, latent = randn(2, 2, 3, 2, 2, dtype=torch.float64)
    levels = {
        "alpha_bar_t": ALPHA_BAR[t],
        "alpha_bar_prev": ALPHA_BAR[s],
        "prediction_type": kind,
        "sigma_data": sigma,
        "timestep_scaling": scaling,
    }
    down = lcm_transition(output, latent, timestep=torch.tensor(t), **levels)
    up = lcm_invert(output, latent, timestep_prev=torch.tensor(s), **levels)

    assert sampler.timesteps.tolist() == grid
    for mine, theirs in zip(
        fields(sampler.transition(output, latent, step)), fields(down), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert torch.equal(sampler.invert(output, latent, step), up)


@given(st.integers(1, 100), PREDICTION_TYPES, st.floats(0.0, 1.0), st.integers(1, 9), st.data())
def test_ddim_sampler_is_the_step_function_at_the_grid_s_levels(n, kind, eta, offset, data):
    """One stride down, below timestep 0 to timestep 0; and back up."""
    sampler = DdimSampler.create(
        num_steps=n, alpha_bar=ALPHA_BAR, prediction_type=kind, eta=eta, steps_offset=offset
    )
    grid = ddim_timesteps(n, steps_offset=offset).tolist()
    step = data.draw(st.integers(0, n - 1))
    t, s = grid[step], max(grid[step] - 1000 // n, 0)
    output, latent = randn(2, 2, 3, 2, 2, dtype=torch.float64)
    levels = {
        "alpha_bar_t": ALPHA_BAR[t],
        "alpha_bar_prev": ALPHA_BAR[s],
        "prediction_type": kind,
    }
    down = ddim_transition(output, latent, eta=eta, **levels)

    assert sampler.timesteps.tolist() == grid
    for mine, theirs in zip(
        fields(sampler.transition(output, latent, step)), fields(down), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert torch.equal(sampler.invert(output, latent, step), ddim_invert(output, latent, **levels))


def test_a_network_distilled_on_another_grid_samples_on_that_one():
    """20 distillation steps of 50 timesteps: the first, the seventh and the fourteenth."""
    sampler = LcmSampler.create(num_steps=3, alpha_bar=ALPHA_BAR, original_num_steps=20)

    assert sampler.timesteps.tolist() == [999, 699, 349]


def test_defaults_are_the_published_settings():
    """Noise prediction, 50 distillation steps, boundary weights 0.5 and 10, full eta, offset 1."""
    lcm = LcmSampler.create(num_steps=4, alpha_bar=ALPHA_BAR)
    ddim = DdimSampler.create(num_steps=4, alpha_bar=ALPHA_BAR)

    assert lcm.timesteps.tolist() == [999, 759, 499, 259]
    assert (lcm.prediction_type, lcm.sigma_data, lcm.timestep_scaling) == ("epsilon", 0.5, 10.0)
    assert ddim.timesteps.tolist() == [751, 501, 251, 1]
    assert (ddim.prediction_type, ddim.eta) == ("epsilon", 1.0)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler_type", SAMPLERS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 2, 3), (1, 3), (2, 1)])
def test_a_tensor_of_steps_is_every_step_by_itself(sampler_type, shape):
    """One call over steps, objects and views gives the bits of one call per latent."""
    assert_steps_are_alone(sampler_type.create(num_steps=4, alpha_bar=ALPHA_BAR), shape)


@pytest.mark.parametrize("sampler_type", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 4, 8, 16])
def test_levels_fall_and_every_step_has_spread(sampler_type, num_steps):
    """Each step leads to the level where the next one starts."""
    sampler = sampler_type.create(num_steps=num_steps, alpha_bar=ALPHA_BAR)
    zero = torch.zeros(num_steps, 1, 1, 1, dtype=torch.float64)

    assert sampler.num_steps == num_steps
    assert (sampler.timesteps.diff() < 0).all()
    assert (sampler.alpha_bar_t.diff() > 0).all()
    assert torch.equal(sampler.alpha_bar_prev[:-1], sampler.alpha_bar_t[1:])
    std = sampler.transition(zero, zero, torch.arange(num_steps)).std
    assert (std > 0).tolist() == [True] * (num_steps - 1) + [sampler_type not in ENDING]


@pytest.mark.parametrize("sampler_type", SAMPLERS)
def test_the_image_does_not_depend_on_the_last_action(sampler_type):
    """All decode the denoised latent, which is there before the action is drawn."""
    sampler = sampler_type.create(num_steps=2, alpha_bar=ALPHA_BAR)

    assert sampler.last_action_is_image_independent


@pytest.mark.parametrize("sampler_type", SAMPLERS)
def test_to_moves_and_narrows_the_tables_alone(sampler_type):
    """Integers stay integers, settings stay, and the original is untouched."""
    sampler = sampler_type.create(num_steps=4, alpha_bar=ALPHA_BAR, prediction_type="v_prediction")
    narrow, meta = sampler.to(dtype=torch.float32), sampler.to("meta")

    assert narrow.alpha_bar_t.dtype == narrow.alpha_bar_prev.dtype == torch.float32
    assert torch.equal(narrow.alpha_bar_t, sampler.alpha_bar_t.float())
    assert torch.equal(narrow.timesteps, sampler.timesteps)
    assert sampler.alpha_bar_t.dtype == meta.alpha_bar_t.dtype == torch.float64
    assert meta.timesteps.device == meta.alpha_bar_t.device == meta.alpha_bar_prev.device
    assert meta.alpha_bar_t.is_meta
    assert narrow.prediction_type == meta.prediction_type == "v_prediction"
    if sampler_type is LcmSampler:
        assert meta.timesteps_prev.is_meta


@pytest.mark.parametrize("sampler_type", SAMPLERS)
def test_the_step_runs_in_the_latent_s_dtype_whatever_the_tables_are(sampler_type):
    """fp64 tables cost nothing, and are rounded after their roots are taken."""
    sampler = sampler_type.create(num_steps=4, alpha_bar=ALPHA_BAR)
    output, latent = randn(2, 4, 2, 3, 3)
    step = sampler.transition(output, latent, torch.arange(4))
    wide = sampler.transition(output.double(), latent.double(), torch.arange(4))

    for narrow, exact in zip(fields(step), fields(wide), strict=True):
        assert narrow.dtype == torch.float32
        assert_equal_to(narrow, exact.float(), 2e-6, axes=3 if narrow.ndim > 3 else 0)
    assert sampler.invert(output, latent, 1).dtype == torch.float32


class OperatorCount(TorchDispatchMode):
    """Count the operators that reach the device."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler_type", SAMPLERS)
def test_no_loop_over_objects_views_or_steps(sampler_type):
    """A thousand latents take the operators of one."""
    sampler = sampler_type.create(num_steps=4, alpha_bar=ALPHA_BAR)
    counts = []
    for batch in [(1, 1, 1), (4, 25, 10)]:
        output, latent = randn(2, *batch, 2, 2, 2, dtype=torch.float64)
        step = (torch.arange(batch[0]) % 4)[:, None, None]
        with OperatorCount() as count:
            taken = sampler.transition(output, latent, step)
            action = sample(taken.mean, taken.std, output)
            score = log_prob(action, mean=taken.mean, std=taken.std, reduction="sum")
            joint_log_prob(score, reduction="sum")
            sampler.invert(output, action, step)
        counts.append(count.total)

    assert counts[0] == counts[1]


@pytest.mark.parametrize("sampler_type", SAMPLERS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_nothing_is_read_from_the_device_inside_a_step(sampler_type, kind, shape):
    """Meta tensors have no values: any read, even of a 0-d index, would raise."""
    if sampler_type is EulerAncestralSampler and kind == "sample":
        return  # refused: a sample says no direction at the clean end
    sampler = sampler_type.create(num_steps=4, alpha_bar=ALPHA_BAR, prediction_type=kind).to("meta")
    output, latent = torch.empty(2, 2, 3, 4, 5, 5, device="meta", requires_grad=True)
    for step in (torch.zeros(shape, dtype=torch.int64, device="meta"), 2):
        taken = sampler.transition(output, latent, step)
        action = sample(taken.mean, taken.std, latent)
        for reduction in ("mean", "sum", "none"):
            density = log_prob(action, mean=taken.mean, std=taken.std, reduction=reduction)
            distance = kl_divergence(
                mean_p=taken.mean,
                std_p=taken.std,
                mean_q=latent,
                std_q=taken.std,
                reduction=reduction,
            )
            assert (
                density.shape == distance.shape == (action.shape if reduction == "none" else (2, 3))
            )
        density.sum().backward(retain_graph=True)
        assert sampler.invert(output, latent, step).is_meta
    assert classifier_free_guidance(output, latent, guidance_scale=7.0).is_meta
    assert guidance_embedding(torch.empty(6, device="meta"), width=8).is_meta


def test_a_meta_tensor_does_refuse_to_be_read():
    """The test above can fail."""
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros((), dtype=torch.int64, device="meta").item()


@given(st.integers(1, 20), st.sampled_from(["mean", "sum", "none"]), st.floats(0.01, 1.0))
def test_a_log_density_of_ddim_is_that_of_its_transition(n, reduction, eta):
    """At every step, since every step draws noise."""
    sampler = DdimSampler.create(num_steps=n, alpha_bar=ALPHA_BAR, eta=eta)
    output, latent, action = randn(3, n, 1, 2, 2, dtype=torch.float64)
    steps = torch.arange(n)
    taken = sampler.transition(output, latent, steps)
    expected = log_prob(action, mean=taken.mean, std=taken.std, reduction=reduction)

    assert torch.equal(sampler.log_prob(action, taken, steps, reduction=reduction), expected)


@pytest.mark.parametrize("sampler_type", SAMPLERS)
def test_the_steps_that_have_a_density_are_those_that_draw_noise(sampler_type):
    """All of them, or all but the last, but none of DDIM at eta 0."""
    sampler = sampler_type.create(num_steps=4, alpha_bar=ALPHA_BAR)
    zero = torch.zeros(4, 1, 1, 1)
    still = DdimSampler.create(num_steps=4, alpha_bar=ALPHA_BAR, eta=0.0)

    assert sampler.num_density_steps == 4 - (sampler_type in ENDING)
    drawn = sampler.transition(zero, zero, torch.arange(4)).std > 0
    assert int(drawn.sum()) == sampler.num_density_steps
    assert still.num_density_steps == 0
    assert (still.transition(zero, zero, torch.arange(4)).std == 0).all()


# -- golden parity -----------------------------------------------------------------------


def built_for(name, reference):
    """Build the sampler that a golden file of steps was made with."""
    settings = golden.constants("diffusion", name)
    common = {
        "num_steps": settings["num_inference_steps"],
        "alpha_bar": reference["alphas_cumprod"],
        "prediction_type": settings["prediction_type"],
    }
    if name.startswith("lcm"):
        weights = {k: settings[k] for k in ("sigma_data", "timestep_scaling")}
        return LcmSampler.create(**common, **weights)
    return DdimSampler.create(**common, eta=settings.get("eta", 1.0))


DOWN = [n for n in golden.names("diffusion") if n.startswith(("lcm_step", "ddim_step"))]
DOWN.remove("lcm_step_dtypes")
UP = [n for n in golden.names("diffusion") if "_inverse_step_" in n]


@pytest.mark.parametrize("name", DOWN)
def test_golden_steps_on_the_sampler_s_own_grid(name):
    """The grid and its levels come from the schedule, no index from the file."""
    reference = golden.tensors("diffusion", name)
    sampler = built_for(name, reference)
    steps = torch.arange(sampler.num_steps)[:, None]
    taken = sampler.transition(reference["model_output"], reference["sample"], steps)
    score = log_prob(reference["prev_given"], mean=taken.mean, std=taken.std, reduction="mean")

    assert torch.equal(sampler.timesteps, reference["timesteps"])
    if name.startswith("lcm"):
        assert torch.equal(sampler.timesteps_prev, reference["prev_timestep"])
    assert_equal_to(
        sample(taken.mean, taken.std, reference["noise"]), reference["prev_drawn"], FP64, axes=3
    )
    assert_equal_to(score, reference["log_prob_given"], FP64)


@pytest.mark.parametrize("name", UP)
def test_golden_inversions_on_the_sampler_s_own_grid(name):
    """The file counts from the cleanest level, the sampler from the noisiest."""
    reference = golden.tensors("diffusion", name)
    sampler = built_for(name, reference)
    steps = torch.arange(sampler.num_steps).flip(0)[:, None]
    raised = sampler.invert(reference["model_output"], reference["sample"], steps)

    assert torch.equal(sampler.timesteps[steps[:, 0]], reference["timesteps"])
    assert_equal_to(raised, reference["next"], FP64, axes=3)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler_type", SAMPLERS)
@pytest.mark.parametrize("step", [-1, 4])
def test_an_int_outside_the_grid_is_refused(sampler_type, step):
    """A negative index would silently be the other end of the grid."""
    sampler = sampler_type.create(num_steps=4, alpha_bar=ALPHA_BAR)
    zero = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=rf"`step` must be in 0\.\.3.*got {step}"):
        sampler.transition(zero, zero, step)
    with pytest.raises(ValueError, match=rf"`step` must be in 0\.\.3.*got {step}"):
        sampler.invert(zero, zero, step)


@pytest.mark.parametrize("sampler_type", SAMPLERS)
@pytest.mark.parametrize(
    "bad",
    [
        torch.linspace(0.1, 0.9, 100),
        torch.linspace(1.0, 0.1, 100),
        torch.linspace(0.9, 0.0, 100),
        torch.full((100,), 0.5),
        torch.full((100,), torch.nan),
    ],
    ids=["rising", "starts at 1", "ends at 0", "constant", "NaN"],
)
def test_what_is_no_schedule_is_refused(sampler_type, bad):
    """Before a step could divide by zero."""
    with pytest.raises(ValueError, match=r"`alpha_bar` must be strictly decreasing in \(0, 1\)"):
        sampler_type.create(num_steps=2, alpha_bar=bad)


@pytest.mark.parametrize("sampler_type", SAMPLERS)
def test_half_precision_tables_are_refused(sampler_type):
    """When made, and when moved."""
    with pytest.raises(ValueError, match="`alpha_bar` must be float32 or float64"):
        sampler_type.create(num_steps=2, alpha_bar=ALPHA_BAR.bfloat16())
    with pytest.raises(ValueError, match=r"`dtype` must be .* got torch.float16"):
        sampler_type.create(num_steps=2, alpha_bar=ALPHA_BAR).to(dtype=torch.float16)


@pytest.mark.parametrize("step", [0, 3, torch.arange(2)])
def test_a_log_density_at_eta_zero_is_refused(step):
    """By the step's number, without reading a value; the released floor is named."""
    sampler = DdimSampler.create(num_steps=4, alpha_bar=ALPHA_BAR, eta=0.0)
    output, latent = randn(2, 2, 1, 2, 2, dtype=torch.float64)
    taken = sampler.transition(output, latent, step)
    with pytest.raises(ValueError, match=r"`step` must be below .* = 0; .*ETA_ZERO_VARIANCE"):
        sampler.log_prob(latent, taken, step, reduction="mean")


def test_ddim_refuses_a_last_step_without_spread():
    """Offset 0 ends at timestep 0 and stays there: its log-density would be NaN."""
    with pytest.raises(ValueError, match=r"`steps_offset` must be .* at index 3"):
        DdimSampler.create(num_steps=4, alpha_bar=ALPHA_BAR, steps_offset=0)
    deterministic = DdimSampler.create(num_steps=4, alpha_bar=ALPHA_BAR, steps_offset=0, eta=0.0)

    assert deterministic.timesteps[-1] == 0


@pytest.mark.parametrize(
    ("name", "bad"), [("eta", 1.5), ("eta", -1.0), ("prediction_type", "flow")]
)
def test_ddim_refuses_settings_where_it_is_made(name, bad):
    """Not only at the first step."""
    create = inspect.unwrap(DdimSampler.create.__func__)
    with pytest.raises(ValueError, match=f"`{name}` must be .*got '?{bad}"):
        create(DdimSampler, num_steps=4, alpha_bar=ALPHA_BAR, **{name: bad})


@pytest.mark.parametrize(
    ("name", "bad"), [("sigma_data", 0.0), ("timestep_scaling", -1.0), ("prediction_type", "flow")]
)
def test_lcm_refuses_settings_where_it_is_made(name, bad):
    """Not only at the first step."""
    create = inspect.unwrap(LcmSampler.create.__func__)
    with pytest.raises(ValueError, match=f"`{name}` must be .*got '?{bad}"):
        create(LcmSampler, num_steps=4, alpha_bar=ALPHA_BAR, **{name: bad})


# -- the record of a step ----------------------------------------------------------------


def test_one_spread_may_serve_many_latents():
    """Its shape broadcasts to the leading axes."""
    latent = torch.zeros(4, 3, 2, 5, 5)
    step = Transition(mean=latent, std=torch.ones(4, 1), denoised=latent)

    assert step.std.shape == (4, 1)


def test_it_is_frozen():
    """A stage hands it on, and nobody writes into it."""
    latent = torch.zeros(1, 1, 1)
    step = Transition(mean=latent, std=torch.ones(()), denoised=latent)
    with pytest.raises(FrozenInstanceError):
        step.mean = latent


def test_mean_and_denoised_have_one_shape():
    """A mismatch is caught where the record is made."""
    with pytest.raises(TypeCheckError):
        Transition(
            mean=torch.zeros(2, 1, 1, 1), std=torch.ones(2), denoised=torch.zeros(3, 1, 1, 1)
        )
