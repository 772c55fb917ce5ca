"""`pipeline` and `models.pipeline_parts`: oracle, laws, errors."""

import io
import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler
from PIL import Image

from mvczigal_ref.cameras import PAPER_RIG
from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar, shift_snr
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.lora import add_lora, lora_parameters, lora_state_dict
from mvczigal_ref.models.lora_files import load_lora
from mvczigal_ref.models.lora_weights import LoraWeights, write_lora_file, write_peft_files
from mvczigal_ref.models.published import weights_folder
from mvczigal_ref.pipeline import TextToMultiviewPipeline
from mvczigal_ref.pipeline.text_to_multiview import NEGATIVE_PROMPT
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.standard import standard_rollout
from mvczigal_ref.rollout.zigzag import zigzag_rollout
from mvczigal_ref.tiny_world.scene import WORLD_RIG
from mvczigal_ref.tiny_world.score import per_view_score
from tests.unit.models.published import parts, write_cache, write_published
from tests.unit.models.small import PROMPTS, fresh_components, randn, rig

STEPS = 2
SHIFT = 3.0
FEW = {"num_inference_steps": STEPS, "output_type": "pt"}


def build(**settings):
    """Wrap the smallest networks, in fp32, quietly."""
    components = fresh_components(settings.pop("width", 8)).to(dtype=torch.float32)
    options = {"image_size": 16, "rig": rig(2), **settings}
    return quiet(TextToMultiviewPipeline.from_components(components, **options))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline():
    """Build one for tests that change nothing."""
    return build(snr_shift=SHIFT)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# -- oracle: the stages called by hand ---------------------------------------------------


def test_an_inversion_may_be_guided_where_denoising_is_not():
    """The negative prompt is there for it: another one, another image."""
    pipeline = build(width=None)
    few = {**FEW, "num_inference_steps": 1, "zigzag_steps": 1, "guidance_scale": 1.0}
    images = [
        pipeline(
            "a can", generator=seeded(), inversion_guidance_scale=3.0, negative_prompt=text, **few
        ).images
        for text in ("ugly", "red")
    ]

    assert not torch.equal(*images)


@pytest.mark.parametrize("zigzag_steps", [0, 1])
def test_few_steps_by_hand(pipeline, zigzag_steps):
    """Conditioning, rollout, decoding: the images of this noise, bit for bit."""
    components = pipeline.parts
    noise = SeededNoise(seed=3, iteration="mine", objects=[0, 5], shape=(2, 4, 4, 4))
    given = components.build_conditioning(PROMPTS[:2], rig(2), image_size=16)
    alpha_bar = shift_snr(scaled_linear_alpha_bar(), SHIFT)
    sampler = LcmSampler.create(num_steps=STEPS, alpha_bar=alpha_bar).to(dtype=torch.float32)
    arm = noise.arm("zigzag" if zigzag_steps else "standard")
    common = (components.policy, sampler, noise.initial(), given, arm)
    if zigzag_steps:
        expected = zigzag_rollout(
            *common, guidance_scale=5.0, camera_scale=0.5, inversion_guidance_scale=2.0,
            inversion_camera_scale=0.25, zigzag_rounds=2,
        )  # fmt: skip
    else:
        expected = standard_rollout(*common, guidance_scale=5.0, camera_scale=0.5)
    found = pipeline(
        PROMPTS[:2], noise=noise, guidance_scale=5.0, camera_scale=0.5, zigzag_steps=zigzag_steps,
        zigzag_rounds=2, inversion_guidance_scale=2.0, inversion_camera_scale=0.25, **FEW,
    )  # fmt: skip

    with torch.no_grad():
        images = torch.stack([components.decode(one) for one in expected.denoised])
    assert torch.equal(found.images, images)


