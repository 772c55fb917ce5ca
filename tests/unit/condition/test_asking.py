"""`asking`: oracle, laws, errors."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.condition.asking import Asker, Subject, checked_prompts
from mvczigal_ref.condition.memory import CaptionMemory
from mvczigal_ref.condition.protocol import Caption, CaptionError, stream
from mvczigal_ref.language.chat import ChatAnswerError, ChatRefusedError, ChatUnavailableError
from mvczigal_ref.language.threads import in_order
from tests.unit.condition.fakes import Scripted, Talker


def asker(model, **changes):
    return Asker(
        **{
            "model": model,
            "instructions": {"add": "ADD", "delete": "DELETE"},
            "question": lambda prompt, instruction: f"{instruction}: {prompt}",
            **changes,
        }
    )


def caption(model, memory=None, **changes):
    subject = Subject(prompt="a cat", memory=memory or CaptionMemory(), draws=stream(0), sample=2)
    (made,) = asker(model, **changes).captions([subject])
    return made


def subjects(count, memory):
    """Ask for several captions of one prompt."""
    return [
        Subject(prompt="a cat", memory=memory, draws=stream(0, k), sample=k) for k in range(count)
    ]


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


def test_a_round_asks_for_every_caption_that_is_missing():
    """Of two equal answers the earlier subject's stands; later rounds list what exists by then."""
    model, memory = Scripted("one", "", "one", "two", "two", "three"), CaptionMemory()
    made = asker(model).captions(subjects(3, memory))

    assert [c.caption for c in made] == ["one", "two", "three"]
    assert [c.sample for c in made] == [0, 1, 2]
    rounds = [model.asked[:3], model.asked[3:5], model.asked[5:]]
    assert not any("exist already" in asked for asked in rounds[0])
    assert all("- one" in asked and "- two" not in asked for asked in rounds[1])
    assert "1 was refused: it is empty" in rounds[1][0]
    assert "1 was refused: it repeats" in rounds[1][1]
    assert "- one\n- two" in rounds[2][0]
    assert memory.earlier("a cat") == ("one", "two", "three")


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


def test_questions_are_asked_at_once_and_no_more_than_workers():
    """Each waits until as many have come; one more would be there too."""
    meeting, inside, most = threading.Barrier(3), [], []

    class Together:
        def ask(self, text, images=(), *, seed=None):
            inside.append(seed)
            most.append(len(inside))
            meeting.wait(timeout=20)
            inside.remove(seed)
            return f"a cat number {seed}"

    made = asker(Together()).captions(subjects(6, CaptionMemory()), workers=3)

    assert len({c.caption for c in made}) == 6
    assert max(most) == 3


@given(st.integers(1, 9), st.integers(2, 5), st.integers(0, 9))
@settings(max_examples=10)
def test_captions_are_the_same_for_any_number_of_workers(count, workers, words):
    """Though answers are refused and repeat each other."""
    one, many = (
        asker(Talker(12 + words), attempts=200).captions(
            subjects(count, CaptionMemory()), workers=w
        )
        for w in (1, workers)
    )

    assert one == many


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
    place = "'a cat', sample 2: status 401" if kind is ChatRefusedError else "status 401"
    with pytest.raises(kind, match=place):
        caption(model, memory, on_refusal="prompt")

    assert len(model.asked) == 1
    assert memory.earlier("a cat") == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instructions": {}}, "`instructions` must hold at least one"),
        ({"instructions": {"none": "x"}}, "`instructions` must not be named 'none'"),
        ({"attempts": 0}, "`attempts` must be at least 1; got 0"),
    ],
)
def test_rejects_bad_settings(changes, message):
    """By name."""
    with pytest.raises(ValueError, match=message):
        asker(Scripted(""), **changes)


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
