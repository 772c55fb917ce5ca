"""The multi-view policy: oracle, laws, gradients, golden values, errors."""

import copy
import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch
from diffusers import T2IAdapter, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mvczigal_ref.diffusion.guidance import guidance_embedding
from mvczigal_ref.models.lora import add_lora, load_lora_state_dict, lora_parameters
from mvczigal_ref.models.multiview_unet import PUBLISHED_CAMERA_ENCODER, MultiViewUNet
from mvczigal_ref.models.row_attention import is_row_attention
from mvczigal_ref.policy import Conditioning, Policy
from tests.compare import FP64, assert_equal_to
from tests.golden import GOLDEN, constants, provenance, tensors
from tests.unannotated import without_shape_checks
from tests.unit.models.small import (
    LAYOUT,
    conditioning,
    fresh_components,
    published_on_meta,
    randn,
    rig,
    small_components,
)

SOME = torch.tensor(601)
# A network's rounding passes through some hundred layers; measured worst 4e-13.
DEEP = 1e-11


def latents(num_objects: int = 2, num_views: int = 3, size=(8, 8), seed: int = 0) -> Tensor:
    return randn(num_objects * num_views, 4, *size, seed=seed)


def predict(
    x: Tensor, given: Conditioning, timestep=SOME, guidance_scale=7.0, *, policy=None, **options
) -> Tensor:
    policy = policy or small_components().policy
    with torch.no_grad():
        return policy(x, timestep, given, guidance_scale=guidance_scale, **options)


# -- oracle: diffusers' own forward on inputs repeated by row ----------------------------


def by_rows(
    policy: MultiViewUNet, x: Tensor, given: Conditioning, timestep=SOME, **changes: Tensor
) -> Tensor:
    """Call the UNet as diffusers' pipelines do, everything repeated to rows."""
    views = given.num_views
    arguments = {
        "encoder_hidden_states": given.prompt_embeds.repeat_interleave(views, 0),
        "added_cond_kwargs": {
            "text_embeds": given.pooled_prompt_embeds.repeat_interleave(views, 0),
            "time_ids": given.time_ids.repeat_interleave(views, 0),
        },
        "down_intrablock_additional_residuals": [
            torch.cat([feature] * given.num_objects) for feature in given.camera_features
        ],
    }
    row_attention = {"num_views": views, "latent_size": tuple(x.shape[-2:]), "mv_scale": 1.0}
    with torch.no_grad():
        return policy.unet(
            x, timestep, **{**arguments, **changes}, cross_attention_kwargs=row_attention
        ).sample


def without_the_prompt(given: Conditioning) -> Conditioning:
    """Put the negative prompt in every prompt's place."""
    return replace(
        given,
        prompt_embeds=given.negative_prompt_embeds.expand_as(given.prompt_embeds),
        pooled_prompt_embeds=given.negative_pooled_prompt_embeds.expand(given.num_objects, -1),
    )


@pytest.mark.parametrize("guidance_scale", [1.0, 7.0])
@pytest.mark.parametrize("size", [(8, 8), (12, 8), (4, 12)])
def test_equals_the_unet_on_inputs_repeated_by_row(guidance_scale, size):
    """Storing each thing once changes no value; guidance enters as its embedding."""
    policy, given = small_components().policy, conditioning(2, 3, (4 * size[0], 4 * size[1]))
    x = latents(size=size)
    scale = torch.full((len(x),), guidance_scale)
    embedding = guidance_embedding(scale, width=8).double()

    expected = by_rows(policy, x, given, timestep_cond=embedding)
    assert_equal_to(predict(x, given, guidance_scale=guidance_scale), expected, DEEP, axes=3)


