"""`several_samples`: oracle, laws, errors. The model reads every sample's number off its pixels."""

import json
import re
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.condition.online import ASPECTS, OnlineEnhancer
from mvczigal_ref.condition.protocol import CaptionError, stream
from mvczigal_ref.condition.several_samples import caption_list, groups, refusal_of_all
from mvczigal_ref.language.chat import ChatAnswerError, ChatEndpoint, ChatRefusedError
from tests.chat_stub import chat, serve
from tests.unit.condition.fakes import Scripted

PROMPTS = ["a cat", "a dog"]


def samples(objects=2, count=5, views=2):
    """Give each sample a brightness of its own, in all its views."""
    numbers = torch.arange(objects * count, dtype=torch.float32).view(objects, count) / 100
    return numbers[:, :, None, None, None, None].expand(-1, -1, views, 3, 4, 4)


class Witness:
    """Write the number of each sample that is shown into its caption."""

    def __init__(self, views=2):
        self.views, self.asked, self.lock = views, [], threading.Lock()

    def ask(self, text, images=(), *, seed=None):
        with self.lock:
            self.asked.append(text)
        numbers = [round(100 * float(image.mean())) for image in images[:: self.views]]
        captions = [f"scene number {number}" for number in numbers]
        return json.dumps(captions) if "JSON list" in text else captions[0]


def caption_texts(enhancer, prompts=PROMPTS, images=None, seed=0):
    """Take the texts of the captions."""
    made = enhancer(prompts, samples() if images is None else images, seed=seed)
    return [[caption.caption for caption in row] for row in made]


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "questions"), [(1, 10), (2, 6), (3, 4), (5, 2), (9, 2)])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_sample_has_its_own_caption_in_fewer_questions(size, questions, workers):
    """G samples of a prompt are ceil(G / k) questions, and no question has two prompts."""
    model = Witness()
    enhancer = OnlineEnhancer(model, workers=workers, samples_per_question=size)

    assert caption_texts(enhancer) == [
        [f"scene number {number}" for number in range(5)],
        [f"scene number {number}" for number in range(5, 10)],
    ]
    assert len(model.asked) == questions
    assert {text.rsplit("Caption: ")[-1] for text in model.asked} == {*PROMPTS}


def test_every_sample_has_an_aspect_of_its_own():
    """That which it would have if it was asked about alone, in the order of the samples."""
    model = Scripted('["one", "two", "three"]')
    images = samples(1, 3)
    (captions,) = OnlineEnhancer(model, samples_per_question=3)(["a cat"], images, seed=5)
    drawn = [stream(5, "a cat", index).choice(list(ASPECTS)) for index in range(3)]

    assert [c.instruction for c in captions] == drawn
    assert [c.sample for c in captions] == [0, 1, 2]
    listed = re.findall(r"^\d+\. (.*)$", model.asked[0], re.MULTILINE)
    assert listed == [ASPECTS[name] for name in drawn]
    assert torch.equal(torch.stack(model.images[0]), images.flatten(0, 2))
    assert "3 samples, each group of 2 images" in model.asked[0]


def test_only_what_was_refused_is_asked_for_again():
    """The caption that is unfit or repeats another; its reason is told by number."""
    first = '["a cat at dusk", "Caption: x", "a cat at noon", "A cat at dusk."]'
    model = Scripted(first, '["a cat at dawn", "a cat in fog"]')
    enhancer = OnlineEnhancer(model, samples_per_question=4)

    assert caption_texts(enhancer, ["a cat"], samples(1, 4)) == [
        ["a cat at dusk", "a cat at dawn", "a cat at noon", "a cat in fog"]
    ]
    again = model.asked[1]
    assert "- a cat at dusk\n- a cat at noon" in again
    assert "refused: of sample 1, it speaks of the caption" in again
    assert "; of sample 2, it repeats the prompt or an earlier caption." in again


# -- laws --------------------------------------------------------------------------------


def test_the_longest_answer_grows_with_the_captions_that_it_holds():
    """512 tokens per further sample: of four, the last is asked about alone."""
    with serve(chat(lambda request: Witness().ask(request.text, request.images))) as stub:
        model = ChatEndpoint(stub.url, "witness", timeout_s=20.0, retries=0, max_tokens=100)
        OnlineEnhancer(model, samples_per_question=3)(["a cat"], samples(1, 4) * 2.55, seed=0)

    assert [r.body["max_tokens"] for r in stub.requests] == [100 + 2 * 512, 100]


def test_a_question_about_one_sample_is_what_it_was():
    """Whether more would be allowed or not."""
    one, many = Scripted("a cat at dusk"), Scripted("a cat at dusk")
    for model, size in ((one, 1), (many, 3)):
        caption_texts(
            OnlineEnhancer(model, samples_per_question=size), ["a cat"], samples(1, 1), seed=3
        )

    assert (one.asked, one.seeds) == (many.asked, many.seeds)
    assert torch.equal(torch.stack(one.images[0]), torch.stack(many.images[0]))


