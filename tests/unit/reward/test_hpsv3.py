"""`reward.hpsv3`: oracle, laws, errors, on a tiny random checkpoint in the published names."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.reward.hpsv3 import HpsV3
from mvczigal_ref.reward.protocols import PerViewScorer
from tests.unannotated import without_shape_checks
from tests.unit.reward.slow_qwen import (
    AFTER,
    BEFORE,
    PIXELS,
    hpsv3_tensors,
    in_newer_names,
    slow_hpsv3,
    write_hpsv3,
)

PROMPTS = ["a red cube", "a {blue} ball on grass"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of toy width: weights, instruction, configuration, tokenizer."""
    path = tmp_path_factory.mktemp("hpsv3")
    write_hpsv3(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder):
    """The tiny scorer in float32."""
    return load(folder)


def load(folder, **settings):
    """Read the tiny checkpoint."""
    plain = {"base": folder, "dtype": torch.float32, "pixels": PIXELS}
    return HpsV3.from_pretrained(folder, **(plain | settings))


@pytest.fixture(scope="module")
def images():
    """Noise: two objects of two views, wider than high."""
    return torch.rand(2, 2, 3, 30, 50, generator=torch.Generator().manual_seed(1))


# -- oracle ------------------------------------------------------------------------------


def test_scores_equal_a_slow_transcription(folder, scorer, images):
    """Own preprocessing, whole message, both towers and the head written out in float64."""
    reward, tensors = scorer(images, PROMPTS), hpsv3_tensors()

    assert reward.dtype == torch.float32
    for b, v in [(0, 0), (1, 1)]:
        expected = slow_hpsv3(folder, tensors, images[b, v], PROMPTS[b])
        # Single precision through three layers and a head of a thousand, against double.
        assert reward[b, v].item() == pytest.approx(expected, rel=2e-5, abs=2e-5)
    assert reward.std() > 1e-2


# -- laws --------------------------------------------------------------------------------


def test_newer_names_are_the_same_checkpoint(folder, scorer, images, tmp_path):
    """What the library calls its parts today is read too, and the language head is not needed."""
    tensors = in_newer_names(hpsv3_tensors())
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "any.safetensors")
    again = HpsV3.from_pretrained(
        tmp_path / "any.safetensors",
        base=folder,
        instruction=BEFORE + AFTER,
        dtype=torch.float32,
        pixels=PIXELS,
    )

    assert torch.equal(again(images[:1], PROMPTS[:1]), scorer(images[:1], PROMPTS[:1]))


def test_changing_one_view_changes_its_own_score(scorer, images):
    """Not by a bit the others'."""
    other = images.clone()
    other[0, 1] = 1 - other[0, 1]
    changed = scorer(images, PROMPTS) != scorer(other, PROMPTS)

    assert changed.tolist() == [[False, True], [False, False]]


def test_permuting_the_objects_permutes_the_scores(scorer, images):
    """To the bit, though their prompts differ in length."""
    reward = scorer(images, PROMPTS)

    assert torch.equal(scorer(images.flip(0), PROMPTS[::-1]), reward.flip(0))
    assert torch.equal(scorer(images[1:], PROMPTS[1:]), reward[1:])


def test_the_chunk_changes_nothing_but_rounding(folder, scorer, images):
    """One view at a time gives the same scores."""
    one = load(folder, chunk_size=1)

    torch.testing.assert_close(
        one(images[:1], PROMPTS[:1]), scorer(images[:1], PROMPTS[:1]), rtol=2e-6, atol=2e-6
    )


def test_a_chunk_holds_so_many_views(folder, images, monkeypatch):
    """And all of the object's text once."""
    seen, texts = [], []
    scorer = load(folder, chunk_size=2)
    score = scorer._score

    def recorded(patches, grid, ids):
        seen.append(len(grid))
        texts.append(id(ids))
        return score(patches, grid, ids)

    monkeypatch.setattr(scorer, "_score", recorded)
    scorer(torch.cat([images[0], images[1, :1]])[None], PROMPTS[:1])

    assert seen == [2, 1]
    assert len(set(texts)) == 1


