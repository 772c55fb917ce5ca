"""HyperScore: oracle, laws, gradients, golden values, errors."""

import hashlib
import json
import math
import weakref
import zlib
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.reward.hyperscore import HyperScore
from mvczigal_ref.reward.hyperscore_network import (
    AXES,
    HyperScoreNetwork,
    HyperScoreSize,
    build_hyperscore,
    to_published,
)
from mvczigal_ref.reward.preprocessing import IMAGENET_MEAN, IMAGENET_STD, preprocess
from mvczigal_ref.reward.protocols import JointViewScorer
from tests.compare import FP32, FP64, assert_equal_to
from tests.golden import GOLDEN, constants, provenance, tensors
from tests.unit.reward.hyperscore_by_hand import random_checkpoint, slow_scores

WORDS = tiny_tokenizer(length=20)
SIZE = HyperScoreSize(
    vision_width=128,
    vision_layers=2,
    patch_size=4,
    image_size=8,
    text_width=64,
    text_layers=2,
    embed_dim=32,
    vocab_size=len(WORDS),
    context_length=20,
)
PROMPTS = ("a red cube", "the blue ball with a green fin", "a red cube")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@cache
def checkpoint():
    return random_checkpoint(SIZE, seed=3)


def pictures(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=dtype)


VIEWS = pictures(3, 2, 3, 8, 8)


def fresh(**settings):
    network = build_hyperscore(checkpoint(), size=SIZE, source="file")
    return HyperScore(network, WORDS, **{"num_views": 2, **settings})


scorer = cache(fresh)


def padded_ids(prompts):
    ids = [WORDS(prompt).input_ids for prompt in prompts]
    return [[*row, *[0] * (SIZE.context_length - len(row))] for row in ids]


# -- oracle ------------------------------------------------------------------------------


@cache
def by_hand():
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in IMAGENET)
    return slow_scores(checkpoint(), (VIEWS.double() - mean) / std, padded_ids(PROMPTS))


def test_network_equals_a_slow_transcription():
    """In double precision, from a checkpoint in the published names."""
    network = build_hyperscore(checkpoint(), size=SIZE, source="file").double()
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in IMAGENET)
    pixels = (VIEWS.double() - mean) / std
    patches = network.encode_images(pixels.flatten(0, 1)).unflatten(0, (3, 2)).flatten(1, 2)
    actual = network(
        patches, *network.encode_text(torch.tensor(padded_ids(PROMPTS))), network.conditions()
    )

    assert by_hand().std(dim=0).min() > 0.01
    assert_equal_to(actual, by_hand(), FP64, axes=2)


def test_scorer_equals_a_slow_transcription():
    """From images and prompts, in single precision."""
    assert_equal_to(scorer().all_axes(VIEWS, PROMPTS), by_hand().float(), 2 * FP32, axes=2)


# -- laws --------------------------------------------------------------------------------


def test_permuting_objects_permutes_scores():
    """Scores belong to objects, whatever slice they were computed in."""
    order = [2, 0, 1]
    views, prompts = VIEWS[order], [PROMPTS[i] for i in order]
    judge = scorer(images_at_once=4)

    assert_equal_to(judge(views, prompts), judge(VIEWS, PROMPTS)[order], FP32, axes=1)


@pytest.mark.parametrize("images_at_once", [1, 2, 5])
def test_the_slices_change_rounding_alone(images_at_once):
    """An object's views stay together even where they are more than a slice."""
    parts = scorer(images_at_once=images_at_once).all_axes(VIEWS, PROMPTS)

    assert_equal_to(parts, scorer().all_axes(VIEWS, PROMPTS), FP32, axes=2)


def test_an_object_is_judged_by_its_own_views_and_prompt():
    """Another object's picture changes nothing; another prompt for one's own does."""
    judge = scorer()
    changed = VIEWS.clone()
    changed[1] = 0.5
    before = judge(VIEWS, PROMPTS)
    after = judge(changed, PROMPTS)
    told = judge(VIEWS, ["a can", *PROMPTS[1:]])

    assert_equal_to(after[[0, 2]], before[[0, 2]], FP32, axes=1)
    assert abs(after[1] - before[1]) > 1e-3
    assert abs(told[0] - before[0]) > 1e-3