def test_many_steps_by_hand():
    """Without a guidance embedding: implicit models, and away from the published negative."""
    pipeline = build(width=None)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    components = pipeline.parts
    given = components.build_conditioning(
        ["a can"], rig(2), image_size=16, negative_prompt=NEGATIVE_PROMPT
    )
    alpha_bar = shift_snr(scaled_linear_alpha_bar(), 8.0)
    sampler = DdimSampler.create(num_steps=STEPS, alpha_bar=alpha_bar, eta=0.5)
    generator, shape = seeded(), (1, 2, 4, 4, 4)
    expected = standard_rollout(
        components.policy,
        sampler.to(dtype=torch.float32),
        torch.randn(shape, generator=generator),
        given,
        lambda *_: torch.randn(shape, generator=generator),
        guidance_scale=3.0,
    )
    found = pipeline(
        "a can", generator=seeded(), guidance_scale=3.0, eta=0.5, num_inference_steps=STEPS,
        output_type="latent", return_dict=False,
    )  # fmt: skip

    assert torch.equal(found[0], expected.denoised)
    plain = pipeline("a can", generator=seeded(), guidance_scale=1.0, negative_prompt="x", **FEW)
    other = pipeline("a can", generator=seeded(), guidance_scale=1.0, negative_prompt="y", **FEW)
    assert torch.equal(plain.images, other.images)


@pytest.mark.parametrize("zigzag_steps", [0, 1])
def test_at_eta_zero_the_images_depend_on_the_initial_noise_alone(zigzag_steps):
    """The generator draws nothing beyond it; without zigzag, diffusers' own deterministic steps."""
    pipeline, latents = build(width=None), randn(1, 2, 4, 4, 4).float()
    settings = {
        "eta": 0.0, "guidance_scale": 3.0, "num_inference_steps": 3, "zigzag_steps": zigzag_steps,
        "output_type": "latent",
    }  # fmt: skip
    one, other = seeded(0), seeded(1)
    first = pipeline("a can", latents=latents, generator=one, **settings).images
    second = pipeline("a can", latents=latents, generator=other, **settings).images

    assert torch.equal(first, second)
    assert torch.equal(one.get_state(), seeded(0).get_state())
    if zigzag_steps:
        return
    given = pipeline.parts.build_conditioning(
        ["a can"], rig(2), image_size=16, negative_prompt=NEGATIVE_PROMPT
    )
    theirs = DDIMScheduler.from_config(pipeline.scheduler.config)
    theirs.alphas_cumprod = shift_snr(scaled_linear_alpha_bar(), 8.0)
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(3)
    x = latents[0]
    with torch.no_grad():
        for t in theirs.timesteps:
            output = pipeline.parts.policy(x, t, given, guidance_scale=3.0)
            down = theirs.step(output, int(t), x, eta=0.0)
            x = down.prev_sample.float()
    torch.testing.assert_close(first[0], down.pred_original_sample.float(), rtol=1e-4, atol=1e-5)


# -- laws --------------------------------------------------------------------------------


