"""`local`: oracle (token by token), laws, errors; on random models of a few thousand weights."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.language.at_once import ask_at_once
from mvczigal_ref.language.chat import ChatAnswerError
from mvczigal_ref.language.local import LocalLanguageModel, LocalVisionLanguageModel, _GumbelNoise
from mvczigal_ref.language.protocol import BatchLanguageModel, LanguageModel, Question

MARKUP = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if enable_thinking -%}think{%- endif -%}{{ '<|im_start|>assistant\\n' }}"
)
ENDS = list(range(0, 256, 4))  # every fourth byte ends an answer, so answers are short
QUESTIONS = [f"a cat {letter}" for letter in "abcd"]
TEXT = {
    "vocab_size": 261, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.5,
}  # fmt: skip


def tokenizer(template=TEMPLATE):
    """Take text byte by byte, and know the markup."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(MARKUP)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", chat_template=template
    )


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = build().eval()
    model.generation_config.eos_token_id = ENDS
    # As published models recommend; none of it may reach an answer.
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.1
    return model


def language_model():
    return seeded(lambda: Qwen3ForCausalLM(Qwen3Config(**TEXT)))


def vision_model():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    ids = {f"{name}_id": 256 + MARKUP.index(token) for name, token in {
        "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
        "image_token": "<|image_pad|>",
    }.items()}  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
        "out_hidden_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        "initializer_range": 0.5,
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config=vision,
        video_token_id=260,
        **ids,
    )
    return seeded(lambda: Qwen3VLForConditionalGeneration(config))


def image_processor():
    size = {"shortest_edge": 64, "longest_edge": 64 * 64}
    return Qwen2VLImageProcessorPil(patch_size=4, size=size)


def local(**settings):
    return LocalLanguageModel(language_model(), tokenizer(), **{"max_new_tokens": 80, **settings})


def seeing(**settings):
    return LocalVisionLanguageModel(
        vision_model(), tokenizer(), image_processor(), **{"max_new_tokens": 80, **settings}
    )


@torch.no_grad()
def slow_answer(model, ids, **inputs):
    """Take the likeliest token of a whole new pass, until an end."""
    words, start = tokenizer(), len(ids)
    while (ids[-1] not in ENDS or len(ids) == start) and len(ids) < start + 80:
        given = torch.tensor([ids])
        if inputs:
            inputs["mm_token_type_ids"] = (given == 260).int()
        logits = model(input_ids=given, use_cache=False, **inputs).logits
        ids = [*ids, int(logits[0, -1].argmax())]
    return words.decode(ids[start:-1], skip_special_tokens=True)


# -- oracle ------------------------------------------------------------------------------


def test_an_answer_is_token_by_token_the_likeliest():
    """At temperature 0, after the words of the chat template; the end is not part of it."""
    model, answers = local(temperature=0.0), []
    for question in QUESTIONS:
        asked = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        answers.append(slow_answer(language_model(), tokenizer()(asked).input_ids))
        assert model.ask(question) == answers[-1]
    assert any(len(answer) > 2 for answer in answers)