@settings(max_examples=10)
@given(st.permutations(range(2)), st.integers(1, 6), st.integers(0, 9))
def test_permuting_prompts_permutes_captions(order, size, seed):
    """A prompt's captions do not depend on the others, since no question has two prompts."""
    enhancer = OnlineEnhancer(Witness(), samples_per_question=size)
    images = samples()
    whole = enhancer(PROMPTS, images, seed=seed)

    assert enhancer([PROMPTS[i] for i in order], images[list(order)], seed=seed) == [
        whole[i] for i in order
    ]


@settings(max_examples=25)
@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 5))
def test_groups_hold_every_index_once_and_one_key_each(keys, size):
    """As few groups as that allows."""
    divided = groups(dict(enumerate(keys)), size)

    assert sorted(index for group in divided for index in group) == [*range(len(keys))]
    assert all(len({keys[index] for index in group}) == 1 for group in divided)
    assert len(divided) == sum(-(-keys.count(key) // size) for key in "abc")


@pytest.mark.parametrize("wrong", ['["one"]', '["one", "two", "three"]', "one", "[1, 2]"])
def test_a_wrong_number_of_captions_is_asked_for_again(wrong):
    """Of all samples of the question, with the reason; an answer that was cut likewise."""
    cut = ChatAnswerError("The answer must be whole.")
    model = Scripted(wrong, cut, '["a cat at dusk", "a cat at dawn"]')
    enhancer = OnlineEnhancer(model, samples_per_question=2)

    assert caption_texts(enhancer, ["a cat"], samples(1, 2)) == [["a cat at dusk", "a cat at dawn"]]
    assert len(model.asked) == len(set(model.seeds)) == 3
    assert "Your answer number 1 was refused: it " in model.asked[1]
    assert "Your answer number 2 was refused: The answer must be whole." in model.asked[2]


@pytest.mark.parametrize(
    "answer",
    [
        '["a", "b"]',
        ' [\n "a",\n "b"\n] ',
        '```json\n["a", "b"]\n```',
        '<think>["x"]</think>["a", "b"]',
    ],
)
def test_good_lists_are_read(answer):
    """After thoughts, and between fences."""
    assert caption_list(answer, 2) == ["a", "b"]


def test_the_prompt_stands_in_for_all_samples_of_a_question():
    """Where no answer had as many captions as samples."""
    enhancer = OnlineEnhancer(
        Scripted('["one"]'), samples_per_question=2, attempts=2, on_refusal="prompt"
    )

    assert caption_texts(enhancer, ["a cat"], samples(1, 4)) == [["a cat"] * 4]


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("[]", "^it holds 0 captions for 2 samples$"),
        ('["one"]', "^it holds 1 caption for 2 samples$"),
        ('["one", "two", "three"]', "^it holds 3 captions for 2 samples$"),
        ("one, two", "^it is no JSON list of texts$"),
        ('{"a": "one", "b": "two"}', "^it is no JSON list of texts$"),
        ('["one", null]', "^it is no JSON list of texts$"),
        ('Here: ["one", "two"]', "^it is no JSON list of texts$"),
        ("[" * 100_000, "^it is no JSON list of texts$"),
        ("<think>hm", "^its thoughts do not end"),
    ],
)
def test_other_answers_are_no_captions(answer, message):
    """Nothing is guessed."""
    with pytest.raises(CaptionError, match=message):
        caption_list(answer, 2)


def test_a_model_that_never_counts_right_is_an_error():
    """It names prompt and sample, and how many captions came for how many samples."""
    enhancer = OnlineEnhancer(Scripted('["one"]'), samples_per_question=2, attempts=2)
    with pytest.raises(
        CaptionError, match=r"'a cat', sample 0: 2 answers.* it holds 1 caption for 2 samples\. R"
    ):
        caption_texts(enhancer, ["a cat"], samples(1, 2))


def test_a_refused_question_names_its_first_sample():
    """No other question would be taken."""
    enhancer = OnlineEnhancer(Scripted(ChatRefusedError("status 400")), samples_per_question=2)
    with pytest.raises(ChatRefusedError, match="'a cat', sample 0: status 400"):
        caption_texts(enhancer)


def test_rejects_no_samples():
    """When it is made."""
    with pytest.raises(ValueError, match="`samples_per_question` must be at least 1; got 0"):
        OnlineEnhancer(Witness(), samples_per_question=0)


def test_reasons_that_differ_are_told_by_sample():
    """And one that is common once."""
    assert refusal_of_all(["x", "x"]) == "x"
    assert refusal_of_all(["x", "y"]) == "of sample 1, x; of sample 2, y"


@pytest.mark.parametrize(
    "answer", ["```" + "\n" * 300_000 + "x", "<think>" * 60_000, "```json\n" + " " * 400_000 + "x"]
)
def test_long_answers_of_a_hostile_server_take_time_in_proportion(answer):
    """Backtracking would take days for these: the suite's time limit stands in for a clock."""
    with pytest.raises(CaptionError):
        caption_list(answer, 2)