def test_doubled_guidance_equals_two_calls():
    """Without an embedding, w leads from the negative prompt through the prompt."""
    policy, given, x = (
        small_components(None).policy,
        conditioning(time_cond_proj_dim=None),
        latents(),
    )
    negative = without_the_prompt(given)
    away, towards = by_rows(policy, x, negative), by_rows(policy, x, given)

    doubled = predict(x, given, guidance_scale=3.0, policy=policy)
    assert_equal_to(doubled, away + 3.0 * (towards - away), DEEP, axes=3)
    for unguided in (1.0, 0.5):
        plain = predict(x, given, guidance_scale=unguided, policy=policy)
        assert_equal_to(plain, towards, DEEP, axes=3)


def test_doubled_rows_keep_their_timesteps():
    """Both halves of the doubled batch are told the same, row by row."""
    policy, given = small_components(None).policy, conditioning(time_cond_proj_dim=None)
    x, timestep = latents(), torch.tensor([1, 99, 199, 399, 599, 999])
    negative = without_the_prompt(given)
    away, towards = (by_rows(policy, x, g, timestep=timestep) for g in (negative, given))

    doubled = predict(x, given, timestep, 3.0, policy=policy)
    assert_equal_to(doubled, away + 3.0 * (towards - away), DEEP, axes=3)


# -- laws --------------------------------------------------------------------------------


def test_is_a_policy():
    """Rollout and update know no more of it than the protocol."""
    assert isinstance(small_components().policy, Policy)


@given(st.permutations(range(3)))
@settings(max_examples=6)
def test_permuting_the_objects_permutes_the_prediction(order):
    """An object's place in the batch means nothing."""
    given_, x = conditioning(3, 2), latents(3, 2)
    permuted = replace(
        given_,
        prompt_embeds=given_.prompt_embeds[order],
        pooled_prompt_embeds=given_.pooled_prompt_embeds[order],
        time_ids=given_.time_ids[order],
    )
    moved = x.unflatten(0, (3, 2))[order].flatten(0, 1)

    expected = predict(x, given_).unflatten(0, (3, 2))[order].flatten(0, 1)
    # A matrix product may round its last rows in another order than its first.
    assert_equal_to(predict(moved, permuted), expected, DEEP, axes=3)


def test_a_prompt_reaches_its_own_object_alone():
    """Other objects' rows stay equal bit for bit when one prompt changes."""
    given_, x = conditioning(3, 2), latents(3, 2)
    embeds, pooled = given_.prompt_embeds.clone(), given_.pooled_prompt_embeds.clone()
    embeds[1], pooled[1] = embeds[2], pooled[2]

    for changed in (
        replace(given_, prompt_embeds=embeds),
        replace(given_, pooled_prompt_embeds=pooled),
    ):
        same = (predict(x, given_) == predict(x, changed)).flatten(1).all(1)
        assert same.tolist() == [True, True, False, False, True, True]


def test_views_of_one_object_see_each_other():
    """A change in one view reaches the object's other views, and no other object."""
    given_, x = conditioning(), latents()
    changed = x.clone()
    changed[4] += 1.0

    same = (predict(x, given_) == predict(changed, given_)).flatten(1).all(1)
    assert same.tolist() == [True, True, True, False, False, False]


def test_without_row_attention_views_are_apart():
    """At weight 0 the network is SDXL's, one image at a time."""
    policy = fresh_components().policy
    policy.mv_scale = 0.0
    given_, x = conditioning(), latents()
    changed = x.clone()
    changed[4] += 1.0

    same = predict(x, given_, policy=policy) == predict(changed, given_, policy=policy)
    assert same.flatten(1).all(1).tolist() == [True, True, True, True, False, True]


@pytest.mark.parametrize("num_views", [1, 2, 5, 8])
def test_any_number_of_views(num_views):
    """The rig alone says how many; every camera counts."""
    given_, x = conditioning(1, num_views), latents(1, num_views)
    y = predict(x, given_)

    assert y.shape == x.shape
    assert y.isfinite().all()
    shuffled = replace(given_, camera_features=tuple(f.roll(1, 0) for f in given_.camera_features))
    assert (predict(x, shuffled) != y).any() == (num_views > 1)