def test_views_are_a_set():
    """Their order does not matter; each of them does."""
    judge = scorer()
    before = judge(VIEWS, PROMPTS)

    assert_equal_to(judge(VIEWS.flip(1), PROMPTS), before, FP32, axes=1)
    for view in range(2):
        changed = VIEWS.clone()
        changed[:, view] = 0.5

        assert (judge(changed, PROMPTS) - before).abs().min() > 1e-4


def test_a_prompt_is_encoded_once(monkeypatch):
    """Not once a view, and not once an object."""
    judge = scorer(images_at_once=2)
    seen = []
    original = judge.network.encode_text

    def spy(ids):
        seen.append(ids)
        return original(ids)

    monkeypatch.setattr(judge.network, "encode_text", spy)
    judge(VIEWS, PROMPTS)

    assert len(seen) == 1
    assert seen[0].tolist() == padded_ids(PROMPTS[:2])


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_is_chosen_by_name(axis):
    """The four come in the published order, and `overall` is what is meant unless said."""
    table = scorer().all_axes(VIEWS, PROMPTS)

    assert torch.equal(scorer(axis=axis)(VIEWS, PROMPTS), table[:, AXES.index(axis)])
    assert AXES == ("alignment", "geometry", "texture", "overall")
    assert torch.equal(scorer()(VIEWS, PROMPTS), table[:, 3])


def test_axes_of_one_network_run_it_once_for_the_same_images(monkeypatch):
    """Not for other prompts, for images that were changed, nor for equal ones elsewhere."""
    one, passes = fresh(), []
    other, prompts = one.on("geometry"), list(PROMPTS)
    all_axes = HyperScore.all_axes
    monkeypatch.setattr(
        HyperScore, "all_axes", lambda self, *asked: passes.append(1) or all_axes(self, *asked)
    )
    images, geometry = VIEWS.clone(), fresh().on("geometry")(VIEWS, PROMPTS)
    passes.clear()

    first = one(images, prompts)
    assert torch.equal(other(images, prompts), geometry)
    one(images, prompts).zero_()  # whoever gets scores may write on them
    assert torch.equal(one(images, prompts), first)
    assert passes == [1]
    passes.clear()
    other(images.clone(), prompts)
    other(images, prompts)
    one(images, prompts[:1] * 3)
    one(images, prompts)
    images[0, 0] = 0.5
    changed = one(images, prompts)
    assert passes == [1] * 5
    assert abs(changed[0] - first[0]) > 1e-3
    assert other.network is one.network
    assert (one.axis, other.axis) == ("overall", "geometry")
    with pytest.raises(ValueError, match=r"`axis` must .*; got 'beauty'"):
        one.on("beauty")


def test_the_last_scores_keep_no_images():
    """They go with their images, and inference mode, which counts no change, is not remembered."""
    judge, images = fresh(), VIEWS.clone()
    judge(images, PROMPTS)
    gone = weakref.ref(images)
    del images
    assert gone() is None
    with torch.inference_mode():
        images = VIEWS.clone()
        before = judge(images, PROMPTS)
        images[:, 0] = 0.5
        assert not torch.equal(judge(images, PROMPTS), before)


def test_a_picture_of_another_shape_is_stretched():
    """Nothing is cut off."""
    wide = pictures(3, 2, 3, 12, 20)
    stretched = interpolate(wide.flatten(0, 1), size=(8, 8), mode="bilinear", antialias=True)

    assert torch.equal(scorer()(wide, PROMPTS), scorer()(stretched.unflatten(0, (3, 2)), PROMPTS))


def test_half_precision_runs_the_towers_alone():
    """What follows them stays in single precision, and so does the result."""
    judge = scorer(dtype=torch.bfloat16)
    full = scorer().all_axes(VIEWS, PROMPTS)
    half = judge.all_axes(VIEWS, PROMPTS)

    assert half.dtype == torch.float32
    assert {p.dtype for p in judge.network.clip.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in judge.network.hypernet.parameters()} == {torch.float32}
    # Bfloat16 keeps 8 bits: some units of 1 in 256 after two layers.
    assert 0.0 < (half - full).abs().max() / full.abs().max() < 0.05


