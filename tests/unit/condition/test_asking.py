"""`asking`: oracle, laws, errors."""

import threading

import pytest

from mvczigal_ref.condition.asking import Asker, checked_prompts
from mvczigal_ref.condition.memory import CaptionMemory
from mvczigal_ref.condition.protocol import Caption, CaptionError, stream
from mvczigal_ref.condition.threads import in_order
from mvczigal_ref.language.chat import ChatAnswerError, ChatRefusedError, ChatUnavailableError
from tests.unit.condition.fakes import Scripted


def asker(model, **settings):
    return Asker(
        **{
            "model": model,
            "instructions": {"add": "ADD", "delete": "DELETE"},
            "question": lambda prompt, instruction: f"{instruction}: {prompt}",
            **settings,
        }
    )


def caption(model, memory=None, **settings):
    return asker(model, **settings).caption(
        "a cat", memory=memory or CaptionMemory(), draws=stream(0), sample=2
    )


# -- oracle ------------------------------------------------------------------------------


def test_the_question_is_drawn_and_holds_what_exists():
    """Instruction, prompt, earlier captions; the record names the instruction and sample."""
    model = Scripted("a cat at dusk")
    memory = CaptionMemory({"a cat": ["a cat at dawn"]})
    made = caption(model, memory)
    name = stream(0).choice(["add", "delete"])

    assert made == Caption(caption="a cat at dusk", instruction=name, sample=2)
    assert model.asked[0].split("\n") == [
        f"{name.upper()}: a cat",
        "These exist already; say none of them again:",
        "- a cat at dawn",
    ]
    assert memory.earlier("a cat") == ("a cat at dawn", "a cat at dusk")


def test_a_refused_answer_is_asked_for_again_with_the_reason():
    """Unfit, repeated and cut answers alike; each question has a seed of its own."""
    cut = ChatAnswerError("The answer must be whole.")
    model = Scripted("Caption: a cat", "A cat.", cut, "a cat at dusk")
    made = caption(model, attempts=4)

    assert made.caption == "a cat at dusk"
    assert len(set(model.seeds)) == 4
    assert "refused" not in model.asked[0]
    for asked, reason in zip(
        model.asked[1:], ["1 was refused: it speaks", "2 was refused: it repeats the prompt",
                          "3 was refused: The answer must be whole."], strict=True
    ):  # fmt: skip
        assert reason in asked


def test_a_question_lists_the_last_eight():
    """However many captions a prompt has had, questions stay bounded."""
    model = Scripted("a cat at dusk")
    caption(model, CaptionMemory({"a cat": [f"a cat {n}" for n in range(20)]}))

    assert [line for line in model.asked[0].split("\n") if line.startswith("- ")] == [
        f"- a cat {n}" for n in range(12, 20)
    ]


def test_the_prompt_stands_in_where_that_is_wanted():
    """It is marked as no caption, and not remembered as one."""
    model, memory = Scripted(""), CaptionMemory()
    made = caption(model, memory, attempts=3, on_refusal="prompt")

    assert made == Caption(caption="a cat", instruction="none", sample=2)
    assert len(model.asked) == 3
    assert memory.earlier("a cat") == ()


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_keep_the_order_of_the_items(workers):
    """Even if the first item takes longest."""
    others = threading.Event()

    def slow_first(item):
        if item == 0 and workers > 1:
            assert others.wait(20)
        others.set()
        return item * item

    assert list(in_order(slow_first, range(7), workers=workers)) == [n * n for n in range(7)]


def test_no_more_is_begun_than_a_few_ahead():
    """Taking one result of a thousand items begins at most twice the workers."""
    begun = []
    results = in_order(lambda item: begun.append(item), range(1000), workers=2)
    next(results)
    results.close()

    assert len(begun) <= 4


# -- errors ------------------------------------------------------------------------------


def test_raises_when_every_answer_was_refused():
    """The message names prompt, sample, number of answers and the last reason."""
    with pytest.raises(CaptionError, match=r"'a cat', sample 2: 2 answers.*it is empty\. Raise"):
        caption(Scripted(""), attempts=2)


@pytest.mark.parametrize("kind", [ChatUnavailableError, ChatRefusedError])
def test_what_no_other_question_would_mend_passes_at_once(kind):
    """A server that is gone, or that takes no question; the prompt must not hide either."""
    model, memory = Scripted(kind("status 401")), CaptionMemory()
    with pytest.raises(kind, match="status 401"):
        caption(model, memory, on_refusal="prompt")

    assert len(model.asked) == 1
    assert memory.earlier("a cat") == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instructions": {}}, "`instructions` must hold at least one"),
        ({"instructions": {"none": "x"}}, "`instructions` must not be named 'none'"),
        ({"attempts": 0}, "`attempts` must be at least 1; got 0"),
    ],
)
def test_rejects_bad_settings(settings, message):
    """By name."""
    with pytest.raises(ValueError, match=message):
        asker(Scripted(""), **settings)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a cat", "must be a sequence of texts"),
        (["a cat", " "], "number 1 holds blanks alone"),
        (["a \ud800"], "number 0 holds half a surrogate pair"),
    ],
)
def test_rejects_prompts_that_are_none(prompts, message):
    """A bare text would be read letter by letter."""
    with pytest.raises(ValueError, match=message):
        checked_prompts(prompts)


def test_rejects_no_workers():
    """Nobody would work."""
    with pytest.raises(ValueError, match="`workers` must be at least 1; got 0"):
        list(in_order(abs, [1], workers=0))
