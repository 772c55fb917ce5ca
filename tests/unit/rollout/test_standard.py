"""`rollout.standard`: oracle, laws, gradients, golden values, errors."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from mvczigal_ref.rollout.standard import first_output, standard_rollout, step_indices
from tests import golden, oracles
from tests.compare import FP64, assert_equal_to
from tests.policies import AnalyticPolicy, LinearPolicy, Recorded, numbered
from tests.trajectories import noise, recorded_run, roll_with, sampler_of
from tests.unannotated import without_shape_checks

KINDS = st.sampled_from(["lcm", "ddim"])
STORAGE = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def roll(policy, sampler, drawn, **told):
    """Sample the objects that the noise names."""
    return roll_with(standard_rollout, policy, sampler, drawn, "standard", **told)


# -- oracle ------------------------------------------------------------------------------


@given(KINDS, st.integers(1, 4), st.floats(-0.5, 0.9), st.floats(0, 9), st.integers(0, 99))
def test_equals_a_scalar_process_in_floats(kind, num_steps, gain, guidance, seed):
    """One latent of one element: draw, score, step on, and keep the last clean guess."""
    sampler, drawn = sampler_of(kind, num_steps), noise((0,), (1, 1, 1, 1), seed)
    trajectory = roll(LinearPolicy(gain), sampler, drawn, guidance_scale=guidance, camera_scale=0.5)

    level = oracles.scaled_linear_alpha_bar(1000, 0.00085, 0.012)
    grid, draws = sampler.timesteps.tolist(), drawn.arm("standard")
    x = drawn.initial().item()
    for step, t in enumerate(grid):
        output = gain * x + 0.02 * guidance + 0.05 * 0.5 + 1e-4 * t
        if kind == "lcm":
            s = grid[min(step + 1, num_steps - 1)]
            mean, std, clean = oracles.lcm_step("epsilon", output, x, t, level[t], level[s])
        else:
            s = max(t - 1000 // num_steps, 0)
            mean, std, clean = oracles.ddim_step("epsilon", output, x, level[t], level[s], 1.0)
        y = mean + std * draws(step, 0).item()

        assert trajectory.state[step].item() == pytest.approx(x, rel=1e-9, abs=1e-12)
        assert trajectory.action[step].item() == pytest.approx(y, rel=1e-9, abs=1e-12)
        assert trajectory.log_prob[step].item() == pytest.approx(
            oracles.normal_log_density(y, mean, std), rel=1e-9, abs=1e-9
        )
        x = y
    assert trajectory.denoised.item() == pytest.approx(clean, rel=1e-9, abs=1e-12)


# -- laws --------------------------------------------------------------------------------


@settings(max_examples=8)
@given(KINDS, st.permutations(range(5)), st.integers(1, 4))
def test_an_object_is_the_same_in_any_company(kind, order, count):
    """Its noise is its own: neither the batch nor the neighbours change a bit."""
    sampler, policy = sampler_of(kind, 3), LinearPolicy(0.1, -0.3, 0.6, 0.2, 0.4)
    together, alone = (
        roll(policy, sampler, noise(objects)) for objects in (order[:count], order[:1])
    )
    first = together.objects(slice(0, 1))

    assert torch.equal(first.state, alone.state)
    assert torch.equal(first.action, alone.action)
    assert torch.equal(first.log_prob, alone.log_prob)
    assert torch.equal(first.denoised, alone.denoised)


@given(KINDS, st.integers(1, 5))
def test_makes_one_call_a_step(kind, num_steps):
    """At the grid's timesteps, on every row, with both scales handed on and no gradient."""
    policy, sampler = Recorded(LinearPolicy(0.5)), sampler_of(kind, num_steps)
    roll(policy, sampler, noise(), guidance_scale=2.5, camera_scale=0.75)

    assert [call.timestep for call in policy.calls] == [[t] for t in sampler.timesteps.tolist()]
    assert {(c.rows, c.guidance_scale, c.camera_scale) for c in policy.calls} == {(4, 2.5, 0.75)}
    assert not any(call.with_gradient for call in policy.calls)