def test_half_precision_images_are_resized_in_single():
    """As if they had been given so."""
    half = VIEWS.half()

    assert torch.equal(scorer()(half, PROMPTS), scorer()(half.float(), PROMPTS))


def test_the_same_call_gives_the_same_bits():
    """Nothing is drawn, when loading or when scoring."""
    before = torch.get_rng_state()
    first, second = (fresh()(VIEWS, PROMPTS) for _ in range(2))

    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_all_of_it_moves():
    """Parameters and buffers follow `to`, which returns the scorer."""
    judge = fresh()
    held = [*judge.network.named_parameters(), *judge.network.named_buffers()]

    assert judge.to("meta") is judge
    moved = [*judge.network.named_parameters(), *judge.network.named_buffers()]
    assert len(moved) == len(held)
    assert {value.device.type for _, value in moved} == {"meta"}


def test_is_a_joint_view_scorer():
    """One score an object."""
    assert isinstance(scorer(), JointViewScorer)
    assert scorer()(VIEWS, PROMPTS).shape == (3,)


@pytest.fixture
def folder(tmp_path):
    WORDS.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "whole"), [("model.pth", False), ("model.safetensors", True)])
def test_a_published_file_gives_the_scorer(folder, name, whole):
    """By its own path or by its folder's."""
    if name == "model.pth":
        torch.save(checkpoint(), folder / name)
    else:
        save_file({key: value.clone() for key, value in checkpoint().items()}, folder / name)
    source = folder / name if whole else folder
    judge = HyperScore.load(source, tokenizer=folder, size=SIZE, num_views=2)

    assert torch.equal(judge(VIEWS, PROMPTS), scorer()(VIEWS, PROMPTS))


# -- gradients ---------------------------------------------------------------------------


def test_no_graph_is_kept():
    """Rewards are numbers, and the judge does not learn."""
    judge = scorer()

    assert not judge(VIEWS.clone().requires_grad_(), PROMPTS).requires_grad
    assert not any(p.requires_grad for p in judge.network.parameters())
    assert not judge.network.training


# -- golden parity -----------------------------------------------------------------------


def listed(name):
    """Read a list of published names, if it is the one whose provenance is written down."""
    content = (GOLDEN / f"{name}.json").read_bytes()
    entry = provenance("hyperscore")[f"{name}.json"]
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    return json.loads(content)["entries"]


def ruled(name, shape, seed):
    """Follow the rule by which the reference's weights were drawn."""
    source = name.replace("text_encoder.", "clip_model.")
    raw = np.random.PCG64(zlib.crc32(source.encode()) + seed).random_raw(math.prod(shape))
    uniform = (raw >> 11) * 2.0**-53 - 0.5 if shape else np.array((raw >> 11) * 2.0**-53 - 0.5)
    kind = source.split(".")[-2] if source.endswith(".weight") else ""
    if kind in ("ln_1", "ln_2", "ln_pre", "ln_post", "ln_final"):
        values = 1 + 0.2 * uniform
    elif len(shape) > 1 and not any(part in source for part in ("embedding", "ctx", "token_")):
        values = uniform * math.sqrt(12 / math.prod(shape[1:]))
    else:
        values = 0.2 * uniform
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def test_golden_forward():
    """Images of 48 pixels, four axes: the released code's scores."""
    note, golden = (
        constants("hyperscore", "hyperscore_forward"),
        tensors("hyperscore", "hyperscore_forward"),
    )
    drawn = {
        name: ruled(name, tuple(shape), note["seed"])
        for name, shape in listed("hyperscore_small_state_dict").items()
    }
    size = HyperScoreSize(vision_width=64, vision_layers=2, text_width=64, text_layers=2)
    ids = dict(zip(note["prompts"], golden["tokens"].tolist(), strict=True))
    # Without its padding, as a tokenizer would return it.
    words = {text.lower(): row[: row.index(49407) + 1] for text, row in ids.items()}
    judge = HyperScore(
        build_hyperscore(drawn, size=size, source="golden"),
        lambda text: SimpleNamespace(input_ids=words[text]),
        num_views=note["num_views"],
    )
    images = golden["images"].unflatten(0, (2, note["num_views"]))
    expected = golden["scores"].T

    # Single precision leaves some 1e-6 on either side, seen against double; one score is near
    # zero and keeps what cancelled, so an object's largest score is the measure.
    assert_equal_to(judge.all_axes(images, note["prompts"]), expected, 2e-5, axes=1)


