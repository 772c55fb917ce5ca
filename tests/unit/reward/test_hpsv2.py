"""`reward.hpsv2`: oracle, laws, errors."""

import pytest
import torch
from transformers import CLIPModel

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.reward.convert import convert_checkpoint
from mvczigal_ref.reward.hpsv2 import HpsV2, vit_h_14
from mvczigal_ref.reward.openai_clip import to_openai
from mvczigal_ref.reward.protocols import PerViewScorer
from tests.unit.reward import slow_transformers as slow
from tests.unit.reward import tiny_files as tiny

# float32 against float64 over two transformer layers; scores are cosines.
CLOSE = 2e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny HPSv2."""
    place = tmp_path_factory.mktemp("hps")
    tiny.write_hps(place)
    return place


def load(folder, **settings):
    """Its scorer."""
    return HpsV2.from_pretrained(folder, tokenizer=folder, config=tiny.clip_config(), **settings)


@pytest.fixture(scope="module")
def scorer(folder):
    """The same, once."""
    return load(folder)


def oracle(images, prompts):
    """Score one normalised view after another; weights went through half precision."""
    tensors = {name: value.half() for name, value in tiny.clip_tensors().items()}
    table = []
    for views, prompt in zip(images, prompts, strict=True):
        ids, end = tiny.clip_ids(prompt)
        settings = {"end": end, "activation": "gelu", **tiny.HEADS}
        table.append([slow.clip_cosine(tensors, view, ids, **settings) for view in views])
    return torch.tensor(table)


# -- oracle ------------------------------------------------------------------------------


def test_equals_open_clip_written_out(scorer):
    """From a file in OpenCLIP's names to the cosine, head by head."""
    images = tiny.views()

    score = scorer(images, tiny.PROMPTS)

    pixels = [[slow.normalised(view) for view in views] for views in images]
    expected = oracle(pixels, tiny.PROMPTS)
    assert torch.allclose(score, expected, rtol=0.0, atol=CLOSE)
    assert expected.std() > 0.01
    assert isinstance(scorer, PerViewScorer)


@pytest.mark.parametrize(("height", "width"), [(14, 28), (28, 14), (13, 28)])
def test_the_longer_side_fits_and_the_rest_is_black(scorer, height, width):
    """Centred, the odd row below or to the right, black before it is normalised."""
    images = tiny.views(2, 1)[..., :height, :width]
    canvas = torch.zeros(2, 1, 3, 28, 28)
    top, left = (28 - height) // 2, (28 - width) // 2
    canvas[..., top : top + height, left : left + width] = images

    pixels = [[slow.normalised(view) for view in views] for views in canvas]
    expected = oracle(pixels, tiny.PROMPTS)
    assert torch.allclose(scorer(images, tiny.PROMPTS), expected, rtol=0.0, atol=CLOSE)
    # Its features are of the same pixels.
    found, whole = scorer.image_features(images), scorer.image_features(canvas)
    assert torch.allclose(found, whole, rtol=0.0, atol=CLOSE)


def test_bytes_are_rounded_before_resizing_and_not_after(folder, scorer):
    """As the released code does it: a colour between two bytes goes to the nearer one."""
    images = torch.rand(2, 1, 3, 40, 52, generator=torch.Generator().manual_seed(5))
    rounded = (images * 255.0).round() / 255.0
    smooth = load(folder, round_to_bytes=False)

    score = scorer(images, tiny.PROMPTS)
    assert torch.equal(score, smooth(rounded, tiny.PROMPTS))
    assert not torch.equal(score, smooth(images, tiny.PROMPTS))


# -- laws --------------------------------------------------------------------------------


def test_permuting_objects_permutes_scores_and_views_are_apart(scorer):
    """With their prompts; one view moves one entry."""
    images = tiny.views()
    before = scorer(images, tiny.PROMPTS)
    other = images.clone()
    other[0, 1] = tiny.views(seed=9)[0, 0]

    swapped = scorer(images.flip(0), tiny.PROMPTS[::-1])
    assert torch.allclose(swapped, before.flip(0), rtol=0.0, atol=CLOSE)
    moved = (scorer(other, tiny.PROMPTS) - before).abs() > 1e-4
    assert moved.nonzero().tolist() == [[0, 1]]


def test_a_file_is_named_or_found_and_a_converted_one_goes_first(tmp_path, folder, scorer):
    """All three ways are the same scorer."""
    images = tiny.views()
    source = folder / "HPS_v2.1_compressed.pt"
    convert_checkpoint(source, tmp_path / "HPS_v2.1_compressed.safetensors")
    (tmp_path / source.name).write_bytes(b"not read")

    for place in (source, tmp_path, tmp_path / "HPS_v2.1_compressed.safetensors"):
        other = HpsV2.from_pretrained(place, tokenizer=folder, config=tiny.clip_config())
        assert torch.equal(other(images, tiny.PROMPTS), scorer(images, tiny.PROMPTS))
    assert scorer.model.dtype == torch.float32


def test_full_size_names_and_shapes_are_the_published_ones():
    """OpenCLIP's ViT-H-14, and PickScore's file, which is the same network's."""
    with torch.device("meta"):
        state = CLIPModel(vit_h_14()).state_dict()
    shapes = slow.open_clip_shapes(
        text=(1024, 24),
        vision=(1280, 32),
        features=1024,
        vocab=49408,
        length=77,
        patch=14,
        tokens=257,
    )

    ours = {name: tuple(value.shape) for name, value in to_openai(state).items()}
    assert ours == shapes
    assert sum(value.numel() for value in state.values()) == 986_109_441
    published = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    pickscore = slow.as_transformers(published, text_layers=24, vision_layers=32)
    assert {name: value.shape for name, value in pickscore.items()} == {
        name: value.shape for name, value in state.items()
    }


def test_full_size_is_the_default():
    """Heads and activation, which no shape shows."""
    config = vit_h_14()

    for tower in (config.vision_config, config.text_config):
        assert (tower.num_attention_heads, tower.hidden_act) == (16, "gelu")
        assert tower.layer_norm_eps == 1e-5
    assert config.text_config.eos_token_id == 49407


# -- errors ------------------------------------------------------------------------------


def test_a_cut_or_foreign_file_is_refused_by_its_own_names(tmp_path, folder):
    """Every tensor that is missing, left over or misshapen."""
    tensors = tiny.clip_tensors()
    del tensors["visual.proj"]
    tensors["score_predictor.weight"] = torch.zeros(1)
    tensors["transformer.resblocks.1.attn.in_proj_weight"] = torch.zeros(95, 32)
    tiny.write_hps(tmp_path, tensors=tensors)

    with pytest.raises(CheckpointError) as caught:
        HpsV2.from_pretrained(tmp_path, tokenizer=folder, config=tiny.clip_config())
    message = str(caught.value)
    assert "missing visual.proj" in message
    assert "unexpected score_predictor.weight" in message
    assert "transformer.resblocks.1.attn.in_proj_weight of shape (95, 32), not (96, 32)" in message
    assert message.count(";") == 2


def test_an_absent_file_is_told_how_to_get(tmp_path):
    """What, from where and how large."""
    command = r"`hf download xswu/HPSv2 HPS_v2.1_compressed.pt` \(1.97 GB\)"
    with pytest.raises(CheckpointError, match=command):
        HpsV2.from_pretrained(tmp_path)


def test_the_published_tokenizer_is_the_default(folder):
    """OpenCLIP's own."""
    with pytest.raises(CheckpointError, match=r"hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        HpsV2.from_pretrained(folder, config=tiny.clip_config())
