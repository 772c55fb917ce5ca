"""`reward.hpsv3`: oracle, laws, errors, on a tiny random checkpoint in the published names."""

import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.reward.hpsv3 import HpsV3
from mvczigal_ref.reward.hpsv3_network import INSTRUCTION_FILE
from mvczigal_ref.reward.protocols import PerViewScorer
from tests.unannotated import without_shape_checks

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
BEFORE, AFTER = "\nRate it. Text - {text_prompt}\n", " Rating: <|Reward|> END "
PIXELS = 56 * 56
PROMPTS = ["a red cube", "a {blue} ball on grass"]
WIDTH = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of toy width: weights, instruction, configuration, tokenizer."""
    path = tmp_path_factory.mktemp("hpsv3")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        # The published one leaves room for words that do not exist.
        "vocab_size": 300,
        "hidden_size": WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "vision_config": {
            "depth": 1,
            "embed_dim": 32,
            "mlp_ratio": 2,
            "num_heads": 2,
            "in_chans": 3,
            "hidden_size": WIDTH,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / INSTRUCTION_FILE).write_bytes((BEFORE + AFTER).encode())
    save_file(published(network(path)), path / "HPSv3.safetensors")
    return path


def network(path):
    """The library's whole model, random by a generator of its own, and the head's weights."""
    config = Qwen2VLConfig.from_dict(json.loads((path / "config.json").read_text()))
    config.text_config.vocab_size = 256 + len(SPECIAL) + 1
    with torch.random.fork_rng(devices=[]):
        model = Qwen2VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)

    def noise(*shape, scale):
        return scale * torch.randn(*shape, generator=generator)

    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(noise(*value.shape, scale=0.3))
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight")):
                value.add_(1.0)
    head = {}
    for index, (rows, columns) in {0: (1024, WIDTH), 3: (16, 1024), 5: (2, 16)}.items():
        head[f"{index}.weight"] = noise(rows, columns, scale=columns**-0.5)
        head[f"{index}.bias"] = noise(rows, scale=0.3)
    return model, head


def published(parts, layout="old"):
    """Tensors under the names of the published file, or those of newer versions."""
    model, head = parts
    tensors = {f"rm_head.{name}": value for name, value in head.items()}
    for name, value in model.state_dict().items():
        old = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        tensors[old if layout == "old" else name] = value.clone()
    return tensors


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


def slow_patches(image):
    """One image's patches, value by value: resized, normalised, in blocks of two by two."""
    height, width = image.shape[-2:]
    # Both sides whole multiples of 28, no fewer pixels than asked for.
    factor = math.sqrt(PIXELS / (height * width))
    size = [math.ceil(side * factor / 28) * 28 for side in (height, width)]
    rounded = [round(side / 28) * 28 for side in (height, width)]
    assert rounded[0] * rounded[1] < PIXELS
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    resized = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    flat = resized.tobytes()
    value = {
        (c, y, x): (flat[3 * (y * size[1] + x) + c] / 255 - mean[c]) / std[c]
        for c in range(3)
        for y in range(size[0])
        for x in range(size[1])
    }
    rows = []
    for block_y in range(size[0] // 28):
        for block_x in range(size[1] // 28):
            for y0 in (28 * block_y, 28 * block_y + 14):
                for x0 in (28 * block_x, 28 * block_x + 14):
                    patch = []
                    for c in range(3):
                        # A still image fills both frames of a patch.
                        for _ in range(2):
                            patch += [
                                value[c, y0 + y, x0 + x] for y in range(14) for x in range(14)
                            ]
                    rows.append(patch)
    return torch.tensor(rows), (1, size[0] // 14, size[1] // 14)


def slow_score(folder, image, prompt):
    """The whole message through the library's whole model, the head in plain numbers."""
    model, head = network(folder)
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.inv_freq.to(torch.bfloat16).to(torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|Reward|>"])
    patches, grid = slow_patches(image)
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    text += "<|vision_start|>" + "<|image_pad|>" * (len(patches) // 4) + "<|vision_end|>"
    text += (BEFORE + AFTER).replace("{text_prompt}", prompt)
    text += "<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(text).ids
    with torch.no_grad():
        states = model.model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            position_ids=torch.tensor([[list(range(len(ids)))]] * 3),
            pixel_values=patches,
            image_grid_thw=torch.tensor([grid]),
        ).last_hidden_state[0]
    (place,) = [i for i, token in enumerate(ids) if token == tokenizer.token_to_id("<|Reward|>")]
    values = states[place].tolist()
    for index in (0, 3, 5):
        rows = zip(head[f"{index}.weight"].tolist(), head[f"{index}.bias"].tolist(), strict=True)
        values = [math.fsum(w * x for w, x in zip(row, values, strict=True)) + b for row, b in rows]
        if index != 5:
            values = [max(x, 0.0) for x in values]
    return values[0]


def test_scores_equal_a_slow_transcription(folder, scorer, images):
    """Own preprocessing, whole message, whole model, the head's sums written out."""
    reward = scorer(images, PROMPTS)

    assert reward.dtype == torch.float32
    for b, v in [(0, 0), (1, 1)]:
        expected = slow_score(folder, images[b, v], PROMPTS[b])
        # The oracle's sequence is longer, so the library sums its attention in another order.
        assert reward[b, v].item() == pytest.approx(expected, rel=2e-5, abs=2e-5)
    assert reward.std() > 1e-2


# -- laws --------------------------------------------------------------------------------


def test_newer_names_are_the_same_checkpoint(folder, scorer, images, tmp_path):
    """What the library calls its parts today is read too, and the language head is not needed."""
    tensors = published(network(folder), layout="new")
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
        ("tokenizer.json", "[]", "must be a tokenizer"),
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
    with pytest.raises(ValueError, match="`prompts` must be one text an object, 2"):
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
