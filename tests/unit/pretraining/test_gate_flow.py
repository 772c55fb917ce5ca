"""`gate_flow`: oracle, laws, errors."""

import math

import pytest
import torch

from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.pretraining.gate_flow import gate_flow
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.tiny_world.score import per_view_score
from mvczigal_ref.tiny_world.visible import part_visible, views_showing_part

PROMPTS = ["a red ball with a white nose", "a blue cube with a green fin"]
NAMES = ["real", "autoencoder", "2 steps", "1 steps", "wrong_prompt", "blank", "noise"]
SETTINGS = {"seed": 3, "noises": 2, "steps": (2, 1), "guidance_scale": 3.0, "prompts": PROMPTS}


@pytest.fixture(scope="module")
def components():
    """Of a network that does not start at zero: its last layer is drawn."""
    made = tiny_flow_components(
        seed=0, num_heads=1, head_width=8, num_layers=1, num_single_layers=1, vae_channels=(8, 8, 8)
    )
    last = made.policy.transformer.proj_out.weight
    with torch.no_grad():
        last.copy_(torch.randn(last.shape, generator=torch.Generator().manual_seed(0)))
    return made


@pytest.fixture(scope="module")
def result(components):
    return gate_flow(components, **SETTINGS)


# -- oracle ------------------------------------------------------------------------------


def test_rows_are_the_scores_of_their_images(result):
    """Each image by itself; standard errors are over prompts."""
    assert [row.name for row in result.rows] == list(result.images) == NAMES
    for row in result.rows:
        images = result.images[row.name]
        one, other = per_view_score(images, PROMPTS).mean(1).tolist()
        assert row.per_view == pytest.approx((one + other) / 2, rel=1e-6)
        # Of two values the standard error is half their distance.
        assert row.per_view_error == pytest.approx(abs(one - other) / 2, rel=1e-5, abs=1e-6)
        assert row.part_visible == views_showing_part(images, PROMPTS).double().mean()
        assert math.isnan(row.joint)


def test_samples_follow_the_ode(components, result):
    """Two Euler steps from a noise of the object's own, on FLUX's grid for 16 tokens."""
    shift = components.noise_shift(8, 8)
    middle = 0.5 * shift / (1 + 0.5 * (shift - 1))
    conditioning = components.build_conditioning(PROMPTS, negative_prompt="")
    for noise in (0, 1):
        objects = [2 * noise, 2 * noise + 1]
        source = SeededNoise(seed=3, iteration="flow gate", objects=objects, shape=(1, 4, 8, 8))
        latent = source.initial()[:, 0]
        with torch.no_grad():
            for high, low in ((1.0, middle), (middle, 0.0)):
                time = torch.tensor(1000 * high)
                latent = latent - (high - low) * components.policy(
                    latent, time, conditioning, guidance_scale=3.0
                )
            expected = components.decode(latent)
        found = result.images["2 steps"][:, noise]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_renders_are_all_azimuths_of_every_scene(components, result):
    """Of as many scenes as noises; the autoencoder's view of them beside."""
    real = result.images["real"]
    with torch.no_grad():
        coded = components.decode(components.encode(real))

    assert real.shape == (2, 16, 3, 32, 32)
    assert not torch.equal(real[:, :8], real[:, 8:])
    # Six of a ball's eight views show something of its nose, and in front it is in the middle.
    assert part_visible(torch.cat([real[:, :1]] * 6, 1), PROMPTS).all()
    assert not views_showing_part(real[:, 4::8], PROMPTS).any()
    torch.testing.assert_close(result.images["autoencoder"], coded, rtol=0, atol=1e-6)


def test_claims_are_the_order_that_good_weights_give(result):
    """Each step of the ladder, and the part against real renders."""
    table = {row.name: row for row in result.rows}
    order = [
        ("real", "autoencoder"), ("autoencoder", "2 steps"), ("2 steps", "1 steps"),
        ("1 steps", "wrong_prompt"), ("1 steps", "blank"), ("1 steps", "noise"),
    ]  # fmt: skip
    expected = {f"per-view: {a} > {b}": table[a].per_view - table[b].per_view for a, b in order}
    text = "2 steps: part visible 90% as often as in real renders"
    expected[text] = table["2 steps"].part_visible - 0.9 * table["real"].part_visible

    assert {c.text: c.margin for c in result.claims} == pytest.approx(expected)


# -- laws --------------------------------------------------------------------------------


def test_random_weights_do_not_pass(result):
    """They draw mud; real renders of another prompt do worse than those of this one."""
    table = {row.name: row for row in result.rows}

    assert not result.passed
    assert table["real"].per_view > table["wrong_prompt"].per_view + 5


def test_the_table_has_no_joint_column(result):
    """Single views have no joint score."""
    assert str(result).splitlines()[0] == "| images | per view [dB] | part visible |"
    assert str(result).splitlines()[1] == "| --- | --- | --- |"


def test_the_seed_and_guidance_decide(components, result):
    """The same settings give the same images; another guidance other samples, the same scenes."""
    again = gate_flow(components, **SETTINGS)
    plain = gate_flow(components, **SETTINGS | {"guidance_scale": 1.0})
    other = gate_flow(components, **SETTINGS | {"seed": 4})

    assert all(torch.equal(again.images[name], result.images[name]) for name in NAMES)
    assert torch.equal(plain.images["real"], result.images["real"])
    assert not torch.equal(plain.images["2 steps"], result.images["2 steps"])
    for name in ("real", "noise", "2 steps"):
        assert not torch.equal(other.images[name], result.images[name])


def test_by_default_the_held_out_prompts_are_judged(components, result, monkeypatch):
    """The second part of the split."""
    monkeypatch.setattr("mvczigal_ref.pretraining.gate_flow.split_prompts", lambda: ([], PROMPTS))
    found = gate_flow(components, **SETTINGS | {"prompts": None})

    assert torch.equal(found.images["2 steps"], result.images["2 steps"])


# -- errors ------------------------------------------------------------------------------


def test_impossible_settings_are_refused(components):
    """At least one noise, and two or more falling step counts."""
    with pytest.raises(ValueError, match="`noises` must be at least 1; got 0"):
        gate_flow(components, **SETTINGS | {"noises": 0})
    with pytest.raises(ValueError, match="`steps` must hold two or more counts, largest first"):
        gate_flow(components, **SETTINGS | {"steps": (10, 20)})
