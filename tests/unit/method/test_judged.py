"""`method.judged`: laws of slices that overlap."""

import threading
from dataclasses import replace

import pytest
import torch

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ScorerUnavailableError
from mvczigal_ref.method import judged
from mvczigal_ref.method.judged import judged_slices
from mvczigal_ref.method.protocol import Iteration
from mvczigal_ref.method.slices import Share
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.training.tracking import StageTimer
from tests.analytic_system import PROMPTS, analytic_system
from tests.iterations import GROUP, config_of

THREE = {
    **GROUP, "run.objects_per_iteration": 6, "run.objects_per_slice": 2,
    "optim.optimizer_steps_per_epoch": 1,
}  # fmt: skip


def slices(overlap, score, **more):
    """Sample and judge three slices; give what came out and the prompts that were heard of."""
    config = config_of(THREE, **{"reward.overlap": overlap, **more})
    system = replace(
        analytic_system(config), joint=None,
        per_view=Mixture(scorers={"judge": score}, weights={"judge": 1.0}),
    )  # fmt: skip
    share, heard = Share.of(config, World()), []
    here = Iteration(config=config, world=World(), share=share, index=3)
    outcome = judged_slices(
        system, None, share.parts(PROMPTS[:6]), here, timer=StageTimer(),
        rollout=lambda prompts, images: heard.append((tuple(prompts), images.clone())),
    )  # fmt: skip
    return outcome, heard


def bright(images, prompts):
    """Judge a view by its brightness."""
    return images.mean((-3, -2, -1))


# -- laws --------------------------------------------------------------------------------


def test_overlapping_changes_no_bit():
    """Of samples and scores, nor of what is heard of them."""
    (one, heard), (other, also) = slices(False, bright), slices(True, bright)

    for mine, theirs in zip(one.samples, other.samples, strict=True):
        assert torch.equal(mine.denoised, theirs.denoised)
    for mine, theirs in zip(one.scores, other.scores, strict=True):
        assert torch.equal(mine.per_view["judge"], theirs.per_view["judge"])
    assert [c.columns for c in one.conditions] == [c.columns for c in other.conditions]
    assert [prompts for prompts, _ in heard] == [prompts for prompts, _ in also]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(heard, also, strict=True))


def test_the_next_slice_is_sampled_while_one_is_judged(monkeypatch):
    """A judge that waits for the next slice's sampling ends; one slice at most waits for it."""
    begun = [threading.Event() for _ in range(4)]
    begun[3].set()  # there is no fourth slice
    right, places, asked = judged.sample, iter(range(3)), iter(range(1, 4))
    order = []

    def sample(*given, **named):
        place = next(places)
        order.append(f"sampling {place}")
        begun[place].set()
        return right(*given, **named)

    def score(images, prompts):
        place = next(asked)
        assert begun[place].wait(60), "the next slice was not sampled meanwhile"
        order.append(f"judged {place - 1}")
        return bright(images, prompts)

    monkeypatch.setattr(judged, "sample", sample)
    slices(True, score)
    assert [line for line in order if "judged" in line] == ["judged 0", "judged 1", "judged 2"]
    for place in range(2):
        assert order.index(f"sampling {place + 1}") < order.index(f"judged {place}")
    assert order.index("judged 0") < order.index("judged 1")


def test_without_it_all_is_sampled_first(monkeypatch):
    """And judged in the thread that samples."""
    right, order, threads = judged.sample, [], set()

    def sample(*given, **named):
        order.append("sampling")
        return right(*given, **named)

    def score(images, prompts):
        order.append("judged")
        threads.add(threading.current_thread())
        return bright(images, prompts)

    monkeypatch.setattr(judged, "sample", sample)
    slices(False, score)
    assert order == ["sampling"] * 3 + ["judged"] * 3
    assert threads == {threading.main_thread()}


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
def test_a_judge_that_fails_ends_the_iteration(overlap):
    """With its own error, and nothing more is asked of it."""
    calls = []

    def score(images, prompts):
        calls.append(prompts)
        raise ScorerUnavailableError("the judge is out")

    with pytest.raises(ScorerUnavailableError, match="the judge is out"):
        slices(overlap, score)
    assert len(calls) == 1
    assert threading.active_count() < 10