def test_the_tiny_world_is_painted():
    """The shipped weights, with their own cameras, size and schedule: what the prompt says."""
    pipeline = quiet(TextToMultiviewPipeline.from_pretrained(weights_folder("tiny")))
    prompts = ["a red cube with a white nose", "a blue ball with a green fin"]
    images = pipeline(
        prompts, guidance_scale=2.0, num_inference_steps=4, output_type="pt", generator=seeded()
    ).images

    assert images.shape == (2, 6, 3, 32, 32)
    assert pipeline.default_rig == WORLD_RIG
    # Few-step samples of these weights have 17 dB, of the wrong prompt 4.
    assert per_view_score(images, prompts).mean() > 13.0
    assert per_view_score(images, prompts[::-1]).mean() < 8.0


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save a pipeline whose every setting is off its default."""
    folder = tmp_path_factory.mktemp("saved")
    scheduler = LCMScheduler.from_config(build().scheduler.config, prediction_type="sample")
    pipeline = build(scheduler=scheduler, snr_shift=2.0)
    pipeline.vae.register_to_config(latents_mean=[0.1] * 4, latents_std=[2.0] * 4)
    pipeline.save_pretrained(folder)
    return folder, pipeline


def test_a_saved_pipeline_comes_back(saved):
    """The same images, cameras, size, shift and schedule; other loaders read the folder."""
    folder, pipeline = saved
    again = quiet(TextToMultiviewPipeline.from_pretrained(folder))

    found, expected = (p("a can", generator=seeded(), **FEW).images for p in (again, pipeline))
    # Tensors from a file lie differently in memory, which shows in a product's last bit.
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    assert again.config.image_size == 16
    assert again.config.snr_shift == 2.0
    assert again.scheduler.config.prediction_type == "sample"
    assert again.default_rig == rig(2)
    index = (folder / "model_index.json").read_text("utf-8")
    assert json.loads(index)["_class_name"] == "TextToMultiviewPipeline"
    assert str(folder) not in index
    torch.testing.assert_close(load_components(folder).latent_std, torch.full((4,), 2.0))
    swapped = TextToMultiviewPipeline.from_pretrained(folder, scheduler=LCMScheduler())
    assert swapped.scheduler.config.prediction_type == "epsilon"


def test_published_parts_become_a_pipeline(tmp_path):
    """A stock base with the published UNet, autoencoder and adapter, from the hub's cache."""
    sources = write_cache(write_published(tmp_path), tmp_path / "cache")
    refs = tmp_path / "cache" / f"models--{sources.base.replace('/', '--')}" / "refs"
    (refs / "main").rename(refs / "v1")
    pipeline = quiet(
        TextToMultiviewPipeline.from_pretrained(
            sources.base,
            revision="v1",
            cache_dir=sources.cache,
            local_files_only=True,
            torch_dtype=torch.bfloat16,
        )
    )

    assert isinstance(pipeline.scheduler, LCMScheduler)
    assert (pipeline.config.image_size, pipeline.config.snr_shift) == (768, 8.0)
    assert pipeline.default_rig == PAPER_RIG
    assert pipeline.dtype == torch.bfloat16
    mine = TextToMultiviewPipeline.from_components(deepcopy(parts()), image_size=32)
    mine = mine.to(torch.bfloat16)
    for one, other in ((pipeline.unet, mine.unet), (pipeline.vae, mine.vae)):
        found, expected = one.state_dict(), other.state_dict()
        assert list(found) == list(expected)
    images = pipeline("a can", height=32, width=32, generator=seeded(), **FEW).images
    assert images.shape == (1, 6, 3, 32, 32)
    assert images.isfinite().all()


def test_generators(pipeline):
    """One draws for all; one an object keeps it apart from the others."""
    one = pipeline(PROMPTS[:2], generator=seeded(4), **FEW).images
    assert torch.equal(one, pipeline(PROMPTS[:2], generator=seeded(4), **FEW).images)
    assert not torch.equal(one, pipeline(PROMPTS[:2], generator=seeded(5), **FEW).images)

    both = pipeline(PROMPTS[:2], generator=[seeded(4), seeded(5)], **FEW).images
    alone = pipeline(PROMPTS[1], generator=[seeded(5)], **FEW).images
    torch.testing.assert_close(both[1:], alone, rtol=0.0, atol=1e-5)

    given = torch.randn(1, 2, 4, 4, 4, generator=seeded(1))
    drawn = pipeline("a can", generator=seeded(1), num_inference_steps=1, output_type="pt").images
    same = pipeline("a can", latents=given, num_inference_steps=1, output_type="pt").images
    assert torch.equal(same, drawn)


def test_any_views_and_sides(pipeline):
    """Cameras and sizes are the caller's."""
    images = pipeline("a can", rig=rig(3), height=24, width=16, **FEW).images
    assert images.shape == (1, 3, 3, 24, 16)


@pytest.mark.parametrize("name", ["camera_scale", "mv_scale", "guidance_scale"])
def test_every_strength_is_read(pipeline, name):
    """Each changes the images."""
    found = [
        pipeline("a can", generator=seeded(), **{name: value}, **FEW).images for value in (0.0, 2.0)
    ]
    assert not torch.equal(*found)


