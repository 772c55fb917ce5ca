"""`memo`: laws of what calls share."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from mvczigal_ref.models.memo import memo, memo_scope
from mvczigal_ref.update.loop import optimizer_step


class Counted:
    """A source that doubles itself and counts how often."""

    def __init__(self):
        self.source, self.times = torch.ones(2, 2), 0

    def __call__(self, source=None):
        source = self.source if source is None else source
        return memo(self, "double", [source], lambda: self.double(source))

    def double(self, source):
        self.times += 1
        return 2 * source


@pytest.fixture
def counted():
    """Give a fresh one."""
    return Counted()


# -- laws ---------------------------------------------------------------------------------


def test_a_value_is_computed_once_per_scope(counted):
    """Outside of one every time, and inside of a nested one not again."""
    assert counted() is not counted()
    with memo_scope():
        first = counted()
        with memo_scope():
            assert counted() is first
        assert counted() is first
    with memo_scope():
        assert counted() is not first
    assert counted.times == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.add_(1.0),
        lambda t: t + 1.0,
        lambda t: t.t(),
        lambda t: t[:1],
        lambda t: t[:1].expand(2, 2),
    ],
    ids=["in place", "another", "transposed", "part", "expanded"],
)
def test_another_source_has_a_value_of_its_own(change, counted):
    """Also one in the same memory."""
    counted.source = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with memo_scope():
        counted()
        changed = change(counted.source)
        assert torch.equal(counted(changed), 2 * changed)


def test_memory_of_a_source_is_not_given_to_another(counted):
    """Else a new tensor could have the address of one that is gone."""
    with memo_scope():
        for value in range(50):
            assert counted(torch.full((2, 2), float(value)))[0, 0] == 2 * value


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_a_step_of_any_adamw_is_seen(options, counted):
    """Torch's fused one leaves the version of a parameter as it was."""
    counted.source = nn.Parameter(counted.source)
    counted.source.grad = torch.ones(2, 2)
    optimizer = torch.optim.AdamW([counted.source], lr=0.1, **options)
    with memo_scope():
        counted()
        optimizer_step(optimizer, [counted.source], max_grad_norm=1.0)
        assert torch.equal(counted(), 2 * counted.source)


def test_a_thread_has_scopes_of_its_own(counted):
    """One may end before the other."""
    with memo_scope(), ThreadPoolExecutor(1) as thread:
        counted()
        thread.submit(counted).result()
        assert counted.times == 2


def test_inference_mode_shares_nothing(counted):
    """Its tensors have no version."""
    with memo_scope(), torch.inference_mode():
        counted(torch.ones(2))
        counted(torch.ones(2))
    assert counted.times == 2
