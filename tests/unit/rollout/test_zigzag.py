"""`rollout.zigzag`: oracle, laws, gradients, golden values, errors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.rollout.standard import first_output, standard_rollout
from mvczigal_ref.rollout.zigzag import zigzag_rollout
from tests import golden, oracles
from tests.compare import FP64, assert_equal_to
from tests.policies import AnalyticPolicy, LinearPolicy, Recorded, numbered
from tests.trajectories import noise, recorded_run, roll_with, sampler_of

KINDS = st.sampled_from(["lcm", "ddim"])
FIELDS = ("state", "action", "log_prob", "denoised")


@st.composite
def zigzags(draw, max_steps=4):
    """Draw a grid's length, how many of its steps are zigzagged, and how often."""
    num_steps = draw(st.integers(1, max_steps))
    return num_steps, draw(st.integers(0, num_steps)), draw(st.integers(1, 3))


def roll(policy, sampler, drawn, arm="zigzag", **told):
    """Sample the objects that the noise names."""
    return roll_with(zigzag_rollout, policy, sampler, drawn, arm, **told)


def assert_same(one, two):
    """Bit for bit, every field."""
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIELDS)


# -- oracle ------------------------------------------------------------------------------


@given(KINDS, zigzags(), st.floats(-0.5, 0.9), st.floats(0, 9), st.floats(0, 9), st.integers(0, 99))
def test_equals_a_scalar_process_in_floats(kind, sizes, gain, high, low, seed):
    """One latent of one element: draw, go back up, draw again, keep the last draw."""
    num_steps, zigzag_steps, rounds = sizes
    sampler, drawn = sampler_of(kind, num_steps), noise((0,), (1, 1, 1, 1), seed)
    trajectory = roll(
        LinearPolicy(gain),
        sampler,
        drawn,
        guidance_scale=high,
        inversion_guidance_scale=low,
        camera_scale=0.5,
        inversion_camera_scale=0.25,
        zigzag_steps=zigzag_steps,
        zigzag_rounds=rounds,
    )

    level = oracles.scaled_linear_alpha_bar(1000, 0.00085, 0.012)
    grid, draws = sampler.timesteps.tolist(), drawn.arm("zigzag")
    x = y = drawn.initial().item()
    for step, t in enumerate(grid):
        s = max(t - 1000 // num_steps, 0)
        if kind == "lcm":
            s = grid[min(step + 1, num_steps - 1)]
        repeats = rounds if step < zigzag_steps else 0
        for draw in range(repeats + 1):
            if draw:
                back = gain * y + 0.02 * low + 0.05 * 0.25 + 1e-4 * t
                if kind == "lcm":
                    x = oracles.lcm_inverse("epsilon", back, y, s, level[s], level[t])
                else:
                    x = oracles.ddim_inverse("epsilon", back, y, level[s], level[t])
            output = gain * x + 0.02 * high + 0.05 * 0.5 + 1e-4 * t
            if kind == "lcm":
                mean, std, clean = oracles.lcm_step("epsilon", output, x, t, level[t], level[s])
            else:
                mean, std, clean = oracles.ddim_step("epsilon", output, x, level[t], level[s], 1.0)
            y = mean + std * draws(step, draw).item()

        assert trajectory.state[step].item() == pytest.approx(x, rel=1e-9, abs=1e-9)
        assert trajectory.action[step].item() == pytest.approx(y, rel=1e-9, abs=1e-9)
        assert trajectory.log_prob[step].item() == pytest.approx(
            oracles.normal_log_density(y, mean, std), rel=1e-8, abs=1e-8
        )
        x = y
    assert trajectory.denoised.item() == pytest.approx(clean, rel=1e-9, abs=1e-9)


# -- laws --------------------------------------------------------------------------------


@settings(max_examples=8)
@given(KINDS, st.integers(1, 4), st.integers(1, 3))
def test_no_zigzag_is_plain_sampling(kind, num_steps, rounds):
    """On the standard arm's noise, bit for bit, however many rounds are not made."""
    sampler, policy, drawn = sampler_of(kind, num_steps), LinearPolicy(0.5, 0.2), noise()
    plain = roll_with(standard_rollout, policy, sampler, drawn, "standard")

    assert_same(
        roll(policy, sampler, drawn, "standard", zigzag_steps=0, zigzag_rounds=rounds), plain
    )


@given(zigzags())
def test_at_eta_zero_no_noise_is_drawn(sizes):
    """Up and down again are deterministic, too."""
    num_steps, zigzag_steps, rounds = sizes
    sampler, drawn = replace(sampler_of("ddim", num_steps), eta=0.0), noise()

    def no_noise(step, draw):
        pytest.fail(f"noise was drawn at step {step}, draw {draw}")

    trajectory = zigzag_rollout(
        LinearPolicy(0.5, 0.2),
        sampler,
        drawn.initial(),
        numbered(drawn.objects, drawn.shape[0]),
        no_noise,
        guidance_scale=3.0,
        zigzag_steps=zigzag_steps,
        zigzag_rounds=rounds,
        storage_dtype=torch.float64,
    )

    assert trajectory.action.isfinite().all()
    assert trajectory.denoised.isfinite().all()


@settings(max_examples=12)
@given(KINDS, zigzags())
def test_makes_two_more_calls_a_round(kind, sizes):
    """Denoise; then go up with the weak scales and down with the strong, at one timestep."""
    num_steps, zigzag_steps, rounds = sizes
    policy, sampler = Recorded(LinearPolicy(0.5)), sampler_of(kind, num_steps)
    roll(
        policy,
        sampler,
        noise(),
        guidance_scale=7.0,
        inversion_guidance_scale=1.5,
        camera_scale=0.75,
        inversion_camera_scale=0.25,
        zigzag_steps=zigzag_steps,
        zigzag_rounds=rounds,
    )
    down, up = (7.0, 0.75), (1.5, 0.25)
    expected = []
    for step, timestep in enumerate(sampler.timesteps.tolist()):
        told = [down, *[up, down] * rounds] if step < zigzag_steps else [down]
        expected += [([timestep], *scales) for scales in told]

    assert len(expected) == num_steps + 2 * zigzag_steps * rounds
    assert [(c.timestep, c.guidance_scale, c.camera_scale) for c in policy.calls] == expected
    assert {(call.rows, call.with_gradient) for call in policy.calls} == {(4, False)}


@settings(max_examples=8)
@given(KINDS, zigzags())
def test_a_known_first_output_saves_its_call(kind, sizes):
    """And changes nothing."""
    num_steps, zigzag_steps, rounds = sizes
    policy, sampler, drawn = Recorded(LinearPolicy(0.5)), sampler_of(kind, num_steps), noise()
    sizes = {"zigzag_steps": zigzag_steps, "zigzag_rounds": rounds}
    plain = roll(policy, sampler, drawn, **sizes)
    calls = len(policy.calls)
    first = first_output(
        policy, sampler, drawn.initial().double(), numbered((0, 1), 2), guidance_scale=3.0
    )
    policy.calls.clear()

    assert_same(roll(policy, sampler, drawn, shared_output=first, **sizes), plain)
    assert len(policy.calls) == calls - 1


@settings(max_examples=8)
@given(KINDS, st.permutations(range(5)), st.integers(1, 4))
def test_an_object_is_the_same_in_any_company(kind, order, count):
    """Its noise is its own: neither the batch nor the neighbours change a bit."""
    sampler, policy = sampler_of(kind, 2), LinearPolicy(0.1, -0.3, 0.6, 0.2, 0.4)
    together, alone = (
        roll(policy, sampler, noise(objects)) for objects in (order[:count], order[:1])
    )

    assert_same(together.objects(slice(0, 1)), alone)


@pytest.mark.parametrize("kind", ["lcm", "ddim"])
@pytest.mark.parametrize("zigzag_steps", [1, 3])
def test_only_a_zigzagged_state_differs_from_the_action_before_it(kind, zigzag_steps):
    """There it is the inverted latent."""
    drawn = noise()
    trajectory = roll(LinearPolicy(0.5), sampler_of(kind, 4), drawn, zigzag_steps=zigzag_steps)
    before = torch.cat([drawn.initial().double()[None], trajectory.action[:-1]])
    moved = [not torch.equal(a, b) for a, b in zip(trajectory.state, before, strict=True)]

    assert moved == [step < zigzag_steps for step in range(4)]


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_stored_is_what_was_computed_on(storage):
    """Every state and action is rounded before it is used: wide storage of them is no news."""
    sampler, policy = sampler_of("lcm", 3), LinearPolicy(0.5)
    narrow = roll(policy, sampler, noise(), storage_dtype=storage, zigzag_steps=3)
    told = LinearPolicy.told(sampler.timesteps.double(), 3.0, 1.0)[:, None, None, None, None, None]
    state = narrow.state.float()
    output = (0.5 * state.double() + told).float()
    transition = sampler.transition(output, state, torch.arange(3)[:, None, None])
    spread = transition.std.double().expand(narrow.log_prob.shape)[..., None, None, None]
    density = torch.distributions.Normal(transition.mean.double(), spread)
    expected = density.log_prob(narrow.action.double()).mean((-3, -2, -1))

    assert narrow.state.dtype == narrow.action.dtype == storage
    # fp32 arithmetic; rounding to bf16 alone would move these by 1e-2.
    torch.testing.assert_close(narrow.log_prob.double(), expected, rtol=1e-5, atol=1e-5)


# -- gradients ---------------------------------------------------------------------------


def test_makes_no_graph():
    """Though the parameters ask for gradients."""
    trajectory = roll(LinearPolicy(0.5), sampler_of("lcm", 2), noise())

    assert not any(getattr(trajectory, name).requires_grad for name in FIELDS)


# -- golden ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden.names("stages", "sampling"))
def test_recorded_trajectories(name):
    """Inverted states, actions, log-densities, final latents, and every network call."""
    run = recorded_run(name)
    policy = Recorded(AnalyticPolicy(run.constants["time_cond_proj_dim"]))
    trajectory = zigzag_rollout(
        policy,
        run.sampler,
        run.noise.initial(),
        run.conditioning,
        run.noise.arm("zigzag"),
        guidance_scale=run.constants["guidance_scale"],
        inversion_guidance_scale=run.constants["inv_guidance_scale"],
        inversion_camera_scale=run.constants["inv_control_conditioning_scale"],
        zigzag_steps=run.constants["lambda_step"],
        zigzag_rounds=run.constants["T_max"],
        storage_dtype=torch.float64,
    )

    assert_equal_to(trajectory.state, run.by_step("zmv.states"), FP64, axes=3)
    assert_equal_to(trajectory.action, run.by_step("zmv.next_states"), FP64, axes=3)
    assert_equal_to(trajectory.log_prob, run.by_step("zmv.log_probs"), FP64)
    final = run.by_object(run.tensors["zmv.final_denoised"])
    assert_equal_to(trajectory.denoised, final, FP64, axes=3)
    assert [call.timestep[0] for call in policy.calls] == run.tensors["zmv.unet_t"].tolist()
    # Guidance by two predictions is two halves of the released batch; here the policy's own affair.
    halves = 1 if run.constants["time_cond_proj_dim"] else 2
    rows = [call.rows * halves for call in policy.calls]
    assert rows == run.tensors["zmv.unet_batch"].tolist()
    grid = run.sampler.timesteps[run.tensors["zmv.step_index"]]
    assert torch.equal(grid, run.tensors["zmv.timesteps"])


def test_recorded_guidance_embeddings():
    """Of w - 1 while denoising, and of 0 while inverting; fp32, as released."""
    run = recorded_run("sampling_lcm_embedded_guidance")
    policy = AnalyticPolicy(run.constants["time_cond_proj_dim"])
    zigzag_rollout(
        policy,
        run.sampler,
        run.noise.initial(),
        run.conditioning,
        run.noise.arm("zigzag"),
        guidance_scale=run.constants["guidance_scale"],
        inversion_guidance_scale=run.constants["inv_guidance_scale"],
        storage_dtype=torch.float64,
    )
    down, up = run.tensors["timestep_cond_w"], run.tensors["timestep_cond_inv"]

    assert len(policy.timestep_cond) == 6
    for seen, expected in zip(policy.timestep_cond, [down, up, *[down] * 4], strict=True):
        assert torch.equal(seen, expected)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"zigzag_steps": 3}, r"`zigzag_steps` must be in 0\.\.2, the sampler's steps; got 3"),
        ({"zigzag_steps": -1}, r"`zigzag_steps` must be in 0\.\.2.*got -1"),
        ({"zigzag_rounds": 0}, "`zigzag_rounds` must be at least 1; got 0"),
    ],
)
def test_rejects_a_setting_out_of_range(told, message):
    """Before the network is called."""
    policy = Recorded(LinearPolicy(0.5))
    with pytest.raises(ValueError, match=message):
        roll(policy, sampler_of("lcm", 2), noise(), **told)

    assert not policy.calls