def test_output_types(pipeline):
    """Pictures, arrays, tensors and latents of the same objects."""
    latents = pipeline("a can", generator=seeded(), **(FEW | {"output_type": "latent"})).images
    tensor, array, pictures = (
        pipeline("a can", generator=seeded(), **(FEW | {"output_type": kind})).images
        for kind in ("pt", "np", "pil")
    )

    with torch.no_grad():
        assert torch.equal(pipeline.parts.decode(latents), tensor)
    assert np.array_equal(array, tensor.permute(0, 1, 3, 4, 2).numpy())
    assert [len(views) for views in pictures] == [2]
    assert isinstance(pictures[0][1], Image.Image)
    assert np.array_equal(np.asarray(pictures[0][1]), (255 * array[0, 1]).round().astype("uint8"))


def test_callbacks(pipeline):
    """Every step once, with what was asked for; the last has the final latents."""
    told = []

    def tell(where, step, timestep, values):
        told.append((step, timestep, values))
        assert where is pipeline
        return values

    final = pipeline(
        "a can", generator=seeded(), num_inference_steps=3, output_type="latent",
        callback_on_step_end=tell, zigzag_steps=1,
        callback_on_step_end_tensor_inputs=["latents", "denoised"],
    ).images  # fmt: skip

    assert [(step, timestep) for step, timestep, _ in told] == [(0, 999), (1, 679), (2, 339)]
    assert pipeline.num_timesteps == 3
    assert all(set(values) == {"latents", "denoised"} for _, _, values in told)
    assert all(values["latents"].shape == final.shape for _, _, values in told)
    assert torch.equal(told[-1][2]["latents"], final)


def test_interrupting(pipeline):
    """The image is the one reached so far; the next call runs whole again."""
    seen = []

    def stop(where, step, timestep, values):
        del timestep
        seen.append(values["denoised"])
        where._interrupt = step == 0

    options = {"generator": seeded(), "num_inference_steps": 3, "output_type": "latent"}
    found = pipeline(
        "a can", callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["denoised"],
        **options,
    ).images  # fmt: skip

    assert len(seen) == 1
    assert torch.equal(found, seen[0])
    assert pipeline.interrupt
    pipeline("a can", **FEW)
    assert not pipeline.interrupt


def test_progress_counts_network_calls():
    """A zigzagged step makes three."""
    pipeline, shown = build(), io.StringIO()
    pipeline.set_progress_bar_config(file=shown)
    pipeline("a can", zigzag_steps=1, **FEW)
    assert f"{STEPS + 2}/{STEPS + 2} " in shown.getvalue()


def test_offloading_changes_nothing():
    """Every network has a hook while it works, and none computes elsewhere."""
    pipeline = build()
    expected = pipeline("a can", generator=seeded(), **FEW).images
    pipeline.enable_model_cpu_offload(device="cpu")
    for name in pipeline.model_cpu_offload_seq.split("->"):
        assert hasattr(getattr(pipeline, name), "_hf_hook")

    hook = pipeline.unet._hf_hook
    assert torch.equal(pipeline("a can", generator=seeded(), **FEW).images, expected)
    # Set anew after a call, which takes the last network off the device.
    assert pipeline.unet._hf_hook is not hook


def test_half_precision_decodes_where_it_does_not_overflow():
    """An autoencoder whose settings say so is cast for its work alone."""
    pipeline, seen = build(), []
    decode = pipeline.vae.decode

    def spy(latent):
        seen.append(latent.dtype)
        return decode(latent)

    pipeline.to(torch.float16, silence_dtype_warnings=True)
    pipeline.vae.decode = spy
    pipeline._images(pipeline.parts, randn(1, 2, 4, 4, 4).float(), "pt", [0])
    assert seen == [torch.float32]
    assert pipeline.vae.dtype == torch.float16


