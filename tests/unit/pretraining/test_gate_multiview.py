"""`gate`: oracle, laws, errors."""

import math
from dataclasses import replace

import pytest
import torch

from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.pretraining.gate import Claim, Gate, GateRow
from mvczigal_ref.pretraining.gate_multiview import gate
from mvczigal_ref.rollout.noise import SeededNoise, derived_generator
from mvczigal_ref.rollout.standard import standard_rollout
from mvczigal_ref.tiny_world.cheats import hand_built_sets
from mvczigal_ref.tiny_world.scene import WORLD_RIG
from mvczigal_ref.tiny_world.score import joint_view_score, per_view_score
from mvczigal_ref.tiny_world.visible import part_visible

PROMPTS = ["a red ball with a white nose", "a blue cube with a green fin"]
NAMES = ["real", "autoencoder", "3 steps", "2 steps", "1 steps", "wrong_prompt", "blank", "noise"]


def small_components():
    return tiny_components(seed=0, channels=(8, 16, 16), num_heads=(1, 2, 2))


@pytest.fixture(scope="module")
def components():
    return small_components()


def sampled(components, prompts, *, seed, objects, guidance_scale):
    """Sample these objects of a gate in two steps."""
    noise = SeededNoise(seed=seed, iteration="gate", objects=objects, shape=(6, 4, 8, 8))
    sampler = LcmSampler.create(
        num_steps=2, prediction_type="v_prediction",
        alpha_bar=scaled_linear_alpha_bar(dtype=torch.float32),
    )  # fmt: skip
    conditioning = components.build_conditioning(prompts, WORLD_RIG, image_size=32)
    trajectory = standard_rollout(
        components.policy, sampler, noise.initial(), conditioning, noise.arm("standard"),
        guidance_scale=guidance_scale,
    )  # fmt: skip
    with torch.no_grad():
        return components.decode(trajectory.denoised)


@pytest.fixture(scope="module")
def result(components):
    return gate(components, seed=3, noises=1, steps=(3, 2, 1), guidance_scale=1.5, prompts=PROMPTS)


# -- oracle ------------------------------------------------------------------------------


def test_rows_are_the_scores_of_their_images(result):
    """With one noise the kept images are all there are."""
    assert [row.name for row in result.rows] == list(result.images) == NAMES
    for row in result.rows:
        images = result.images[row.name]
        for score, mean, error in (
            (per_view_score(images, PROMPTS).mean(1), row.per_view, row.per_view_error),
            (joint_view_score(images, PROMPTS), row.joint, row.joint_error),
        ):
            one, other = score.tolist()
            assert mean == pytest.approx((one + other) / 2, rel=1e-6)
            # Of two values the standard error is half their distance.
            assert error == pytest.approx(abs(one - other) / 2, rel=1e-5, abs=1e-6)
        assert row.part_visible == part_visible(images, PROMPTS).double().mean()


def test_images_are_made_as_said(components, result):
    """Scenes of the seed, the autoencoder's view of them, and latent consistency samples."""
    sets = hand_built_sets(PROMPTS, generator=derived_generator(3, "gate", 0))
    for name in ("real", "wrong_prompt", "blank", "noise"):
        assert torch.equal(result.images[name], sets[name])
    with torch.no_grad():
        coded = components.decode(components.encode(sets["real"]))
    assert torch.equal(result.images["autoencoder"], coded)
    expected = sampled(components, PROMPTS, seed=3, objects=[0, 1], guidance_scale=1.5)
    torch.testing.assert_close(result.images["2 steps"], expected, rtol=0, atol=1e-5)


def test_claims_are_the_order_that_good_weights_give(result):
    """Every margin is the difference of two rows; the last two have limits of their own."""
    table = {row.name: row for row in result.rows}
    order = [
        ("real", "autoencoder"), ("autoencoder", "3 steps"), ("autoencoder", "2 steps"),
        ("3 steps", "1 steps"), ("2 steps", "1 steps"),
        ("1 steps", "wrong_prompt"), ("1 steps", "blank"), ("1 steps", "noise"),
    ]  # fmt: skip
    expected = {f"per-view: {a} > {b}": table[a].per_view - table[b].per_view for a, b in order} | {
        f"joint: {a} > {b}": table[a].joint - table[b].joint for a, b in order
    }
    gap = table["autoencoder"].joint - table["3 steps"].joint
    expected["joint: 3 steps within 2 dB of autoencoder"] = 2 - gap
    expected["3 steps: part visible on 90% of objects"] = table["3 steps"].part_visible - 0.9

    assert {c.text: c.margin for c in result.claims} == pytest.approx(expected)


