"""`placement`: laws; what a whole run makes of it is in `test_system`."""

import pytest
import torch
from torch import nn

from mvczigal_ref.models.placement import (
    at_work,
    compile_network,
    lay_channels_last,
    set_tf32,
    take_latents_from,
)

CPU, META = torch.device("cpu"), torch.device("meta")


class Scorer:
    """Notes where it is sent."""

    def __init__(self):
        self.seen = []

    def to(self, device):
        """Go there."""
        self.seen.append(device)


def test_what_waits_works_on_the_device_and_goes_back():
    """A scorer too, and even where the work fails."""
    scorer, network = Scorer(), nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), at_work(scorer, device=META):
        1 / (len(scorer.seen) - 1)
    # Values are lost on the meta device: that they are asked back is the proof.
    with pytest.raises(NotImplementedError), at_work(network, device=META):
        assert network.weight.is_meta

    assert scorer.seen == [META, CPU]


def test_what_is_there_stays_there():
    """Nothing is moved, before or after; one part elsewhere is enough to move."""
    there, half = nn.Linear(1, 1, device=META), nn.Linear(1, 1)
    half.bias = nn.Parameter(half.bias.to(META))
    weight = there.weight
    with at_work(there, device=META):
        assert there.weight is weight
    with pytest.raises(NotImplementedError), at_work(half, device=META):
        assert half.weight.is_meta

    assert there.weight is weight


class Policy(nn.Module):
    """Told latents and a timestep, and something else."""

    def __init__(self, device):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, device=device))
        self.seen = []

    def forward(self, latent, timestep, told, *, scale):
        """Note devices."""
        self.seen.append((latent.device, timestep.device, told, scale))
        return self.weight.view(1)


def test_latents_are_fetched_from_where_they_are():
    """Every tensor that is given by place; what is told is left alone."""
    policy = Policy(META)
    take_latents_from(policy, META)
    policy(torch.zeros(2), torch.tensor(3), "told", scale=2.0)

    assert policy.seen == [(META, META, "told", 2.0)]


def test_answers_are_given_where_latents_are():
    """With their gradient."""
    policy = Policy(CPU)
    take_latents_from(policy, META)
    output = policy(torch.zeros(2), torch.tensor(3), None, scale=1.0)

    assert output.is_meta
    assert output.requires_grad


class Network(nn.Module):
    """Notes under which mode it is traced."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, value, *, scale=1.0):
        """Return a tuple, as the networks do."""
        return (self.layer(value) * scale,)


def test_one_program_is_compiled_for_both_modes():
    """Always with gradient; without, nothing of it is kept."""
    network, programs = Network(), []

    def backend(graph, _inputs):
        programs.append(torch.is_grad_enabled())
        return graph.forward

    value = torch.ones(3, 2)
    plain = network(value, scale=2.0)[0]
    compile_network(network, backend=backend)
    (with_gradient,) = network(value, scale=2.0)
    with torch.no_grad():
        (without,) = network(value, scale=2.0)

    assert programs == [True]
    assert with_gradient.requires_grad
    assert not without.requires_grad
    assert torch.equal(plain, without)
    assert torch.equal(plain, with_gradient)


def test_every_shape_has_a_program_of_its_own():
    """One for all shapes would round otherwise from the second on."""
    network, shapes = Network(), []

    def backend(graph, inputs):
        shapes.extend(i.shape for i in inputs if i.ndim == 2 and not i.requires_grad)
        return graph.forward

    compile_network(network, backend=backend)
    for rows in (3, 4, 3):
        network(torch.ones(rows, 2))

    assert [tuple(shape) for shape in shapes] == [(3, 2), (4, 2)]


def test_channels_last_is_a_layout_of_the_same_values():
    """Of convolutions alone."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 4), nn.Conv1d(2, 2, 1))
    before = [p.detach().clone() for p in network.parameters()]
    lay_channels_last(network)

    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not network[0].weight.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert network[0](torch.ones(1, 2, 8, 8)).is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def precisions():
    """Read CUDA's settings by their newer and older names, and put them back afterwards."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    newer = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [place.allow_tf32 for place in places]
    yield lambda: (
        tuple(place.fp32_precision == "tf32" for place in newer),
        tuple(place.allow_tf32 for place in places),
        torch.get_float32_matmul_precision(),
    )
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


def test_tf32_is_cudas_alone(precisions):
    """Both kinds of products, on or off, whoever asks how; elsewhere nothing is set."""
    allowed, refused = ((True, True),) * 2, ((False, False),) * 2
    set_tf32(torch.device("cuda"), allowed=True)
    assert precisions() == (*allowed, "high")
    set_tf32(torch.device("cpu"), allowed=False)
    assert precisions() == (*allowed, "high")
    set_tf32(torch.device("cuda", 1), allowed=False)
    assert precisions() == (*refused, "highest")