@pytest.mark.parametrize("layout", ["diffusers", "released"])
def test_lora_weights(layout, tmp_path):
    """By the method that every SDXL pipeline has, and away again."""
    trained, pipeline = fresh_components().policy.unet, build()
    add_lora(trained, rank=2, alpha=2.0, seed=0)
    for index, value in enumerate(lora_parameters(trained).values()):
        value.data = 0.2 * randn(*value.shape, seed=index).float()
    write_lora_file(LoraWeights.of(trained), tmp_path / "lora.safetensors", layout=layout)
    plain = pipeline("a can", generator=seeded(), **FEW).images
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    with_lora = pipeline("a can", generator=seeded(), **FEW).images
    other = build()
    load_lora(other.unet, tmp_path / "lora.safetensors")

    assert not torch.equal(with_lora, plain)
    assert torch.equal(with_lora, other("a can", generator=seeded(), **FEW).images)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            lora_state_dict(other.unet).values(), lora_state_dict(trained).values(), strict=True
        )
    )
    with pytest.raises(ValueError, match="`policy` must hold no LoRA to be saved whole"):
        pipeline.save_pretrained(tmp_path / "whole")
    pipeline.unload_lora_weights()
    torch.testing.assert_close(pipeline("a can", generator=seeded(), **FEW).images, plain)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 20}, r"`height` must be a multiple of 8 .* got 20\. .* value is 16"),
        ({"width": 4}, r"`width` must be a multiple of 8 .* got 4\. .* value is 8"),
        ({"output_type": "jpg"}, "`output_type`"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "`callback_on_step_end_ten"),
        (
            {"generator": [torch.Generator()]},
            "`generator` must be one, or one per object, 2; got 1",
        ),
        ({"latents": torch.zeros(1, 2, 4, 4, 4)}, r"`latents` must have .* \(2, 2, 4, 4, 4\); got"),
        (
            {"noise": SeededNoise(seed=0, iteration=0, objects=[0], shape=(2, 4, 4, 4))},
            r"`noise` must have .* \(2, 2, 4, 4, 4\); got \(1, 2, 4, 4, 4\)",
        ),
        (
            {
                "noise": SeededNoise(seed=0, iteration=0, objects=[0, 1], shape=(2, 4, 4, 4)),
                "generator": torch.Generator(),
            },
            "`noise` must be given alone",
        ),
        (
            {"callback_on_step_end": lambda *_: {"latents": torch.zeros(1)}},
            "`callback_on_step_end` must return its tensors as they are",
        ),
    ],
)
def test_a_bad_argument_is_refused(pipeline, change, message):
    """Its name, the rule and the value."""
    with pytest.raises(ValueError, match=message):
        pipeline(PROMPTS[:2], **(FEW | change))


def test_another_scheduler_is_refused(pipeline):
    """Its steps are not this package's."""
    other = TextToMultiviewPipeline.from_components(
        pipeline.parts, scheduler=EulerDiscreteScheduler(), image_size=16, rig=rig(2)
    )
    with pytest.raises(ValueError, match="`scheduler` must be"):
        other("a can", **FEW)


def test_a_folder_without_a_schedule(saved, tmp_path):
    """What the network predicts is not guessed; one of another kind is not read as ours."""
    folder, pipeline = saved
    pipeline.parts.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json, or `scheduler`"):
        TextToMultiviewPipeline.from_pretrained(tmp_path)
    EulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(CheckpointError, match=r"LCMScheduler or DDIMScheduler; got 'Euler"):
        TextToMultiviewPipeline.from_pretrained(tmp_path)
    assert folder.is_dir()


def test_a_peft_folder_is_not_misread(tmp_path):
    """Its scale lies beside the tensors, where diffusers does not look."""
    pipeline = build()
    trained = fresh_components().policy.unet
    add_lora(trained, rank=2, alpha=4.0, seed=0)
    write_peft_files(LoraWeights.of(trained), tmp_path)
    with pytest.raises(ValueError, match="`source` must not be a PEFT folder"):
        pipeline.load_lora_weights(tmp_path)
    torch.save(lora_state_dict(trained), tmp_path / "pickled.bin")
    with pytest.raises(ValueError, match=r"`weight_name` must end .* got 'pickled"):
        pipeline.load_lora_weights(tmp_path, weight_name="pickled.bin")
