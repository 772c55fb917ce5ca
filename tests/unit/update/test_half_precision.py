"""The loss scale in an update: gradients of half precision against fp32, overflow, zero."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError, ZeroGradientError
from mvczigal_ref.update.loop import GradientStats, update_parameters
from mvczigal_ref.update.loss_scale import LossScale
from tests.unit.models.small import randn
from tests.unit.update.test_loop import TwoProcesses

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def draw(*shape, seed):
    """Draw fp32 numbers of order one."""
    return randn(*shape, seed=seed).float()


class Adapted(nn.Module):
    """Two convolutions of frozen weights, with fp32 adapters on fp32 products between them."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        shapes = ((6, 3, 3, 3), (3, 6, 3, 3))
        self.frozen = [0.3 * draw(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
        self.adapters = nn.ParameterList(
            nn.Parameter(0.1 * draw(width, width, 1, 1, seed=9 + width)) for width in (6, 3)
        )

    def forward(self, image):
        """Convolve in the network's type, adapt in fp32."""
        found = image.to(self.dtype)
        for frozen, adapter in zip(self.frozen, self.adapters, strict=True):
            found = nn.functional.conv2d(found, frozen, padding=1)
            found = found + nn.functional.conv2d(found.float(), adapter).to(self.dtype)
        return found.float()


@dataclass
class Part:
    """A microbatch whose loss has derivatives of a given size by the network's output."""

    network: Adapted
    size: float
    seed: int = 0
    count: int = 2
    exact: bool = False
    place: str = "here"

    def accumulate(self, *, weight, on_policy):
        """Send derivatives of that size backward."""
        output = self.network(draw(2, 3, 6, 6, seed=self.seed))
        derivative = self.size * draw(2, 3, 6, 6, seed=100 + self.seed)
        output.backward(weight * derivative)
        zero = torch.zeros(())
        return GradientStats(
            loss=zero,
            log_ratio_square=zero,
            clipped=zero,
            deviation=zero,
            asks=derivative.any(),
            count=self.count,
            num_log_ratios=0,
        )


def update(network, parts, scale, *, world=None, optimizer=None, growth_interval=2000):
    """Take one optimiser step, by plain gradient descent unless told otherwise."""
    parameters = list(network.parameters())
    return update_parameters(
        optimizer or torch.optim.SGD(parameters, lr=1.0),
        [parts],
        parameters=parameters,
        world=world or World(),
        epochs=1,
        max_grad_norm=math.inf,
        clip_range=1.0,
        loss_scale=scale,
        growth_interval=growth_interval,
    )


def gradient(dtype, size, scale=None):
    """Find the gradient that the optimiser is given, after as many skipped steps as it takes."""
    network, found = Adapted(DTYPES[dtype]), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(
        lambda *_: found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    )
    while not found:
        parts = [Part(network, size, seed) for seed in range(3)]
        _, scale = update(network, parts, scale, optimizer=optimizer)
    return found[0], scale


# -- laws --------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.floats(-8, 2))
def test_fp16_gradients_are_those_of_fp32(exponent):
    """Over ten orders of magnitude, from below the smallest number of fp16 to an overflow."""
    size = 10.0**exponent
    half, scale = gradient("fp16", size, LossScale())
    exact, _ = gradient("fp32", size)

    assert torch.cosine_similarity(half, exact, dim=0) > 0.9999
    assert half.norm().item() == pytest.approx(exact.norm().item(), rel=5e-3)
    if size < 0.1 or size > 10.0:
        assert (scale.scale < 2.0**16) == (size > 10.0)


@settings(max_examples=10)
@given(st.floats(-8, 2))
def test_bf16_gradients_need_no_scale(exponent):
    """They have the exponents of fp32."""
    half, scale = gradient("bf16", 10.0**exponent)
    exact, _ = gradient("fp32", 10.0**exponent)

    assert scale is None
    assert torch.cosine_similarity(half, exact, dim=0) > 0.999
    assert half.norm().item() == pytest.approx(exact.norm().item(), rel=3e-2)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@given(exponent=st.integers(0, 32), size=st.floats(1e-6, 1e2))
def test_a_power_of_two_changes_no_bit(dtype, exponent, size):
    """Where the type has exponents enough, whatever the scale."""
    one, other = Adapted(DTYPES[dtype]), Adapted(DTYPES[dtype])
    plain, _ = update(one, [Part(one, size, s) for s in range(3)], None)
    told, _ = update(
        other, [Part(other, size, s) for s in range(3)], LossScale(scale=2.0**exponent)
    )

    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert {**plain, "loss_scale": 2.0**exponent, "skipped_steps": 0.0} == told


@pytest.mark.parametrize("world", [World(), TwoProcesses()])
def test_an_overflow_halves_the_scale_and_leaves_the_step_out(world):
    """Neither parameters nor the optimiser notice; the step is counted."""
    network = Adapted(torch.float16)
    before = [p.detach().clone() for p in network.parameters()]
    parts = [Part(network, 1e-4, 0), Part(network, 1e3, 1)]  # one of them is enough
    metrics, scale = update(network, parts, LossScale(good_steps=7), world=world)

    assert scale == LossScale(scale=2.0**15)
    assert (metrics["skipped_steps"], metrics["loss_scale"]) == (1.0, 2.0**15)
    assert math.isnan(metrics["grad_norm"])
    assert all(map(torch.equal, network.parameters(), before))
    assert all(p.grad is None for p in network.parameters())


def test_a_step_beside_a_skipped_one_is_taken():
    """Its norm alone is told."""
    network, alone = Adapted(torch.float16), Adapted(torch.float16)
    parameters = list(network.parameters())
    metrics, scale = update_parameters(
        torch.optim.SGD(parameters, lr=1.0), [[Part(network, 1e2)], [Part(network, 1e-3)]],
        parameters=parameters, world=World(), epochs=1, max_grad_norm=math.inf, clip_range=1.0,
        loss_scale=LossScale(),
    )  # fmt: skip
    only, _ = update(alone, [Part(alone, 1e-3)], LossScale(scale=2.0**15))

    assert scale == LossScale(scale=2.0**15, good_steps=1)
    assert metrics["skipped_steps"] == 1.0
    assert metrics["grad_norm"] == only["grad_norm"] > 0
    assert all(map(torch.equal, network.parameters(), alone.parameters()))


def test_finite_steps_double_the_scale():
    """After as many as the settings say."""
    network, scale, found = Adapted(torch.float16), LossScale(), []
    for _ in range(4):
        _, scale = update(network, [Part(network, 1e-6)], scale, growth_interval=2)
        found.append(scale.scale)

    assert found == [2.0**16, 2.0**17, 2.0**17, 2.0**18]


def test_nothing_asked_is_nothing_learnt():
    """Equal advantages make a gradient of zero, which is right, and counted."""
    network = Adapted(torch.float32)
    metrics, _ = update(network, [Part(network, 0.0)], None)
    asking, _ = update(network, [Part(network, 0.0), Part(network, 1.0)], None)

    assert (metrics["idle_steps"], metrics["grad_norm"]) == (1.0, 0.0)
    assert "idle_steps" not in asking


def test_a_norm_that_underflows_is_no_idle_step():
    """The squares of the smallest numbers are 0, but the numbers are not, and the step is taken."""
    network = Adapted(torch.float32)
    metrics, _ = update(network, [Part(network, 1e-30)], None)

    assert metrics["grad_norm"] == 0.0
    assert "idle_steps" not in metrics


def test_a_step_that_asks_nothing_after_one_that_did_is_idle():
    """Each optimiser step is judged by its own microbatches."""
    network = Adapted(torch.float32)
    parameters = list(network.parameters())
    metrics, _ = update_parameters(
        torch.optim.SGD(parameters, lr=1.0), [[Part(network, 1.0)], [Part(network, 0.0)]],
        parameters=parameters, world=World(), epochs=1, max_grad_norm=math.inf, clip_range=1.0,
    )  # fmt: skip

    assert metrics["idle_steps"] == 1.0


# -- errors ------------------------------------------------------------------------------


def test_a_gradient_that_rounds_away_stops_the_run():
    """Derivatives below the smallest number of fp16, without a scale; the remedy is told."""
    network = Adapted(torch.float16)
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(ZeroGradientError) as raised:
        update(network, [Part(network, 1e-9)], None)

    assert "exactly zero over a whole optimiser step, though advantages differ" in str(raised.value)
    assert "loss scale of 1 all of it rounds away" in str(raised.value)
    assert "Set `optim.loss_scale` higher, or `model.dtype`" in str(raised.value)
    assert all(map(torch.equal, network.parameters(), before))


class Alone(TwoProcesses):
    """A world whose other process asks for a change."""

    def anywhere(self, flag):
        """Say yes."""
        return True


def test_a_process_without_advantages_stops_with_one_that_has_some():
    """All of them raise, or none."""
    network = Adapted(torch.float16)
    with pytest.raises(ZeroGradientError):
        update(network, [Part(network, 0.0)], None, world=Alone())


@pytest.mark.parametrize("scale", [None, LossScale(scale=1.0)])
def test_an_overflow_of_the_plain_gradient_stops_the_run(scale):
    """There is no smaller scale; parameters stay."""
    network = Adapted(torch.float16)
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(NonFiniteError, match="gradient_norm"):
        update(network, [Part(network, 1e6)], scale)

    assert all(map(torch.equal, network.parameters(), before))
