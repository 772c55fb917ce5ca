"""`online`: oracle, laws, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.condition.captions import normalised
from mvczigal_ref.condition.online import ASPECTS, OnlineEnhancer
from mvczigal_ref.condition.protocol import CaptionError, stream
from tests.unit.condition.fakes import Scripted, Talker

PROMPTS = ["a cat", "a dog by the sea", "two birds"]


def groups(objects=3, samples=4, views=2):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(objects, samples, views, 3, 4, 4, generator=generator)


def test_each_sample_is_shown_under_an_aspect_of_its_own():
    """All its views and no other's; the aspect is drawn by seed, prompt and sample."""
    model = Scripted("one", "two", "three", "four")
    images = groups(objects=1)
    (captions,) = OnlineEnhancer(model)(["a cat"], images, seed=5)
    drawn = [stream(5, "a cat", index).choice(list(ASPECTS)) for index in range(4)]

    assert [(c.caption, c.instruction, c.sample) for c in captions] == [
        (text, name, index)
        for index, (text, name) in enumerate(
            zip(["one", "two", "three", "four"], drawn, strict=True)
        )
    ]
    for index, name in enumerate(drawn):
        assert ASPECTS[name] in model.asked[index]
        assert "Caption: a cat" in model.asked[index]
        assert torch.equal(torch.stack(list(model.images[index])), images[0, index])


@settings(max_examples=10)
@given(st.permutations(range(3)), st.integers(0, 9), st.sampled_from([1, 3]))
def test_permuting_prompts_permutes_captions(order, seed, workers):
    """A group's captions are its own, however many are asked about at once."""
    images = groups()
    whole = OnlineEnhancer(Talker(), attempts=50)(PROMPTS, images, seed=seed)
    permuted = OnlineEnhancer(Talker(), attempts=50, workers=workers)(
        [PROMPTS[i] for i in order], images[list(order)], seed=seed
    )

    assert permuted == [whole[i] for i in order]


@settings(max_examples=10)
@given(st.integers(1, 6), st.integers(0, 9))
def test_a_group_has_as_many_captions_as_samples(samples, seed):
    """K = G, none twice, though the model knows a dozen answers."""
    enhancer = OnlineEnhancer(Talker(12), attempts=200)
    for captions in enhancer(PROMPTS, groups(samples=samples), seed=seed):
        assert [caption.sample for caption in captions] == list(range(samples))
        assert len({normalised(caption.caption) for caption in captions}) == samples


def test_another_seed_draws_other_aspects():
    """Each occasion has its own, and over many all are drawn."""
    enhancer = OnlineEnhancer(Talker(10**6), attempts=50)
    names = [
        tuple(c.instruction for c in enhancer(["a cat"], groups(objects=1), seed=seed)[0])
        for seed in range(20)
    ]

    assert len(set(names)) > 10
    assert {name for each in names for name in each} == set(ASPECTS)


def test_one_bad_sample_need_not_stop_a_training():
    """The prompt stands in for its caption, and K stays."""
    model = Scripted("one", "", "two", "")
    (captions,) = OnlineEnhancer(model, attempts=2, on_refusal="prompt")(
        ["a cat"], groups(objects=1, samples=3), seed=0
    )

    assert [c.caption for c in captions] == ["one", "a cat", "two"]
    assert captions[1].instruction == "none"


@pytest.mark.parametrize("workers", [1, 2])
def test_raises_for_a_sample_without_a_caption(workers):
    """From whichever thread it comes."""
    with pytest.raises(CaptionError, match="'a cat', sample 0"):
        OnlineEnhancer(Scripted(""), workers=workers)(PROMPTS, groups(), seed=0)


@pytest.mark.parametrize(
    ("images", "got"),
    [(None, "got no images"), (groups(2), r"got shape \(2, 4"), (groups(3, 0), r"shape \(3, 0")],
)
def test_rejects_groups_that_are_not_one_a_prompt(images, got):
    """Or that are empty."""
    with pytest.raises(ValueError, match=f"`images` must hold one group per prompt, 3.*{got}"):
        OnlineEnhancer(Talker())(PROMPTS, images, seed=0)


def test_rejects_no_workers():
    """When it is made, not in the midst of training."""
    with pytest.raises(ValueError, match="`workers` must be at least 1; got 0"):
        OnlineEnhancer(Talker(), workers=0)