@given(st.floats(-2.0, 2.0))
@settings(max_examples=10)
def test_camera_scale_multiplies_the_camera_features(scale):
    """It weighs what the cameras say."""
    given_, x = conditioning(), latents()
    scaled = replace(given_, camera_features=tuple(f * scale for f in given_.camera_features))

    assert torch.equal(predict(x, given_, camera_scale=scale), predict(x, scaled))


def test_camera_scale_0_hides_the_cameras():
    """No features at all give the same."""
    given_, x = conditioning(), latents()
    hidden = predict(x, given_, camera_scale=0.0)

    assert torch.equal(hidden, predict(x, replace(given_, camera_features=())))
    assert not torch.equal(hidden, predict(x, given_))


def test_guidance_embedding_starts_neutral_and_is_read():
    """Tiny weights ignore the scale until they are trained to."""
    policy, given_, x = fresh_components().policy, conditioning(), latents()
    one, seven = (predict(x, given_, guidance_scale=w, policy=policy) for w in (1.0, 7.0))
    assert not torch.equal(one, seven)

    with torch.no_grad():
        policy.unet.time_embedding.cond_proj.weight.zero_()
    one, seven = (predict(x, given_, guidance_scale=w, policy=policy) for w in (1.0, 7.0))
    assert torch.equal(one, seven)


def test_timestep_and_sizes_are_read():
    """Each moves the prediction; one timestep is the same as one a row."""
    given_, x = conditioning(), latents()
    y = predict(x, given_)

    assert torch.equal(predict(x, given_, SOME.expand(6)), y)
    assert torch.equal(predict(x, given_, SOME[None]), y)
    assert not torch.equal(predict(x, given_, torch.tensor(600)), y)
    assert not torch.equal(predict(x, replace(given_, time_ids=given_.time_ids * 2)), y)


def test_narrowed_objects_predict_the_same():
    """Slices of the objects are the objects."""
    given_, x = conditioning(3, 2), latents(3, 2)

    whole = predict(x, given_)
    assert_equal_to(predict(x[2:], given_.objects(slice(1, 3))), whole[2:], DEEP, axes=3)


@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replay_repeats_the_rollout_bit_for_bit(full, dtype):
    """With and without gradient, checkpointed or not."""
    policy = fresh_components().policy.to(dtype)
    if not full:
        add_lora(policy.unet, rank=2, alpha=2.0, seed=0)
    given_, x = conditioning().to(dtype=torch.float32), latents().float()
    sampled = predict(x, given_, policy=policy)
    policy.train()
    replayed = policy(x, SOME, given_, guidance_scale=7.0)
    policy.unet.enable_gradient_checkpointing()
    checkpointed = policy(x, SOME, given_, guidance_scale=7.0)

    assert replayed.requires_grad
    assert torch.equal(sampled, replayed.detach())
    assert torch.equal(sampled, checkpointed.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("embedded", [8, None])
def test_half_precision_network_answers_in_the_latent_s_type(dtype, embedded):
    """The state stays wide, whatever the network computes in."""
    policy = fresh_components(embedded).policy.to(dtype)
    given_, x = conditioning(time_cond_proj_dim=embedded), latents()
    exact = predict(x, given_, policy=small_components(embedded).policy, guidance_scale=2.0)

    for wide in (torch.float32, torch.float64, dtype):
        y = predict(x.to(wide), given_, policy=policy, guidance_scale=2.0)
        assert y.dtype == wide
        # Some hundred roundings of weights and activations, of either sign.
        error = (y.double() - exact).norm() / exact.norm()
        assert error < 4 * torch.finfo(dtype).eps


def test_cameras_encode_in_the_encoder_s_type():
    """Camera maps come in fp32."""
    components = fresh_components()
    features = components.policy.encode_cameras(torch.rand(3, 6, 32, 32))

    assert [tuple(f.shape) for f in features] == [
        (3, 8, 4, 4),
        (3, 16, 4, 4),
        (3, 16, 2, 2),
        (3, 16, 2, 2),
    ]
    assert {f.dtype for f in features} == {torch.float64}


# -- gradients ---------------------------------------------------------------------------


def test_gradient_is_the_derivative():
    """Along a random direction of the latents, by central differences."""
    policy, given_, x = small_components().policy, conditioning(), latents().requires_grad_()
    weight, along = latents(seed=7), latents(seed=8)
    (policy(x, SOME, given_, guidance_scale=7.0) * weight).sum().backward()
    ahead, behind = (
        (predict(x.detach() + h * along, given_) * weight).sum() for h in (1e-5, -1e-5)
    )

    # The third derivative leaves h^2.
    assert (x.grad * along).sum().item() == pytest.approx(
        ((ahead - behind) / 2e-5).item(), rel=1e-7
    )


def test_checkpointing_leaves_the_gradient_of_every_parameter():
    """Cameras and prompts included: recomputation sees the same arguments."""
    gradients = []
    for checkpointing in (False, True):
        components = fresh_components()
        policy = components.policy.train()
        if checkpointing:
            policy.unet.enable_gradient_checkpointing()
        features = policy.encode_cameras(
            torch.rand(3, 6, 32, 32, generator=torch.Generator().manual_seed(0))
        )
        given_ = replace(conditioning(), camera_features=features)
        first = policy(latents(), SOME, given_, guidance_scale=7.0)
        # A second call with other arguments in between, as the other arm's.
        policy(latents(seed=3)[:2], SOME, conditioning(1, 2), guidance_scale=1.0)
        first.square().sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters()})

    for name, expected in gradients[0].items():
        assert expected is not None, name
        assert torch.equal(gradients[1][name], expected), name