def no_noise(step, draw):
    """Refuse to draw."""
    pytest.fail(f"noise was drawn at step {step}, draw {draw}")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_at_eta_zero_follows_diffusers_without_drawing_noise(kind):
    """Every action is the mean of its step; none has a log-density."""
    sampler = replace(sampler_of("ddim", 4), eta=0.0, prediction_type=kind)
    policy, start, given_ = LinearPolicy(0.4, -0.2), noise().initial(), numbered((0, 1), 2)
    trajectory = standard_rollout(
        policy, sampler, start, given_, no_noise, guidance_scale=3.0, storage_dtype=torch.float64
    )
    theirs = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.register_to_config(prediction_type=kind)
    theirs.alphas_cumprod = scaled_linear_alpha_bar(dtype=torch.float64)
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(4)
    x = start.double().flatten(0, 1)
    for step, t in enumerate(theirs.timesteps):
        output = policy(x, t, given_, guidance_scale=3.0)
        down = theirs.step(output.detach(), t, x, eta=0.0)
        x = down.prev_sample

        assert_equal_to(trajectory.action[step].flatten(0, 1), x, FP64, axes=3)
    assert_equal_to(trajectory.denoised.flatten(0, 1), down.pred_original_sample, FP64, axes=3)
    assert trajectory.log_prob.isnan().all()


@given(KINDS)
def test_a_known_first_output_saves_its_call(kind):
    """And changes nothing."""
    policy, sampler, drawn = Recorded(LinearPolicy(0.5)), sampler_of(kind, 3), noise()
    plain = roll(policy, sampler, drawn)
    first = first_output(
        policy, sampler, drawn.initial().double(), numbered((0, 1), 2), guidance_scale=3.0
    )
    policy.calls.clear()
    shared = roll(policy, sampler, drawn, shared_output=first)

    assert [call.timestep for call in policy.calls] == [[t] for t in sampler.timesteps[1:].tolist()]
    assert torch.equal(plain.action, shared.action)
    assert torch.equal(plain.log_prob, shared.log_prob)


@pytest.mark.parametrize("storage", STORAGE)
def test_a_state_is_the_action_before_it(storage):
    """Both in the storage dtype; log-densities and the final latent stay wide."""
    trajectory = roll(LinearPolicy(0.5), sampler_of("lcm", 4), noise(), storage_dtype=storage)

    assert trajectory.state.dtype == trajectory.action.dtype == storage
    assert torch.equal(trajectory.state[0], noise().initial().to(storage))
    assert torch.equal(trajectory.state[1:], trajectory.action[:-1])
    assert (
        trajectory.log_prob.dtype
        == trajectory.denoised.dtype
        == torch.promote_types(storage, torch.float32)
    )


@pytest.mark.parametrize("storage", STORAGE)
def test_what_is_scored_is_what_is_stored(storage):
    """The log-density belongs to the rounded action, under the Gaussian of the rounded state."""
    sampler, policy = sampler_of("lcm", 3), LinearPolicy(0.5)
    trajectory = roll(policy, sampler, noise(), storage_dtype=storage)
    state, action = trajectory.state.double(), trajectory.action.double()
    for step in range(3):
        told = LinearPolicy.told(sampler.timesteps[step].double(), 3.0, 1.0)
        step_of = sampler.transition(0.5 * state[step] + told, state[step], step)
        density = torch.distributions.Normal(step_of.mean, step_of.std[..., None, None, None])
        expected = density.log_prob(action[step]).mean((-3, -2, -1))
        # Where latents are stored narrower the network computes in fp32.
        close = 1e-12 if storage == torch.float64 else 1e-5
        torch.testing.assert_close(
            trajectory.log_prob[step].double(), expected, rtol=close, atol=close
        )


