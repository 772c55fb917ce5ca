"""`reward.image_reward`: oracle, laws, gradients, errors."""

import json

import pytest
import torch

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.reward.convert import convert_checkpoint
from mvczigal_ref.reward.image_reward import ImageReward
from mvczigal_ref.reward.preprocessing import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, preprocess
from mvczigal_ref.reward.protocols import PerViewScorer
from tests.unit.reward import slow_transformers as slow
from tests.unit.reward import tiny_files as tiny

# float32 against float64, relative to scores of order one to ten.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny ImageReward."""
    place = tmp_path_factory.mktemp("image_reward")
    tiny.write_image_reward(place)
    return place


def load(source, tokenizer, **settings):
    """Its scorer."""
    return ImageReward.from_pretrained(
        source, tokenizer=tokenizer, vision=tiny.blip_config(), **settings
    )


@pytest.fixture(scope="module")
def scorer(folder):
    """The same, once."""
    return load(folder, folder)


def oracle(images, prompts):
    """Score one normalised view after another."""
    tensors = tiny.image_reward_tensors()
    table = []
    for views, prompt in zip(images, prompts, strict=True):
        words = [tiny.BERT[word] for word in prompt.split()][:33]
        ids = [tiny.BERT["[CLS]"], *words, tiny.BERT["[SEP]"]]
        heads = {"vision_heads": 2, "text_heads": 3}
        table.append([slow.image_reward(tensors, view, ids, **heads) for view in views])
    return torch.tensor(table)


# -- oracle ------------------------------------------------------------------------------


def test_equals_blip_and_its_head_written_out(scorer):
    """From a file in the published names to the standardised score, head by head."""
    images = tiny.views()

    score = scorer(images, tiny.PROMPTS)

    pixels = [[slow.normalised(view) for view in views] for views in images]
    expected = oracle(pixels, tiny.PROMPTS)
    assert torch.allclose(score, expected, **CLOSE)
    assert expected.std() > 0.1
    assert isinstance(scorer, PerViewScorer)


def test_images_are_cropped_and_normalised_as_the_released_code_does(folder, scorer):
    """The shorter side fits; bytes are rounded before and after."""
    images = torch.rand(2, 1, 3, 60, 44, generator=torch.Generator().manual_seed(3))
    settings = {"size": tiny.SIDE, "mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}

    expected = oracle(preprocess(images, round_to_bytes=True, **settings), tiny.PROMPTS)
    assert torch.allclose(scorer(images, tiny.PROMPTS), expected, **CLOSE)
    smooth = load(folder, folder, round_to_bytes=False)
    expected = oracle(preprocess(images, **settings), tiny.PROMPTS)
    assert torch.allclose(smooth(images, tiny.PROMPTS), expected, **CLOSE)


def test_the_first_35_tokens_count(scorer):
    """Both ends among them."""
    images = tiny.views(1, 1)
    words = ["a", "red", "cube"] * 11

    score = scorer(images, [" ".join([*words, "blue", "ball"])])

    assert torch.equal(score, scorer(images, [" ".join(words)]))
    pixels = [[slow.normalised(images[0, 0])]]
    assert torch.allclose(score, oracle(pixels, [" ".join(words)]), **CLOSE)
    assert not torch.allclose(score, scorer(images, [" ".join(words[:-1])]), **CLOSE)


# -- laws --------------------------------------------------------------------------------


def test_permuting_objects_permutes_scores_and_views_are_apart(scorer):
    """With their prompts; one view moves one entry, one prompt one row."""
    images = tiny.views()
    before = scorer(images, tiny.PROMPTS)
    other = images.clone()
    other[0, 1] = tiny.views(seed=9)[0, 0]

    assert before.shape == (2, 3)
    assert before.dtype == torch.float32
    assert torch.equal(scorer(images, tiny.PROMPTS), before)
    swapped = scorer(images.flip(0), tiny.PROMPTS[::-1])
    assert torch.allclose(swapped, before.flip(0), **CLOSE)
    moved = (scorer(other, tiny.PROMPTS) - before).abs() > 1e-3
    assert moved.nonzero().tolist() == [[0, 1]]
    moved = (scorer(images, [tiny.PROMPTS[0], "a white cube"]) - before).abs() > 1e-3
    assert moved.tolist() == [[False] * 3, [True] * 3]


def test_a_prompt_is_cut_into_tokens_once(folder):
    """Not once a view; its encoder reads it again, for it looks at each view while it reads."""
    scorer, seen = load(folder, folder), []
    tokenizer = scorer.tokenizer
    scorer.tokenizer = lambda texts, **more: seen.append(texts) or tokenizer(texts, **more)
    scorer(tiny.views(), tiny.PROMPTS)

    assert seen == [tiny.PROMPTS]


@pytest.mark.parametrize("size", [1, 4])
def test_chunks_change_memory_alone(folder, scorer, size):
    """No more rows at once than asked for; each keeps its prompt."""
    seen = []
    other = load(folder, folder, chunk_size=size)
    other.network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))

    score = other(tiny.views(), tiny.PROMPTS)

    assert torch.allclose(score, scorer(tiny.views(), tiny.PROMPTS), **CLOSE)
    assert seen == {1: [1] * 6, 4: [4, 2]}[size]


