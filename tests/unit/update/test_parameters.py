"""`update.parameters`: laws, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.update.parameters import follow_parameters, parameters_as


@given(st.floats(0, 0.999), st.integers(0, 10_000))
def test_it_moves_by_what_the_decay_leaves(decay, steps):
    """Faster in the first steps than later."""
    before = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor(3.0)}
    now = {"a": torch.tensor([5.0, 0.0]), "b": torch.tensor(3.0)}
    found = follow_parameters(before, now, decay=decay, steps=steps)
    share = min(decay, (1 + steps) / (10 + steps))

    assert found["a"].tolist() == pytest.approx([5 - 4 * share, -2 * share], abs=1e-5)
    assert found["b"].item() == pytest.approx(3.0)
    assert before["a"].tolist() == [1.0, -2.0]


def test_parameters_get_no_gradient():
    """The average is a number."""
    weight = torch.nn.Parameter(torch.ones(2))
    found = follow_parameters({"w": torch.zeros(2)}, {"w": weight}, decay=0.9, steps=8)

    assert not found["w"].requires_grad
    assert found["w"].tolist() == [0.5, 0.5]


def test_parameters_come_back_after_an_error():
    """Bit for bit, and trainable."""
    weight = torch.nn.Parameter(torch.tensor([0.1, 0.2]))

    def fail():
        with parameters_as({"w": weight}, {"w": torch.zeros(2)}):
            assert torch.is_grad_enabled()
            assert weight.tolist() == [0.0, 0.0]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(weight.detach(), torch.tensor([0.1, 0.2]))
    assert weight.requires_grad


@pytest.mark.parametrize(
    ("names", "decay", "steps", "match"),
    [
        ("ab", 0.5, 0, r"`average` must have the parameters' names; these differ: \['b'\]"),
        ("a", 1.0, 0, r"`decay` must be in \[0, 1\)"),
        ("a", -0.1, 0, r"`decay` must be in \[0, 1\)"),
        ("a", 0.5, -1, "`steps` not negative; got 0.5 and -1"),
    ],
)
def test_what_does_not_fit_is_refused(names, decay, steps, match):
    """With what was given."""
    average = {name: torch.zeros(1) for name in names}
    with pytest.raises(ValueError, match=match):
        follow_parameters(average, {"a": torch.zeros(1)}, decay=decay, steps=steps)
