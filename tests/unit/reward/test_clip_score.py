"""`reward.clip_score`: oracle, laws, gradients, errors."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.evaluation.watch import object_features
from mvczigal_ref.reward.clip_score import ClipScore, PickScore
from mvczigal_ref.reward.convert import convert_checkpoint
from mvczigal_ref.reward.preprocessing import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, preprocess
from mvczigal_ref.reward.protocols import PerViewScorer
from tests.unit.reward import slow_transformers as slow
from tests.unit.reward import tiny_files as tiny

# float32 against float64 over two transformer layers; scores are cosines.
CLOSE = 2e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP in transformers' layout."""
    place = tmp_path_factory.mktemp("clip")
    tiny.write_clip(place)
    return place


@pytest.fixture(scope="module")
def scorer(folder):
    """Its scorer."""
    return ClipScore.from_pretrained(folder, tokenizer=folder)


def oracle(tensors, images, prompts, activation="gelu"):
    """Score one view after another."""
    table = []
    for views, prompt in zip(images, prompts, strict=True):
        ids, end = tiny.clip_ids(prompt)
        table.append(
            [
                slow.clip_cosine(tensors, view, ids, end=end, activation=activation, **tiny.HEADS)
                for view in views
            ]
        )
    return torch.tensor(table)


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ClipScore, PickScore])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_equals_clip_written_out(tmp_path, kind, activation):
    """From a file in the published names to the cosine, head by head."""
    tensors = tiny.write_clip(tmp_path, activation=activation)
    images = tiny.views()

    score = kind.from_pretrained(tmp_path, tokenizer=tmp_path)(images, tiny.PROMPTS)

    pixels = [[slow.normalised(view) for view in views] for views in images]
    expected = oracle(tensors, pixels, tiny.PROMPTS, activation)
    assert torch.allclose(score, expected, rtol=0.0, atol=CLOSE)
    # Otherwise an error would not show.
    assert expected.std() > 0.01


def test_features_are_clip_s_of_each_view(folder):
    """Of length one, whatever the chunk; what the distance between samples is taken of."""
    images, settings = tiny.views(), {"vision_heads": 3, "activation": "gelu"}
    scorer = PickScore.from_pretrained(folder, tokenizer=folder, chunk_size=4)

    found = scorer.image_features(images.clone().requires_grad_())

    pixels = [slow.normalised(view) for view in images.flatten(0, 1)]
    expected = [slow.clip_seen(tiny.clip_tensors(), view, **settings) for view in pixels]
    assert found.shape == (2, 3, 24)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    expected = torch.stack(expected).float().unflatten(0, (2, 3))
    assert torch.allclose(found, expected, rtol=0.0, atol=CLOSE)
    assert torch.allclose(found.norm(dim=-1), torch.ones(2, 3), rtol=0.0, atol=CLOSE)
    assert torch.equal(object_features(images, [torch.mean, scorer]), found.flatten(1))


