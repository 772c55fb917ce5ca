"""`rollout.pair`: laws, gradients, golden values, errors."""

from inspect import signature

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.rollout.pair import first_joint_step, paired_rollout
from mvczigal_ref.rollout.standard import standard_rollout
from mvczigal_ref.rollout.zigzag import zigzag_rollout
from tests import golden
from tests.compare import FP64, assert_equal_to
from tests.policies import AnalyticPolicy, LinearPolicy, Recorded, numbered
from tests.trajectories import noise, recorded_run, roll_with, sampler_of
from tests.unannotated import without_shape_checks

FIELDS = ("state", "action", "log_prob", "denoised")
SCALES = {"guidance_scale": 7.0, "camera_scale": 0.75}
INVERSION = {"inversion_guidance_scale": 1.5, "inversion_camera_scale": 0.25}


def roll(policy, sampler, drawn, **told):
    """Sample the pairs of the objects that the noise names."""
    told = {"guidance_scale": 3.0, "storage_dtype": torch.float64, **told}
    conditioning = numbered(drawn.objects, drawn.shape[0])
    return paired_rollout(policy, sampler, told.pop("start", None), conditioning, drawn, **told)


def roll_from(start, rollout, drawn, arm, storage):
    """Give the final latents of one arm from another start."""
    return rollout(
        LinearPolicy(0.5, 0.2), sampler_of("lcm", 2), start, numbered((0, 1), 2), drawn.arm(arm),
        guidance_scale=3.0, storage_dtype=storage,
    ).denoised  # fmt: skip


def assert_same(one, two):
    """Bit for bit, every field."""
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIELDS)


# -- laws --------------------------------------------------------------------------------


