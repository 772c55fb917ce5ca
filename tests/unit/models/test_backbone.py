"""`models.backbone`: both kinds give a run the same answers."""

from functools import cache

import pytest
import torch

from mvczigal_ref.models.backbone import FlowBackbone, MultiviewBackbone
from tests.unit.models.flow_small import fresh_flux
from tests.unit.models.small import fresh_components, randn, rig

KINDS = ["multiview", "flow"]
PROMPTS = ["a red cube", "a blue ball"]


def fresh(kind, *, guided=False, size=32):
    """Build a backbone of the narrowest pipeline, in fp32."""
    if kind == "flow":
        components = fresh_flux(guidance_embeds=guided).to(dtype=torch.float32)
        return FlowBackbone(components=components, image_size=size)
    components = fresh_components(8 if guided else None).to(dtype=torch.float32)
    return MultiviewBackbone(components=components, image_size=size, rig=rig(3))


@cache
def shared(kind):
    """Build one that no test changes."""
    return fresh(kind)


def conditioning_of(backbone, negative=None):
    """Condition on two prompts, each encoded alone."""
    apart = None if negative is None else backbone.embed(negative)
    return backbone.conditioning([backbone.embed(prompt) for prompt in PROMPTS], apart)


def predict(backbone):
    """Ask the policy once, without gradient."""
    latent = randn(2, *backbone.latent_shape, seed=3).float().flatten(0, 1)
    with torch.no_grad():
        return backbone.policy(
            latent, torch.tensor(500.0), conditioning_of(backbone), guidance_scale=1.0
        )


def moved(backbone):
    """Give a LoRA's second half numbers, so that it does something."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(backbone.lora().items()):
            if "lora_B" in name:
                parameter.copy_(0.3 * randn(*parameter.shape, seed=index))
    return backbone


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_as_large_as_the_autoencoder_makes_them(kind, size):
    """Six numbers of a rig or one view; the flow's are not packed."""
    backbone = fresh(kind, size=size)
    encoded = backbone.components.encode(torch.zeros(1, 3, size, size))

    assert backbone.latent_shape == ({"multiview": 3, "flow": 1}[kind], *encoded.shape[1:])
    assert backbone.num_views == backbone.latent_shape[0]
    assert len(backbone.camera_features) == {"multiview": 4, "flow": 0}[kind]


@pytest.mark.parametrize("negative", [None, "a black cone"])
@pytest.mark.parametrize("kind", KINDS)
def test_conditioning_is_that_of_the_components(kind, negative):
    """Each prompt encoded by itself; what leads away from them is stored once."""
    backbone = shared(kind)
    found = conditioning_of(backbone, negative)
    how = {"negative_prompt": negative}
    if kind == "multiview":
        how |= {"rig": rig(3), "image_size": 32}
    expected = backbone.components.build_conditioning(PROMPTS, **how)

    torch.testing.assert_close(found.prompt_embeds, expected.prompt_embeds)
    torch.testing.assert_close(found.pooled_prompt_embeds, expected.pooled_prompt_embeds)
    assert not found.prompt_embeds.requires_grad
    assert found.time_ids.tolist() == [[32, 32, 0, 0, 32, 32]] * 2
    assert found.camera_features is backbone.camera_features
    if negative is None:
        assert found.negative_prompt_embeds is found.negative_pooled_prompt_embeds is None
    else:
        for name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_says_whether_it_is_told_the_guidance(kind, guided):
    """Otherwise a negative prompt is needed, and the batch doubled."""
    assert fresh(kind, guided=guided).embeds_guidance == guided


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_backbone_trains_nothing(kind):
    """Every network is in evaluation mode, those that read prompts too."""
    backbone = fresh(kind)
    parts = (*backbone.text_encoders, backbone.components.vae, backbone.policy)
    for part in parts:
        part.train().requires_grad_(requires_grad=True)
    backbone.freeze()

    assert len(parts) == 4
    for part in parts:
        assert not any(module.training for module in part.modules())
        assert not any(p.requires_grad for p in part.parameters())
    assert backbone.trained() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_what_trains_is_the_lora_or_the_network(kind):
    """By published names, or by those of the policy."""
    backbone = fresh(kind)
    backbone.freeze()
    backbone.network.requires_grad_(requires_grad=True)
    names = {n for n, p in backbone.policy.named_parameters() if p.requires_grad}
    assert backbone.lora() == {}
    assert set(backbone.trained()) == names
    assert {name.partition(".")[0] for name in names} == {
        {"multiview": "unet", "flow": "transformer"}[kind]
    }
    backbone.add_lora(rank=2, alpha=4.0, seed=3)
    trained = backbone.trained()

    assert {id(p) for p in trained.values()} == {
        id(p) for p in backbone.policy.parameters() if p.requires_grad
    }
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all("lora" in name for name in trained)
    assert {min(p.shape[:2]) for p in trained.values()} == {2}


@pytest.mark.parametrize("kind", KINDS)
def test_the_lora_is_off_for_a_while(kind):
    """Inside the policy is what training started from; bits and trainability come back."""
    backbone = fresh(kind)
    backbone.freeze()
    start = predict(backbone)
    backbone.add_lora(rank=2, alpha=4.0, seed=3)
    learnt = predict(moved(backbone))
    bits = {name: p.detach().clone() for name, p in backbone.trained().items()}

    def fail():
        with backbone.without_lora():
            assert torch.equal(predict(backbone), start)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not torch.allclose(learnt, start)
    assert torch.equal(predict(backbone), learnt)
    trained = backbone.trained()
    assert trained.keys() == bits.keys()
    assert all(torch.equal(p, bits[name]) for name, p in trained.items())
    assert {id(p) for p in trained.values()} == {
        id(p) for p in backbone.policy.parameters() if p.requires_grad
    }


def test_a_flow_s_shift_is_that_of_its_latents():
    """FLUX was trained with more noise on larger images."""
    small, large = (fresh("flow", size=size) for size in (16, 32))

    assert small.noise_shift() == small.components.noise_shift(4, 4)
    assert small.noise_shift() < large.noise_shift()