def test_golden_preprocessing():
    """Resized by torchvision's antialiased bilinear filter, without a crop."""
    golden = tensors("hyperscore", "hyperscore_forward")
    pixels = preprocess(
        golden["images"][:1], size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop=False,
        interpolation="bilinear",
    )  # fmt: skip

    assert_equal_to(pixels, golden["preprocessed_first"], FP32, axes=3)


def test_golden_conditions_end_where_the_learned_prompts_do():
    """Name, learned tokens and full stop: the end of text is token 16 for every axis."""
    ids = tensors("hyperscore", "hyperscore_forward")["tokenized_conditions"]

    assert ids.argmax(dim=-1).tolist() == [16, 16, 16, 16]


def test_golden_names_at_full_size():
    """Every published tensor, name by name and shape by shape."""
    with torch.device("meta"):
        network = HyperScoreNetwork(HyperScoreSize())
    names = {name: list(value.shape) for name, value in to_published(network.state_dict()).items()}

    assert names == listed("names_hyperscore")


# -- errors ------------------------------------------------------------------------------


def test_names_every_tensor_that_does_not_fit():
    """Missing, left over and misshapen, by their names in the file."""
    broken = dict(checkpoint())
    del broken["text_encoder.ln_final.bias"]
    broken["fc_extra.weight"] = torch.zeros(1)
    broken["clip_model.visual.proj"] = broken["clip_model.visual.proj"].T
    with pytest.raises(CheckpointError) as caught:
        build_hyperscore(broken, size=SIZE, source="model.pth")

    for fault in (
        "`model.pth`",
        "missing text_encoder.ln_final.bias",
        "unexpected fc_extra.weight",
        "clip_model.visual.proj of shape (32, 128), not (128, 32)",
    ):
        assert fault in str(caught.value)


def test_rejects_two_text_towers():
    """The published file holds one twice; the released code would run the second."""
    name = "text_encoder.ln_final.bias"
    torn = checkpoint() | {name: checkpoint()[name] + 1.0}
    with pytest.raises(
        CheckpointError, match=rf"copies of the text tower; they differ in {name}\."
    ):
        build_hyperscore(torn, size=SIZE, source="model.pth")


@pytest.mark.parametrize("name", ["", "model.pth"])
def test_says_where_an_absent_checkpoint_is_published(tmp_path, name):
    """It is on no hub."""
    with pytest.raises(CheckpointError, match=r"`checkpoint` must .*; got .*MATE-3D"):
        HyperScore.load(tmp_path / name)


@pytest.mark.parametrize("num_views", [1, 3])
def test_rejects_another_number_of_views(num_views):
    """A score of fewer views is another quantity."""
    with pytest.raises(
        ValueError, match=rf"`images` must show 2 views per object; got {num_views}"
    ):
        scorer()(pictures(3, num_views, 3, 8, 8), PROMPTS)


@pytest.mark.parametrize("prompts", [PROMPTS[:2], [], "abc"])
def test_rejects_anything_but_a_prompt_an_object(prompts):
    """A bare string of three letters is not three prompts."""
    with pytest.raises(ValueError, match=r"`prompts` must "):
        scorer()(VIEWS, prompts)


def test_rejects_a_prompt_that_would_be_cut():
    """Sixteen words and the two ends fit; eighteen and the ends are 20; one more does not."""
    fits, not_quite = " ".join(["red"] * 18), " ".join(["red"] * 19)

    assert scorer()(VIEWS[:1], [fits]).isfinite().all()
    with pytest.raises(ValueError, match=r"`prompts` must fit in 20 tokens; got 21 for 'red red"):
        scorer()(VIEWS[:1], [not_quite])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("axis", "beauty"),
        ("num_views", 0),
        ("images_at_once", 0),
        ("dtype", torch.float16),
    ],
)
def test_rejects_a_setting_out_of_range(name, value):
    """Each by its name."""
    with pytest.raises(ValueError, match=rf"`{name}` must .*; got"):
        fresh(**{name: value})