def test_images_are_cropped_and_normalised_as_clip_was_trained(folder, scorer):
    """The shorter side fits; bytes are rounded before and after."""
    images = torch.rand(2, 1, 3, 60, 44, generator=torch.Generator().manual_seed(3))
    tensors = tiny.clip_tensors()
    settings = {"size": tiny.SIDE, "mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}

    rounded = preprocess(images, round_to_bytes=True, **settings)
    smooth = preprocess(images, **settings)
    unrounded = ClipScore.from_pretrained(folder, tokenizer=folder, round_to_bytes=False)

    expected = oracle(tensors, rounded, tiny.PROMPTS)
    assert torch.allclose(scorer(images, tiny.PROMPTS), expected, rtol=0.0, atol=CLOSE)
    expected = oracle(tensors, smooth, tiny.PROMPTS)
    assert torch.allclose(unrounded(images, tiny.PROMPTS), expected, rtol=0.0, atol=CLOSE)
    assert not torch.allclose(rounded, smooth, rtol=0.0, atol=1e-4)


def test_a_long_prompt_is_cut_off(scorer):
    """Sixteen tokens, the end of text among them."""
    images = tiny.views(1)
    long = ["a red cube " * 10]
    cut = [" ".join(["a", "red", "cube"] * 4 + ["a", "red"])]

    assert torch.equal(scorer(images, long), scorer(images, cut))
    pixels = [[slow.normalised(view) for view in images[0]]]
    expected = oracle(tiny.clip_tensors(), pixels, cut)
    assert torch.allclose(scorer(images, long), expected, rtol=0.0, atol=CLOSE)


# -- laws --------------------------------------------------------------------------------


def test_is_a_per_view_scorer(scorer):
    """One number a view, in float32, the same every time."""
    score = scorer(tiny.views(), tiny.PROMPTS)

    assert isinstance(scorer, PerViewScorer)
    assert score.shape == (2, 3)
    assert score.dtype == torch.float32
    assert torch.equal(score, scorer(tiny.views(), tiny.PROMPTS))
    assert score.abs().max() <= 1.0


def test_permuting_objects_permutes_scores(scorer):
    """With their prompts."""
    images, prompts = tiny.views(3), [*tiny.PROMPTS, "a green can"]
    order = [2, 0, 1]

    permuted = scorer(images[order], [prompts[i] for i in order])

    assert torch.allclose(permuted, scorer(images, prompts)[order], rtol=0.0, atol=CLOSE)


def test_a_view_and_a_prompt_change_their_own_scores_alone(scorer):
    """One entry for a view, one row for a prompt."""
    images = tiny.views()
    before = scorer(images, tiny.PROMPTS)
    other = images.clone()
    other[1, 2] = tiny.views(seed=9)[0, 0]

    moved = (scorer(other, tiny.PROMPTS) - before).abs() > 1e-4
    assert moved.nonzero().tolist() == [[1, 2]]
    moved = (scorer(images, [tiny.PROMPTS[0], "a green can"]) - before).abs() > 1e-4
    assert moved.tolist() == [[False] * 3, [True] * 3]


def test_each_distinct_prompt_is_encoded_once(scorer):
    """Not once a view, not once an object."""
    rows = []
    hook = scorer.model.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    scorer(tiny.views(4), ["a red cube", "a blue ball", "a red cube", "a red cube"])
    hook.remove()

    assert rows == [2]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_chunks_change_memory_alone(folder, scorer, size):
    """No more rows at once than asked for."""
    seen = []
    other = ClipScore.from_pretrained(folder, tokenizer=folder, chunk_size=size)
    other.model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    score = other(tiny.views(), tiny.PROMPTS)

    assert torch.allclose(score, scorer(tiny.views(), tiny.PROMPTS), rtol=0.0, atol=CLOSE)
    assert seen == {1: [1] * 6, 4: [4, 2], 100: [6]}[size]


def test_bfloat16_is_near_and_its_cosine_is_not_rounded(folder, scorer):
    """The network rounds to eight bits; what it returns is float32."""
    half = ClipScore.from_pretrained(folder, tokenizer=folder, dtype=torch.bfloat16)
    score = half(tiny.views(), tiny.PROMPTS)

    assert half.model.dtype == torch.bfloat16
    assert score.dtype == torch.float32
    # Eight bits a number through two layers of random weights.
    assert torch.allclose(score, scorer(tiny.views(), tiny.PROMPTS), rtol=0.0, atol=0.05)
    assert not torch.equal(score, score.bfloat16().float())


def test_images_of_any_floating_type_are_taken(scorer):
    """Half precision is widened before it is resized."""
    images = tiny.views()
    exact = (images * 2).round() / 2

    score = scorer(exact, tiny.PROMPTS)
    assert torch.equal(scorer(exact.bfloat16(), tiny.PROMPTS), score)
    assert torch.allclose(scorer(exact.double(), tiny.PROMPTS).float(), score, rtol=0.0, atol=CLOSE)


def test_moves_in_place(folder):
    """To a device without memory and no further: the network went."""
    scorer = ClipScore.from_pretrained(folder, tokenizer=folder)

    assert scorer.to("cpu") is scorer
    assert scorer.to("meta").model.device.type == "meta"


def test_loading_leaves_the_global_generator(folder):
    """No weight is drawn that the file then replaces."""
    state = torch.random.get_rng_state()
    ClipScore.from_pretrained(folder, tokenizer=folder)

    assert torch.equal(torch.random.get_rng_state(), state)


def test_old_files_are_read(tmp_path, folder, scorer):
    """A pickle of tensors, once converted, with the position indices that files once held."""
    tiny.write_clip(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.zeros(1, 16, dtype=torch.int64)
    tensors["vision_model.embeddings.position_ids"] = torch.zeros(1, 17, dtype=torch.int64)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    command = r"convert-reward .*pytorch_model\.bin .*pytorch_model\.safetensors`"
    with pytest.raises(CheckpointError, match=command):
        ClipScore.from_pretrained(tmp_path, tokenizer=folder)
    convert_checkpoint(tmp_path / "pytorch_model.bin")

    old = ClipScore.from_pretrained(tmp_path, tokenizer=folder)

    images = tiny.views()
    assert torch.equal(old(images, tiny.PROMPTS), scorer(images, tiny.PROMPTS))


# -- gradients ---------------------------------------------------------------------------


def test_no_gradient_flows(scorer):
    """Neither to the images nor to the weights."""
    images = tiny.views().requires_grad_()

    assert not scorer(images, tiny.PROMPTS).requires_grad
    assert not any(weight.requires_grad for weight in scorer.model.parameters())


# -- errors ------------------------------------------------------------------------------


def test_a_cut_or_foreign_file_is_refused_by_name(tmp_path, folder):
    """Every tensor that is missing, left over or misshapen."""
    tiny.write_clip(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["visual_projection.weight"]
    tensors["text_model.foreign"] = torch.zeros(1)
    tensors["text_model.final_layer_norm.bias"] = torch.zeros(31)
    save_file(tensors, path)

    with pytest.raises(CheckpointError) as caught:
        ClipScore.from_pretrained(tmp_path, tokenizer=folder)
    message = str(caught.value)
    assert str(path) in message
    assert "missing visual_projection.weight" in message
    assert "unexpected text_model.foreign" in message
    assert "text_model.final_layer_norm.bias of shape (31,), not (32,)" in message
    assert message.count(";") == 2

    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="must be a whole safetensors file"):
        ClipScore.from_pretrained(tmp_path, tokenizer=folder)


def test_another_models_configuration_is_refused(tmp_path, folder):
    """By what it says that it is."""
    tiny.write_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))

    with pytest.raises(CheckpointError, match=r"must describe a `clip` model; got 'bert'"):
        ClipScore.from_pretrained(tmp_path, tokenizer=folder)


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        (ClipScore, r"`hf download openai/clip-vit-large-patch14 model.safetensors` \(1.71 GB\)"),
        (PickScore, r"`hf download yuvalkirstain/PickScore_v1 model.safetensors` \(3.94 GB\)"),
    ],
)
def test_an_absent_file_is_told_how_to_get(tmp_path, kind, command):
    """What, from where and how large; nothing is downloaded unasked."""
    with pytest.raises(CheckpointError, match=command + r", or allow it with `local_files_only"):
        kind.from_pretrained(tmp_path)


def test_the_published_tokenizer_is_the_default(folder):
    """It is looked for where the authors took it from."""
    with pytest.raises(CheckpointError, match=r"hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        PickScore.from_pretrained(folder)


@pytest.mark.parametrize("prompts", [["a"], ["a", "b", "c"], "ab", []])
def test_rejects_anything_but_one_prompt_an_object(scorer, prompts):
    """A bare string has a length too."""
    with pytest.raises(ValueError, match=r"`prompts` must be one text per object, of 2 objects"):
        scorer(tiny.views(), prompts)


def test_rejects_settings_out_of_range(folder):
    """Named, with what to do."""
    with pytest.raises(ValueError, match=r"`chunk_size` must be positive; got 0"):
        ClipScore.from_pretrained(folder, tokenizer=folder, chunk_size=0)
    with pytest.raises(ValueError, match=r"`dtype` must be torch.float32 or torch.bfloat16"):
        ClipScore.from_pretrained(folder, tokenizer=folder, dtype=torch.float16)