def test_prompt_and_instruction_count(folder, scorer, images):
    """The same image gets another score for other words."""
    view, reward = images[:1, :1], scorer(images[:1], PROMPTS[:1])[:, :1]
    reworded = load(folder, instruction=BEFORE.replace("Rate", "Grade") + AFTER)

    assert not torch.isclose(scorer(view, PROMPTS[1:]), reward).any()
    assert not torch.isclose(reworded(view, PROMPTS[:1]), reward).any()


def test_words_after_the_reward_token_do_not_count(folder, scorer, images):
    """Attention is causal, so they are left out."""
    shorter = load(folder, instruction=BEFORE + AFTER.removesuffix(" END "))

    assert torch.equal(shorter(images[:1], PROMPTS[:1]), scorer(images[:1], PROMPTS[:1]))


def test_values_outside_the_range_are_clamped(scorer, images):
    """As a file's would be."""
    stretched = 2 * images[:1] - 0.5

    assert torch.equal(scorer(stretched, PROMPTS[:1]), scorer(stretched.clamp(0, 1), PROMPTS[:1]))


def test_more_pixels_are_more_tokens(folder, images, monkeypatch):
    """The setting is the size that images are brought to."""
    grids = {}
    for pixels in (PIXELS, 2 * PIXELS):
        scorer = load(folder, pixels=pixels)
        monkeypatch.setattr(
            scorer,
            "_score",
            lambda p, grid, ids, n=pixels: grids.update({n: grid}) or grid[:, 0] * 1.0,
        )
        scorer(images[:1, :1], PROMPTS[:1])

    assert [grid.tolist() for grid in grids.values()] == [[[1, 4, 6]], [[1, 6, 8]]]


def test_half_precision_keeps_the_head_whole(folder, scorer, images):
    """Weights of the network are rounded, those of the head and the frequencies are not."""
    half = load(folder, dtype=torch.bfloat16)
    reward, close = half(images[:1], PROMPTS[:1]), scorer(images[:1], PROMPTS[:1])

    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.head.parameters()} == {torch.float32}
    assert {b.dtype for b in half.model.buffers()} == {torch.float32}
    assert torch.equal(half.head[0].weight, scorer.head[0].weight)
    assert reward.dtype == torch.float32
    # bfloat16 has 8 bits: two layers at toy width move the score by some per cent.
    torch.testing.assert_close(reward, close, rtol=0.1, atol=0.1)


def test_loading_and_scoring_draw_no_random_number(folder, images):
    """And the same call gives the same bits."""
    before = torch.get_rng_state()
    scorer = load(folder)
    reward = scorer(images[:1], PROMPTS[:1])

    assert torch.equal(scorer(images[:1], PROMPTS[:1]), reward)
    assert torch.equal(torch.get_rng_state(), before)
    assert not reward.requires_grad
    assert not any(
        p.requires_grad for part in (scorer.model, scorer.head) for p in part.parameters()
    )
    assert isinstance(scorer, PerViewScorer)


def test_both_parts_move(folder):
    """The scorer itself comes back."""
    scorer = load(folder)

    assert scorer.to("meta") is scorer
    for part in (scorer.model, scorer.head):
        assert {p.device.type for p in part.parameters()} == {"meta"}


# -- errors ------------------------------------------------------------------------------


def test_absent_weights_say_where_to_get_them(folder, tmp_path):
    """With id, name and size."""
    with pytest.raises(
        CheckpointError, match=r"hf download MizzenAI/HPSv3 HPSv3\.safetens.*16\.6 GB"
    ):
        load(tmp_path, base=folder)