@given(KINDS)
def test_the_reductions_are_the_mean_and_the_sum_of_the_elements(kind):
    """Twelve elements a view."""
    sampler, policy = sampler_of(kind, 2), LinearPolicy(0.5)
    mean, total = (
        roll(policy, sampler, noise(), reduction=reduction).log_prob
        for reduction in ("mean", "sum")
    )

    torch.testing.assert_close(total, 12 * mean, rtol=1e-12, atol=1e-12)


def test_step_indices_name_every_step():
    """One element each, so that no step is read from a device."""
    indices = step_indices(sampler_of("lcm", 3), torch.device("cpu"))

    assert [index.tolist() for index in indices] == [[0], [1], [2]]


# -- gradients ---------------------------------------------------------------------------


def test_makes_no_graph():
    """Though the parameters ask for gradients."""
    policy, sampler = LinearPolicy(0.5), sampler_of("lcm", 2)
    trajectory = roll(policy, sampler, noise())
    first = first_output(
        policy, sampler, noise().initial(), numbered((0, 1), 2), guidance_scale=3.0
    )
    tensors = (trajectory.state, trajectory.action, trajectory.log_prob, trajectory.denoised, first)

    assert policy.gain.requires_grad
    assert not any(tensor.requires_grad for tensor in tensors)


# -- golden ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden.names("stages", "sampling"))
def test_recorded_trajectories(name):
    """States, actions, log-densities (means over elements), final latents and network calls."""
    run = recorded_run(name)
    policy = Recorded(AnalyticPolicy(run.constants["time_cond_proj_dim"]))
    trajectory = standard_rollout(
        policy,
        run.sampler,
        run.noise.initial(),
        run.conditioning,
        run.noise.arm("standard"),
        guidance_scale=run.constants["guidance_scale"],
        storage_dtype=torch.float64,
    )

    assert_equal_to(trajectory.state, run.by_step("standard.states"), FP64, axes=3)
    assert_equal_to(trajectory.action, run.by_step("standard.next_states"), FP64, axes=3)
    assert_equal_to(trajectory.log_prob, run.by_step("standard.log_probs"), FP64)
    final = run.by_object(run.tensors["standard.final_denoised"])
    assert_equal_to(trajectory.denoised, final, FP64, axes=3)
    assert [call.timestep[0] for call in policy.calls] == run.tensors["standard.unet_t"].tolist()
    # Guidance by two predictions is two halves of the released batch; here the policy's own affair.
    halves = 1 if run.constants["time_cond_proj_dim"] else 2
    rows = [call.rows * halves for call in policy.calls]
    assert rows == run.tensors["standard.unet_batch"].tolist()
    grid = run.sampler.timesteps[run.tensors["standard.step_index"]]
    assert torch.equal(grid, run.tensors["standard.timesteps"])


def test_recorded_guidance_embedding():
    """An embedding of w - 1 is all that the network is told of guidance; fp32, as released."""
    run = recorded_run("sampling_lcm_embedded_guidance")
    policy = AnalyticPolicy(run.constants["time_cond_proj_dim"])
    standard_rollout(
        policy,
        run.sampler,
        run.noise.initial(),
        run.conditioning,
        run.noise.arm("standard"),
        guidance_scale=run.constants["guidance_scale"],
        storage_dtype=torch.float64,
    )

    assert len(policy.timestep_cond) == run.constants["num_inference_steps"]
    for seen in policy.timestep_cond:
        assert torch.equal(seen, run.tensors["timestep_cond_w"])


# -- errors ------------------------------------------------------------------------------


def test_rejects_a_reduction_that_keeps_elements_apart():
    """A trajectory holds one log-density a view."""
    with (
        without_shape_checks(),
        pytest.raises(
            ValueError, match=r"`reduction` must be one of \('mean', 'sum'\); got 'none'"
        ),
    ):
        roll(LinearPolicy(0.5), sampler_of("lcm", 2), noise(), reduction="none")