# -- golden parity -----------------------------------------------------------------------


def test_golden_network():
    """Cameras, prediction and every LoRA gradient of the released wiring, in fp64."""
    recorded, known = (
        tensors("models", "tiny_unet_adapter"),
        constants("models", "tiny_unet_adapter"),
    )
    sizes = (
        "block_out_channels",
        "transformer_layers_per_block",
        "attention_head_dim",
        "norm_num_groups",
        "cross_attention_dim",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "time_cond_proj_dim",
    )
    unet = UNet2DConditionModel(**LAYOUT, **{name: known[name] for name in sizes})
    policy = MultiViewUNet(unet, T2IAdapter(**known["t2i_adapter"])).double()
    parts = {
        prefix: {k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)}
        for prefix in ("unet.", "cond.", "lora.", "glora.")
    }
    unet.load_state_dict(parts["unet."])
    policy.camera_encoder.load_state_dict(parts["cond."])
    add_lora(unet, rank=known["lora_rank"], alpha=float(known["lora_alpha"]), seed=0)
    unet.double()
    load_lora_state_dict(unet, parts["lora."])

    features = policy.encode_cameras(recorded["control_image"])
    for level, feature in enumerate(features):
        assert_equal_to(feature, recorded[f"adapter_state_{level}"], FP64, axes=4)
    # The recorded text differs by row, so the network is called below the policy.
    y = unet(
        recorded["x"],
        recorded["t"],
        encoder_hidden_states=recorded["text"],
        timestep_cond=recorded["timestep_cond"],
        added_cond_kwargs={"text_embeds": recorded["pooled"], "time_ids": recorded["time_ids"]},
        down_intrablock_additional_residuals=list(features),
        cross_attention_kwargs={
            "num_views": known["num_views"],
            "latent_size": (8, 8),
            "mv_scale": known["mv_scale"],
        },
    ).sample
    assert_equal_to(y, recorded["y"], FP64, axes=3)
    (y * recorded["gy"]).sum().backward()
    found = lora_parameters(unet)
    assert set(found) == set(parts["glora."]) == set(parts["lora."])
    for name, expected in parts["glora."].items():
        assert_equal_to(found[name].grad, expected, FP64, axes=2)