def test_an_answer_about_images_is_too():
    """Each image stands for its patches after merging, before the text."""
    images = [torch.rand(3, 16, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    seen = image_processor()(
        images=[(image * 255).round().byte().permute(1, 2, 0).numpy() for image in images],
        return_tensors="pt",
    )
    # 4 x 2 patches of 4 pixels, merged 2 x 2.
    shown = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>" * 2
    asked = f"<|im_start|>user\n{shown}a cat<|im_end|>\n<|im_start|>assistant\n"
    expected = slow_answer(vision_model(), tokenizer()(asked).input_ids, **seen)

    assert seeing(temperature=0.0).ask("a cat", images) == expected


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_draws_have_the_law_of_the_softmax(top_p):
    """Within five standard errors over 4000 draws; beyond ``top_p`` nothing is drawn."""
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    share = (logits / 2).softmax(0)
    kept = torch.tensor([True, top_p == 1.0, True, top_p == 1.0])  # shares .47, .17, .28, .10
    share = share * kept / (share * kept).sum()
    noise = _GumbelNoise(2.0, top_p, [torch.Generator().manual_seed(0)])
    drawn = noise(torch.zeros(4000, 1), logits.expand(4000, 4)).argmax(-1).bincount(minlength=4)
    error = (4000 * share * (1 - share)).sqrt()

    assert ((drawn - 4000 * share).abs() <= 5 * error).all()


# -- laws --------------------------------------------------------------------------------


def test_answers_depend_on_question_and_seed_alone():
    """Not on what was asked before; the seed may be the model's own."""
    model = local(temperature=1.0, top_p=1.0, seed=5)
    first = [model.ask(f"cat {n}", seed=n % 3) for n in range(6)]

    assert isinstance(model, LanguageModel)
    assert [model.ask(f"cat {n}", seed=n % 3) for n in reversed(range(6))] == first[::-1]
    assert model.ask("a cat") == model.ask("a cat", seed=5)
    assert len({model.ask("a cat", seed=seed) for seed in range(8)}) > 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("looks", [False, True])
def test_questions_together_are_answered_as_alone(temperature, looks):
    """Padded on their left; with no image, one or two; the likeliest token or a drawn one."""
    model = (seeing if looks else local)(temperature=temperature, top_p=0.9)
    sizes = [(), ((8, 8),), ((8, 24), (8, 24))] if looks else [()]
    questions = [
        Question(
            text=f"a {'very ' * index}big cat",
            images=[
                torch.rand(3, *size, generator=torch.Generator().manual_seed(index))
                for size in sizes[index % len(sizes)]
            ],
            seed=index % 2,
        )
        for index in range(5)
    ]
    alone = [model.ask(q.text, q.images, seed=q.seed) for q in questions]

    assert isinstance(model, BatchLanguageModel)
    assert model.ask_all(questions) == alone
    assert [*ask_at_once(model, questions, at_once=2)] == alone
    assert len(set(alone)) > 2


def test_one_answer_that_is_cut_leaves_the_others():
    """Its place holds the reason."""
    questions = [Question(text=question, seed=0) for question in QUESTIONS]
    whole = local(temperature=0.0).ask_all(questions)
    numbers = set()
    for length in range(1, 9):
        answers = local(temperature=0.0, max_new_tokens=length).ask_all(questions)
        cut = [isinstance(answer, ChatAnswerError) for answer in answers]
        numbers.add(sum(cut))
        assert all(c or a == w for c, a, w in zip(cut, answers, whole, strict=True))

    assert numbers & {1, 2, 3}


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_question_may_have_a_longer_answer(at_once):
    """Beyond the model's own longest, and the one beside it in a call may not."""
    model, longer = local(temperature=0.0, max_new_tokens=1), local(temperature=0.0)
    (whole,) = longer.ask_all([Question(text=QUESTIONS[0])])
    questions = [Question(text=QUESTIONS[0], more_tokens=more) for more in (79, 0)]
    long, short = ask_at_once(model, questions, at_once=at_once)

    assert long == whole
    assert isinstance(short, ChatAnswerError)


def test_the_global_generator_is_not_touched():
    """Sampling draws from a generator of its own."""
    before = torch.get_rng_state()
    local(temperature=1.0).ask("a cat")

    assert torch.equal(torch.get_rng_state(), before)


def test_thinking_reaches_the_template():
    """It changes the question, and so the answer."""
    plain, thinking = (local(temperature=0.0, thinking=flag) for flag in (False, True))

    assert [plain.ask(q) for q in QUESTIONS] != [thinking.ask(q) for q in QUESTIONS]


def test_images_reach_the_answer():
    """Other pixels give another answer, and none are needed."""
    model = seeing(temperature=0.0)
    dark, light = ([torch.full((3, 8, 8), level)] for level in (0.3, 0.9))

    assert model.ask(QUESTIONS[3], dark) != model.ask(QUESTIONS[3], light)
    assert model.ask(QUESTIONS[3]) != model.ask(QUESTIONS[1])


def test_a_saved_model_is_loaded_from_its_folder(tmp_path):
    """With its tokenizer, template, ends and image processor, and answers alike."""
    for kind, model, extra in (
        (LocalLanguageModel, language_model(), []),
        (LocalVisionLanguageModel, vision_model(), [image_processor()]),
    ):
        folder = tmp_path / kind.__name__
        for part in (model, tokenizer(), *extra):
            part.save_pretrained(folder)
        loaded = kind.load(folder, dtype=torch.float32, temperature=0.0, max_new_tokens=80)
        built = kind(model, tokenizer(), *extra, temperature=0.0, max_new_tokens=80)
        images = [torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))] if extra else []
        assert loaded.ask("a cat", images) == built.ask("a cat", images)


# -- errors ------------------------------------------------------------------------------


def test_an_answer_that_is_cut_is_refused():
    """It would be half a caption."""
    model = local(max_new_tokens=1)
    with pytest.raises(ChatAnswerError, match="must be whole; got one that was cut"):
        [model.ask("a cat", seed=seed) for seed in range(20)]


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>"])
def test_rejects_markup_in_the_question(token):
    """A prompt could end its own question and write the answer."""
    with pytest.raises(ValueError, match="`text` must not hold the tokenizer's markup"):
        local().ask(f"a cat{token}")


def test_rejects_images_for_a_model_of_text():
    """It would not see them."""
    with pytest.raises(ValueError, match="`images` must be empty"):
        local().ask("a cat", [torch.zeros(3, 8, 8)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1; got 0"),
        ({"temperature": -1.0}, "`temperature` must be finite, at least 0; got -1.0"),
        ({"temperature": math.inf}, "`temperature` must be finite, at least 0; got inf"),
        ({"top_p": 0.0}, r"`top_p` must lie in \(0, 1\]; got 0.0"),
    ],
)
def test_rejects_bad_settings(settings, message):
    """By name."""
    with pytest.raises(ValueError, match=message):
        local(**settings)


def test_rejects_a_tokenizer_without_a_template():
    """A base model does not answer."""
    with pytest.raises(ValueError, match="must have a chat template"):
        LocalLanguageModel(language_model(), tokenizer(None))


def test_rejects_a_folder_without_a_model(tmp_path):
    """And fetches nothing."""
    for source in (tmp_path, "nobody/nothing"):
        with pytest.raises(CheckpointError, match="cannot load a model"):
            LocalLanguageModel.load(source)


def test_rejects_missing_tensors(tmp_path):
    """They are named; random weights would answer nonsense."""
    model = language_model()
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp.up" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: model.layers.1.mlp.up_proj.weight"):
        LocalLanguageModel.load(tmp_path)