def test_an_absent_instruction_says_where_to_get_it(folder, tmp_path):
    """It is no part of the published folder."""
    (tmp_path / "HPSv3.safetensors").symlink_to(folder / "HPSv3.safetensors")
    with pytest.raises(CheckpointError, match=r"INSTRUCTION.*github\.com/MizzenAI/HPSv3"):
        load(tmp_path, base=folder)


def test_an_absent_base_says_where_to_get_it(folder, tmp_path):
    """Two small files of it are enough."""
    with pytest.raises(
        CheckpointError, match=r"hf download Qwen/Qwen2-VL-7B-Instruct config\.json"
    ):
        load(folder, base=tmp_path)


def test_every_misfit_tensor_is_named(folder, tmp_path):
    """By its name in the file, those of network and head together."""
    tensors = load_file(folder / "HPSv3.safetensors")
    del tensors["visual.merger.ln_q.weight"]
    tensors["model.layers.7.extra"] = torch.zeros(1)
    tensors["rm_head.5.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "HPSv3.safetensors")
    faults = (
        r"missing visual\.merger\.ln_q\.weight; unexpected model\.layers\.7\.extra; "
        r"rm_head\.5\.bias of shape \(3,\), not \(2,\)"
    )
    with pytest.raises(CheckpointError, match=faults):
        load(tmp_path, base=folder, instruction=BEFORE + AFTER)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"model_type": "clip"}', "must describe a `qwen2_vl` model; got 'clip'"),
        ("tokenizer.json", "{}", "must be a tokenizer"),
        ("tokenizer.json", "<html>", r"tokenizer\.json` must be readable JSON; it is a web page"),
        ("tokenizer.json", "[]", "must hold a JSON object; got list"),
    ],
)
def test_refuses_another_base(folder, tmp_path, name, content, message):
    """By the file that is wrong."""
    for kept in {"config.json", "tokenizer.json"} - {name}:
        (tmp_path / kept).symlink_to(folder / kept)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load(folder, base=tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "no place <|Reward|>",
        "{text_prompt} and no token",
        "<|Reward|> first {text_prompt}",
        "{text_prompt} {text_prompt} <|Reward|>",
        "{text_prompt} <|Reward|> <|Reward|>",
    ],
)
def test_refuses_an_instruction_of_another_form(folder, words):
    """The prompt once, then the token once."""
    with pytest.raises(ValueError, match=r"`instruction` must hold \{text_prompt\} once"):
        load(folder, instruction=words)


def test_refuses_a_tokenizer_of_another_network(scorer):
    """Whose images would be words."""
    other = Tokenizer(models.BPE())
    with pytest.raises(ValueError, match=r"`tokenizer` must number <\|image_pad\|> 260.*got None"):
        HpsV3(scorer.model, scorer.head, other, instruction=BEFORE + AFTER)


@pytest.mark.parametrize("token", ["<|Reward|>", "<|image_pad|>", "<|im_end|>"])
def test_refuses_a_prompt_that_steers_the_network(scorer, images, token):
    """A special token in a prompt would be obeyed."""
    with pytest.raises(ValueError, match="`prompts` must hold no special token"):
        scorer(images, ["a cube", f"a ball {token}"])


@pytest.mark.parametrize("prompts", [[], ["a"], ["a", "b", "c"]])
def test_refuses_other_than_one_prompt_an_object(scorer, images, prompts):
    """No prompt is used twice or dropped."""
    with pytest.raises(ValueError, match="`prompts` must be one text per object, 2"):
        scorer(images, prompts)


def test_refuses_a_bare_string(scorer, images):
    """Its letters are no prompts."""
    with without_shape_checks(), pytest.raises(ValueError, match="`prompts` must be one text"):
        scorer(images, "ab")


def test_refuses_settings_out_of_range(folder):
    """By name."""
    with pytest.raises(ValueError, match="`chunk_size` must be positive; got 0"):
        load(folder, chunk_size=0)
    with pytest.raises(ValueError, match=r"`dtype` must be torch\.float32 or torch\.bfloat16"):
        load(folder, dtype=torch.float16)