def published_names(name: str) -> dict[str, list[int]]:
    """Read a list of published names, if it is the one whose provenance is written down."""
    content = (GOLDEN / f"{name}.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == provenance("models")[f"{name}.json"]["sha256"]
    return json.loads(content)["entries"]


@pytest.mark.parametrize(("variant", "width"), [("sdxl", None), ("lcm_sdxl", 256)])
def test_golden_names_at_full_size(variant, width):
    """The published UNets and the published adapter, name by name and shape by shape."""
    policy = published_on_meta(width)
    shapes = {name: list(value.shape) for name, value in policy.unet.state_dict().items()}
    plain = {name: shape for name, shape in shapes.items() if not is_row_attention(name)}
    adapter = {name: shape for name, shape in shapes.items() if is_row_attention(name)}
    adapter |= {name: list(v.shape) for name, v in policy.camera_encoder.state_dict().items()}

    assert plain == published_names(f"names_unet_{variant}")
    assert adapter == published_names("names_custom_adapter_sdxl")
    assert policy.guidance_width == width


def test_published_camera_encoder_is_the_default_of_loading():
    """Its file holds tensors alone."""
    with torch.device("meta"):
        encoder = T2IAdapter(**PUBLISHED_CAMERA_ENCODER)
    published = published_names("names_custom_adapter_sdxl")

    shapes = {name: list(value.shape) for name, value in encoder.state_dict().items()}
    assert shapes == {k: v for k, v in published.items() if not is_row_attention(k)}


# -- errors ------------------------------------------------------------------------------


def test_rejects_rows_that_are_not_the_objects_views():
    """A slice of the latents needs the same slice of the conditioning."""
    message = re.escape(
        "`latent_t` must hold one row per view and object, 6 for 2 objects of 3 views; got 3."
    )
    with pytest.raises(ValueError, match=message):
        predict(latents()[:3], conditioning())


def test_rejects_cameras_of_another_size():
    """Otherwise diffusers would drop the middle feature in silence."""
    message = re.escape(
        "`camera_features` must be half the latent's size at the first level, (6, 4); got (4, 4)."
    )
    with pytest.raises(ValueError, match=message):
        predict(latents(size=(12, 8)), conditioning())


def test_rejects_a_level_too_few():
    """Four levels, or none."""
    given_ = conditioning()
    with pytest.raises(ValueError, match=r"`camera_features` must have 4 levels.*got 3"):
        predict(latents(), replace(given_, camera_features=given_.camera_features[:3]))


def test_rejects_guidance_without_a_negative_prompt():
    """Only where the batch would be doubled."""
    policy = small_components(None).policy
    bare = small_components(None).build_conditioning(["a can", "a cube"], rig(3), image_size=32)
    bare = bare.to(dtype=torch.float64)

    assert predict(latents(), bare, guidance_scale=1.0, policy=policy).isfinite().all()
    with pytest.raises(ValueError, match=r"`conditioning.negative_prompt_embeds` must be given"):
        predict(latents(), bare, guidance_scale=1.5, policy=policy)


def test_rejects_a_unet_that_is_not_sdxl_s():
    """Pooled text and sizes would have nowhere to go."""
    components = fresh_components()
    plain = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    with pytest.raises(ValueError, match=r"`unet` must be conditioned as SDXL is.*got None"):
        MultiViewUNet(plain, components.policy.camera_encoder)


def test_wrapping_twice_keeps_trained_row_attention():
    """Row attention that is there is not reset to the layer's projections."""
    policy = fresh_components().policy
    with torch.no_grad():
        for name, parameter in policy.unet.named_parameters():
            if is_row_attention(name):
                parameter.mul_(2.0)
    before = copy.deepcopy(policy.unet.state_dict())
    again = MultiViewUNet(policy.unet, policy.camera_encoder)

    assert all(torch.equal(before[k], v) for k, v in again.unet.state_dict().items())


def test_shape_checks_can_be_off():
    """The policy's own checks do not depend on annotations."""
    with without_shape_checks(), pytest.raises(ValueError, match="`latent_t` must hold one row"):
        predict(latents()[:5], conditioning())
