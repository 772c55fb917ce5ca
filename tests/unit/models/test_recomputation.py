"""`recomputation`: laws of the choice, and of the networks that follow it."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.lora import add_lora
from mvczigal_ref.models.recomputation import (
    Recomputation,
    activation_budget,
    graph_bytes,
    recomputed,
)
from mvczigal_ref.preflight.measure import measure_graph
from tests.unit.models.flow_small import conditioning as flow_conditioning
from tests.unit.models.flow_small import latents
from tests.unit.models.small import conditioning, fresh_components, randn

BLOCKS = st.lists(st.integers(0, 100), min_size=1, max_size=8)


# -- the choice --------------------------------------------------------------------------


@given(BLOCKS, st.integers(0, 50))
def test_nothing_computes_again_where_all_of_it_fits(blocks, fixed):
    """The last byte counts."""
    assert recomputed(blocks, fixed=fixed, budget=fixed + sum(blocks)) == frozenset()


@given(BLOCKS, st.integers(1, 50))
def test_everything_computes_again_where_nothing_fits(blocks, fixed):
    """Not even the inputs and the largest block."""
    budget = fixed + max(blocks) - 1
    assert recomputed(blocks, fixed=fixed, budget=budget) == frozenset(range(len(blocks)))


@given(BLOCKS, st.integers(0, 50), st.integers(0, 900), st.integers(0, 900))
def test_memory_rises_with_the_budget_and_stays_within_it(blocks, fixed, one, other):
    """More memory lets a part of the same blocks keep their activations, and no other."""
    less, more = sorted((one, other))
    few, many = (recomputed(blocks, fixed=fixed, budget=budget) for budget in (more, less))
    taken = [graph_bytes(blocks, chosen, fixed=fixed) for chosen in (many, few)]

    assert few <= many
    assert taken[0] <= taken[1]
    for budget, chosen, size in ((less, many, taken[0]), (more, few, taken[1])):
        assert size <= budget or len(chosen) == len(blocks)


@given(BLOCKS, st.integers(0, 50), st.integers(0, 900))
def test_one_block_fewer_would_not_fit(blocks, fixed, budget):
    """The largest go first."""
    chosen = recomputed(blocks, fixed=fixed, budget=budget)
    if chosen:
        smallest = max(chosen, key=lambda place: (-blocks[place], place))
        assert graph_bytes(blocks, chosen - {smallest}, fixed=fixed) > budget


def test_gradients_and_moments_come_first():
    """Three numbers per parameter, then three quarters of the rest; never less than nothing."""
    assert activation_budget(4000, 1000) == 750
    assert activation_budget(2000, 1000) == 0


# -- networks ----------------------------------------------------------------------------


@cache
def network(kind):
    """Build a network with a LoRA, and a call of it."""
    if kind == "unet":
        policy = fresh_components().policy
        add_lora(policy.unet, rank=2, alpha=2.0, seed=0)
        given_, trained = conditioning(2), policy.unet
        latent = randn(6, 4, 8, 8, seed=3)
    else:
        components = tiny_flow_components(
            seed=1, num_heads=1, head_width=16, num_layers=2, num_single_layers=2,
            vae_channels=(8, 8, 16), text_width=8,
        ).to(dtype=torch.float64)  # fmt: skip
        policy = components.policy
        add_lora(policy.transformer, rank=2, alpha=2.0, seed=0, targets=policy.lora_targets)
        given_, trained = flow_conditioning(components), policy.transformer
        latent = latents()
    parameters = [p for p in trained.parameters() if p.requires_grad]
    with torch.no_grad():
        for place, parameter in enumerate(parameters):
            parameter.copy_(0.1 * randn(*parameter.shape, seed=place))
    time = torch.tensor(500)
    return trained, parameters, lambda: policy(latent, time, given_, guidance_scale=1.0)


def gradients(call, parameters):
    """Call with gradient; give output and gradients."""
    output = call()
    return [output, *torch.autograd.grad(output.square().sum(), parameters)]


@pytest.mark.parametrize("kind", ["unet", "flow"])
def test_no_bit_depends_on_the_choice(kind):
    """Of output and gradients, from no block to all; and memory falls with the budget."""
    trained, parameters, call = network(kind)
    plain = gradients(call, parameters)
    whole = measure_graph(call, present=[*trained.parameters()], backward=False).saved
    counts, saved = [], []
    for budget in (2 * whole, 3 * whole // 4, 0):
        choice = Recomputation(trained, lambda budget=budget: budget)
        values = gradients(call, parameters)
        cost = measure_graph(call, present=[*trained.parameters()], backward=False)
        choice.remove()
        counts.append(choice.count)
        saved.append(cost.saved)
        assert all(map(torch.equal, values, plain))

    assert counts[0] == 0 < counts[1] < counts[2] == choice.blocks
    assert whole == saved[0] > saved[1] > saved[2]
    assert measure_graph(call, present=[*trained.parameters()], backward=False).saved == whole


@pytest.mark.parametrize("kind", ["unet", "flow"])
def test_the_measured_blocks_are_what_a_graph_keeps(kind, monkeypatch):
    """Their sum, with what is outside of them, is the memory of the whole graph."""
    trained, _, call = network(kind)
    seen = []

    def noted(blocks, *, fixed, budget):
        seen.append(fixed + sum(blocks))
        return frozenset()

    monkeypatch.setattr("mvczigal_ref.models.recomputation.recomputed", noted)
    choice = Recomputation(trained, lambda: 0)
    call()
    cost = measure_graph(call, present=[*trained.parameters()], backward=False)
    choice.remove()

    assert len(seen) == 1
    assert seen[0] == pytest.approx(cost.saved, rel=0.1)


def test_a_call_without_gradient_measures_nothing():
    """A rollout costs what it did."""
    trained, _, call = network("unet")
    choice = Recomputation(trained, lambda: pytest.fail("measured"))
    with torch.no_grad():
        call()
    choice.remove()
    assert choice.blocks == 0