# -- laws --------------------------------------------------------------------------------


def test_random_weights_do_not_pass(result):
    """They draw mud, and a random autoencoder too; still real beats it."""
    held = {claim.text: claim.holds for claim in result.claims}

    assert not result.passed
    assert held["joint: real > autoencoder"]
    assert not held["3 steps: part visible on 90% of objects"]


def test_a_gate_passes_when_every_claim_holds(result):
    """A claim holds at its limit, and not below it or when it cannot be told."""
    good = Claim(text="a > b", margin=0.0)

    assert good.holds
    assert not replace(good, margin=-1e-9).holds
    assert not replace(good, margin=math.nan).holds
    assert replace(result, claims=(good, good)).passed
    assert not replace(result, claims=(good, replace(good, margin=-1.0))).passed


def test_more_noises_are_averaged(components):
    """Each noise is another scene and another start; the first stays the first."""
    settings = {"seed": 0, "steps": (2, 1), "guidance_scale": 1.0, "prompts": PROMPTS[:1]}
    one, two = (gate(components, noises=noises, **settings) for noises in (1, 2))

    assert torch.equal(one.images["2 steps"], two.images["2 steps"])
    for single, double in zip(one.rows, two.rows, strict=True):
        assert (single.joint == double.joint) == (single.name == "blank")
        assert math.isnan(double.joint_error)


def test_the_seed_alone_decides(components):
    """The same seed gives the same numbers, whatever the global generator stands at."""
    settings = {"noises": 1, "steps": (2, 1), "guidance_scale": 1.0, "prompts": PROMPTS[:1]}
    state = torch.get_rng_state()
    one = gate(components, seed=0, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    same, other = (gate(components, seed=seed, **settings) for seed in (0, 1))

    assert [row.joint for row in one.rows] == [row.joint for row in same.rows]
    for name in ("real", "2 steps"):
        assert not torch.equal(one.images[name], other.images[name])


def test_guidance_reaches_the_network(components):
    """Another strength, other samples of the same scenes."""
    unet = components.policy.unet.time_embedding.cond_proj.weight
    before = unet.detach().clone()
    settings = {"seed": 0, "noises": 1, "steps": (2, 1), "prompts": PROMPTS[:1]}
    with torch.no_grad():
        unet.copy_(torch.randn(unet.shape, generator=torch.Generator().manual_seed(0)))
        low, high = (gate(components, guidance_scale=scale, **settings) for scale in (1.0, 6.0))
        unet.copy_(before)

    assert torch.equal(low.images["real"], high.images["real"])
    assert not torch.equal(low.images["2 steps"], high.images["2 steps"])


def test_by_default_the_held_out_prompts_are_judged(components, monkeypatch):
    """In slices, here of two: the object after the cut has its own prompt and noise."""
    held_out = [*PROMPTS, "a white cone with a purple nose"]
    monkeypatch.setattr(
        "mvczigal_ref.pretraining.gate_multiview.split_prompts", lambda: (PROMPTS, held_out)
    )
    monkeypatch.setattr("mvczigal_ref.pretraining.gate_multiview._AT_ONCE", 2)
    images = gate(components, seed=0, noises=1, steps=(2, 1), guidance_scale=1.0).images["2 steps"]
    expected = sampled(components, held_out, seed=0, objects=[0, 1, 2], guidance_scale=1.0)

    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_it_prints_a_table_and_its_claims():
    """As Markdown, failures plain to see."""
    row = GateRow(
        name="real", per_view=19.987, per_view_error=0.1, joint=15.0, joint_error=0.25,
        part_visible=1.0,
    )  # fmt: skip
    claims = (Claim(text="joint: a > b", margin=-0.5), Claim(text="joint: b > c", margin=2.0))
    lines = str(Gate(rows=(row,), claims=claims, images={})).splitlines()

    assert lines[2:] == [
        "| real | 19.99 +/- 0.10 | 15.00 +/- 0.25 | 100.0% |",
        "",
        "- FAILS -0.50: joint: a > b",
        "- holds +2.00: joint: b > c",
    ]


# -- errors ------------------------------------------------------------------------------


def test_impossible_settings_are_refused(components):
    """At least one noise, and two or more falling step counts."""
    with pytest.raises(ValueError, match="`noises` must be at least 1; got 0"):
        gate(components, seed=0, noises=0, guidance_scale=1.0)
    for steps in ((8,), (2, 4), (4, 4, 2)):
        with pytest.raises(ValueError, match="`steps` must hold two or more counts, largest first"):
            gate(components, seed=0, noises=1, steps=steps, guidance_scale=1.0)