def test_bfloat16_is_near_and_its_head_is_not_rounded(folder, scorer):
    """The encoders round to eight bits; the head computes in float32."""
    half = load(folder, folder, dtype=torch.bfloat16)
    exact, score = (one(tiny.views(), tiny.PROMPTS) for one in (scorer, half))

    assert half.network.text.dtype == torch.bfloat16
    assert {weight.dtype for weight in half.network.head.parameters()} == {torch.float32}
    # Eight bits a number through four layers of random weights, against a deviation above 0.1.
    assert (score - exact).abs().max() < exact.abs().max() * 0.1
    assert not torch.equal(score, score.bfloat16().float())
    assert score.dtype == torch.float32


def test_a_converted_file_goes_first_and_a_file_may_be_named(tmp_path, folder, scorer):
    """The contrastive heads and the position indices stay unread."""
    images = tiny.views()
    convert_checkpoint(folder / "ImageReward.pt", tmp_path / "ImageReward.safetensors")
    (tmp_path / "med_config.json").write_text(json.dumps(tiny.MED))
    (tmp_path / "ImageReward.pt").write_bytes(b"not read")
    bare = tmp_path / "bare"
    bare.mkdir()
    tiny.write_image_reward(bare, extra=False)

    for place in (tmp_path, folder / "ImageReward.pt", bare):
        other = load(place, folder)
        assert torch.equal(other(images, tiny.PROMPTS), scorer(images, tiny.PROMPTS))


def test_loading_and_scoring_leave_the_global_generator(folder):
    """No weight is drawn that the file then replaces; no dropout is active."""
    state = torch.random.get_rng_state()
    scorer = load(folder, folder)
    scorer(tiny.views(), tiny.PROMPTS)

    assert torch.equal(torch.random.get_rng_state(), state)
    assert not scorer.network.training
    assert scorer.to("cpu") is scorer
    assert scorer.to("meta").network.head["0"].weight.is_meta


# -- gradients ---------------------------------------------------------------------------


def test_no_gradient_flows(scorer):
    """Neither to the images nor to the weights."""
    images = tiny.views().requires_grad_()

    assert not scorer(images, tiny.PROMPTS).requires_grad
    assert not any(weight.requires_grad for weight in scorer.network.parameters())


# -- errors ------------------------------------------------------------------------------


def test_a_cut_or_foreign_file_is_refused_by_its_own_names(tmp_path, folder):
    """Every tensor that is missing, left over or misshapen."""
    tensors = tiny.image_reward_tensors()
    del tensors["blip.visual_encoder.blocks.1.attn.proj.bias"]
    tensors["mlp.layers.8.weight"] = torch.zeros(1)
    tensors["blip.text_encoder.embeddings.word_embeddings.weight"] = torch.zeros(3, 24)
    tiny.write_image_reward(tmp_path, tensors=tensors)

    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, folder)
    message = str(caught.value)
    assert "missing blip.visual_encoder.blocks.1.attn.proj.bias" in message
    assert "unexpected mlp.layers.8.weight" in message
    assert "word_embeddings.weight of shape (3, 24), not (15, 24)" in message
    assert message.count(";") == 2


def test_an_absent_file_is_told_how_to_get(tmp_path, folder):
    """What, from where and how large: weights, configuration, tokenizer."""
    command = r"`hf download THUDM/ImageReward ImageReward.pt` \(1.79 GB\)"
    with pytest.raises(CheckpointError, match=command):
        ImageReward.from_pretrained(tmp_path)
    (tmp_path / "ImageReward.pt").write_bytes((folder / "ImageReward.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"hf download THUDM/ImageReward med_config.json`"):
        ImageReward.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"hf download google-bert/bert-base-uncased"):
        ImageReward.from_pretrained(folder, vision=tiny.blip_config())


def test_another_models_configuration_is_refused(tmp_path, folder):
    """By the settings that it lacks."""
    tiny.write_image_reward(tmp_path)
    (tmp_path / "med_config.json").write_text(json.dumps({"vocab_size": 3}))

    with pytest.raises(CheckpointError, match=r"must describe BLIP's text encoder; absent: \['hid"):
        load(tmp_path, folder)


def test_rejects_what_is_out_of_range(folder, scorer):
    """A bare string has a length too."""
    with pytest.raises(ValueError, match=r"`prompts` must be one text per object, of 2 objects"):
        scorer(tiny.views(), "ab")
    with pytest.raises(ValueError, match=r"`chunk_size` must be positive; got 0"):
        load(folder, folder, chunk_size=0)