@settings(max_examples=12)
@given(
    st.sampled_from(["lcm", "ddim"]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.sampled_from(["mean", "sum"]),
    st.integers(0, 2),
    st.integers(1, 2),
)
def test_is_both_rollouts_made_alone(kind, storage, reduction, zigzag_steps, rounds):
    """From one x_T, each on its own arm's noise; every setting is handed on."""
    sampler, policy, drawn = sampler_of(kind, 2), LinearPolicy(0.5, 0.2), noise()
    common = {**SCALES, "storage_dtype": storage, "reduction": reduction}
    zigzag = {**INVERSION, "zigzag_steps": zigzag_steps, "zigzag_rounds": rounds}
    pair = roll(policy, sampler, drawn, **common, **zigzag)

    assert_same(
        pair.zigzag, roll_with(zigzag_rollout, policy, sampler, drawn, "zigzag", **common, **zigzag)
    )
    assert_same(
        pair.standard, roll_with(standard_rollout, policy, sampler, drawn, "standard", **common)
    )


@pytest.mark.parametrize("pairing", ["zigzag", "standard"])
@pytest.mark.parametrize("kind", ["lcm", "ddim"])
@pytest.mark.parametrize("zigzag_steps", [0, 1, 2, 3])
def test_two_arms_per_call_sample_the_same_pairs_by_fewer_calls(pairing, kind, zigzag_steps):
    """One call per joint step is saved; a network whose rows are independent answers the same."""
    sampler, drawn = sampler_of(kind, 3), noise()
    told = {**SCALES, **INVERSION, "pairing": pairing, "zigzag_steps": zigzag_steps}
    apart, together = (Recorded(LinearPolicy(0.5, 0.2, -0.1)) for _ in range(2))
    one = roll(apart, sampler, drawn, **told)
    two = roll(together, sampler, drawn, arms_per_call=2, **told)

    for arm in ("zigzag", "standard"):
        assert_same(getattr(one, arm), getattr(two, arm))
    first = first_joint_step(zigzag_steps if pairing == "zigzag" else 0)
    assert len(apart.calls) - len(together.calls) == 3 - first


@pytest.mark.parametrize("storage", [torch.float64, torch.bfloat16])
def test_may_pair_two_standard_trajectories(storage):
    """The first arm's noise is the zigzag's, whatever it is used for."""
    sampler, policy, drawn = sampler_of("lcm", 3), LinearPolicy(0.5, 0.2), noise()
    common = {**SCALES, "storage_dtype": storage, "reduction": "sum"}
    pair = roll(policy, sampler, drawn, pairing="standard", **common, **INVERSION)
    for arm in ("zigzag", "standard"):
        alone = roll_with(standard_rollout, policy, sampler, drawn, arm, **common)

        assert_same(getattr(pair, arm), alone)
    assert torch.equal(pair.zigzag.state[0], pair.standard.state[0])
    assert not torch.equal(pair.zigzag.action[0], pair.standard.action[0])


def test_the_rollouts_take_their_arguments_in_one_order():
    """Network, grid, start, condition, noise; then settings by name alone."""
    orders = [
        [name for name, p in signature(rollout).parameters.items() if p.kind != p.KEYWORD_ONLY]
        for rollout in (standard_rollout, zigzag_rollout, paired_rollout)
    ]

    assert orders == [["policy", "sampler", "latent", "conditioning", "noise"]] * 3


@pytest.mark.parametrize("storage", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pairing", ["zigzag", "standard"])
def test_start_and_noise_may_be_the_caller_s(storage, pairing):
    """Each arm on its own source, both from the start that is given."""
    sampler, policy, drawn = sampler_of("lcm", 2), LinearPolicy(0.5, 0.2), noise()
    start, given_ = noise(seed=7).initial(), numbered((0, 1), 2)
    settings = {"guidance_scale": 3.0, "storage_dtype": storage}
    sources = {"zigzag": drawn.arm("a"), "standard": drawn.arm("b")}
    pair = paired_rollout(policy, sampler, start, given_, sources, pairing=pairing, **settings)
    first = {"zigzag": zigzag_rollout, "standard": standard_rollout}[pairing]

    assert_same(pair.zigzag, first(policy, sampler, start, given_, drawn.arm("a"), **settings))
    assert_same(
        pair.standard, standard_rollout(policy, sampler, start, given_, drawn.arm("b"), **settings)
    )
    seeded = roll(policy, sampler, drawn, start=start, pairing=pairing, storage_dtype=storage)
    assert torch.equal(seeded.standard.state[0], start.to(storage))
    assert torch.equal(seeded.zigzag.denoised, roll_from(start, first, drawn, "zigzag", storage))


@settings(max_examples=8)
@given(st.integers(1, 3), st.integers(0, 3), st.integers(1, 2))
def test_the_first_call_is_made_once(num_steps, zigzag_steps, rounds):
    """2T - 1 calls, and two more a round of a zigzagged step."""
    zigzag_steps = min(zigzag_steps, num_steps)
    policy, sampler = Recorded(LinearPolicy(0.5)), sampler_of("lcm", num_steps)
    roll(policy, sampler, noise(), zigzag_steps=zigzag_steps, zigzag_rounds=rounds)
    assert len(policy.calls) == 2 * num_steps - 1 + 2 * zigzag_steps * rounds

    policy.calls.clear()
    roll(policy, sampler, noise(), pairing="standard")
    assert len(policy.calls) == 2 * num_steps - 1
    assert not any(call.with_gradient for call in policy.calls)


def test_every_call_is_told_its_own_scales():
    """Only the inversion's differ."""
    policy = Recorded(LinearPolicy(0.5))
    roll(policy, sampler_of("lcm", 2), noise(), **SCALES, **INVERSION)

    down, up = (7.0, 0.75), (1.5, 0.25)
    assert [(c.guidance_scale, c.camera_scale) for c in policy.calls] == [
        down, up, down, down, down
    ]  # fmt: skip


@settings(max_examples=8)
@given(st.permutations(range(4)), st.integers(1, 3))
def test_a_pair_is_the_same_in_any_company(order, count):
    """Objects may be cut into any slices."""
    sampler, policy = sampler_of("lcm", 2), LinearPolicy(0.1, -0.3, 0.6, 0.2)
    together, alone = (
        roll(policy, sampler, noise(objects)) for objects in (order[:count], order[:1])
    )
    first = together.objects(slice(0, 1))

    assert_same(first.zigzag, alone.zigzag)
    assert_same(first.standard, alone.standard)


# -- gradients ---------------------------------------------------------------------------


def test_makes_no_graph():
    """Not even by the call that both arms share."""
    pair = roll(LinearPolicy(0.5), sampler_of("lcm", 2), noise())
    arms = (pair.zigzag, pair.standard)

    assert not any(getattr(arm, name).requires_grad for arm in arms for name in FIELDS)


# -- golden ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden.names("stages", "sampling"))
def test_recorded_pairs(name):
    """Both recorded trajectories at once, one network call fewer than they took."""
    run = recorded_run(name)
    policy = Recorded(AnalyticPolicy(run.constants["time_cond_proj_dim"]))
    pair = paired_rollout(
        policy,
        run.sampler,
        run.noise.initial(),
        run.conditioning,
        {"zigzag": run.noise.arm("zigzag"), "standard": run.noise.arm("standard")},
        guidance_scale=run.constants["guidance_scale"],
        inversion_guidance_scale=run.constants["inv_guidance_scale"],
        inversion_camera_scale=run.constants["inv_control_conditioning_scale"],
        zigzag_steps=run.constants["lambda_step"],
        zigzag_rounds=run.constants["T_max"],
        storage_dtype=torch.float64,
    )

    for arm, recorded in ((pair.zigzag, "zmv"), (pair.standard, "standard")):
        assert_equal_to(arm.state, run.by_step(f"{recorded}.states"), FP64, axes=3)
        assert_equal_to(arm.action, run.by_step(f"{recorded}.next_states"), FP64, axes=3)
        assert_equal_to(arm.log_prob, run.by_step(f"{recorded}.log_probs"), FP64)
        final = run.by_object(run.tensors[f"{recorded}.final_denoised"])
        assert_equal_to(arm.denoised, final, FP64, axes=3)
    calls = [*run.tensors["zmv.unet_t"].tolist(), *run.tensors["standard.unet_t"].tolist()[1:]]
    assert [call.timestep[0] for call in policy.calls] == calls


# -- errors ------------------------------------------------------------------------------


def test_rejects_own_noise_without_a_start_or_an_arm():
    """Own sources say nothing of x_T, and an arm without noise could not be drawn."""
    sampler, drawn, given_ = sampler_of("lcm", 2), noise(), numbered((0, 1), 2)
    one = {"zigzag": drawn.arm("zigzag")}
    both = {**one, "standard": drawn.arm("standard")}
    policy = Recorded(LinearPolicy(0.5))
    with pytest.raises(ValueError, match=r"`latent` must be given with noise of one's own"):
        paired_rollout(policy, sampler, None, given_, both, guidance_scale=3.0)
    with pytest.raises(ValueError, match=r"`noise` must have .*'standard'.*; got \['zigzag'\]"):
        paired_rollout(policy, sampler, drawn.initial(), given_, one, guidance_scale=3.0)

    assert not policy.calls


def test_the_start_may_be_the_noises_own():
    """None stands for it, and every argument has a name."""
    policy, sampler, drawn = LinearPolicy(0.5, 0.2), sampler_of("lcm", 2), noise()
    pair = paired_rollout(
        policy=policy, sampler=sampler, latent=None, conditioning=numbered((0, 1), 2), noise=drawn,
        guidance_scale=3.0, storage_dtype=torch.float64,
    )  # fmt: skip

    assert_same(pair.standard, roll(policy, sampler, drawn).standard)


def test_rejects_an_unknown_pairing():
    """By the name of the setting."""
    message = "`pairing` must be 'zigzag' or 'standard'; got 'both'"
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        roll(LinearPolicy(0.5), sampler_of("lcm", 2), noise(), pairing="both")
