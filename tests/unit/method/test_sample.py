"""`method.sample`, `method.steps` and `sample_advantages`: oracle, laws, errors."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.advantage.branches import (
    depth_advantages,
    fuse_leaf_rewards,
    granular_advantages,
)
from mvczigal_ref.diffusion.gaussian import joint_log_prob
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.method.group_advantages import sample_advantages
from mvczigal_ref.method.sample import draw_samples
from mvczigal_ref.method.steps import check_grid, check_steps, plan_of, stochastic_steps
from mvczigal_ref.records import BranchTrajectory, GroupTrajectory
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.windows import random_steps
from tests.analytic_system import PROMPTS, analytic_system
from tests.iterations import FLOW, GROUP, config_of
from tests.strategies import randn
from tests.unannotated import without_shape_checks

TREE = {**FLOW, **GROUP, "rollout.kind": "tree", "rollout.split_steps": [0, 2]}
BRANCHES = {**FLOW, **GROUP, "rollout.kind": "branches", "rollout.trunks": 2}
ALONE = {"": 1.0}


def draw(config, *, iteration=0, objects=(0, 1)):
    """Sample two prompts' groups."""
    system = analytic_system(config)
    noise = SeededNoise(seed=0, iteration=iteration, objects=objects, shape=system.latent_shape)
    conditioning = system.conditioning([PROMPTS[i] for i in objects])
    return draw_samples(system, conditioning, noise, config=config, iteration=iteration)


def advantages(config, samples, reward, *, leaf_log_prob=None):
    """Compare one reward."""
    return sample_advantages(
        {"": reward}, weights=ALONE, samples=samples, tree_log_prob=leaf_log_prob, config=config
    )


def compare(rewards, *, ddof, delta, clip, spread=None):
    """Standardise one group in plain floats."""
    mean = math.fsum(rewards) / len(rewards)
    if spread is None:
        total = math.fsum((r - mean) ** 2 for r in rewards)
        spread = math.sqrt(total / (len(rewards) - ddof))
    return [max(-clip, min(clip, (r - mean) / (spread + delta))) for r in rewards]


def told(wanted):
    """Read the section's numbers."""
    return {"ddof": wanted.ddof, "delta": wanted.delta, "clip": wanted.clip}


def slow_branches(config, reward, steps):
    """Walk views, prompts, steps and trunks; add the finishing grids' advantages."""
    trunks, members = config.rollout.trunks, config.rollout.members
    grids, (views, prompts, _) = len(config.rollout.strides), reward.shape
    tables = [torch.zeros(views, prompts, trunks * members) for _ in range(steps)]
    how = {**told(config.advantage), "clip": math.inf}
    for view, prompt, step, trunk in itertools.product(
        *map(range, (views, prompts, steps, trunks))
    ):
        added = [0.0] * members
        for grid in range(grids):
            first = ((step * grids + grid) * trunks + trunk) * members
            group = reward[view, prompt, first : first + members].tolist()
            added = [a + b for a, b in zip(added, compare(group, **how), strict=True)]
        clip = config.advantage.clip
        held = [max(-clip, min(clip, a)) for a in added]
        tables[step][view, prompt, trunk * members : (trunk + 1) * members] = torch.tensor(held)
    return tables


def slow_tree(config, reward, widths, log_prob=None):
    """Give every node its leaves' weighted mean, and compare the nodes of a depth."""
    views, prompts, leaves = reward.shape
    tables, heat = [], config.advantage.fusion_inverse_temperature
    for depth in range(1, len(widths) + 1):
        nodes = math.prod(widths[:depth])
        below = leaves // nodes
        means = torch.zeros(views, prompts, nodes, dtype=torch.float64)
        for view, prompt, node in itertools.product(range(views), range(prompts), range(nodes)):
            own = slice(node * below, (node + 1) * below)
            weights = [1.0] * below
            if log_prob is not None:
                weights = [math.exp(heat * x) for x in log_prob[prompt, own].tolist()]
            pairs = zip(weights, reward[view, prompt, own].tolist(), strict=True)
            means[view, prompt, node] = math.fsum(w * r for w, r in pairs) / math.fsum(weights)
        spread = None
        if config.advantage.spread == "batch":
            spread = statistics.pstdev(means.flatten().tolist())
        tables.append(
            torch.tensor(
                [
                    [compare(group, **told(config.advantage), spread=spread) for group in rows]
                    for rows in means.tolist()
                ]
            )
        )
    return tables


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [[1], [1, 2]])
@pytest.mark.parametrize("ddof", [0, 1])
def test_branches_are_compared_within_step_trunk_and_grid(strides, ddof):
    """A decision's members lie trunk by trunk; the clip is of the sum over grids."""
    config = config_of(
        BRANCHES, {"rollout.strides": strides, "advantage.ddof": ddof, "advantage.clip": 1.3}
    )
    samples = draw(config)
    steps = len(samples.decisions)
    assert steps == 4
    assert samples.denoised.shape[:2] == (2, steps * len(strides) * 2 * 3)
    reward = randn(3, 2, samples.denoised.shape[1], seed=3, dtype=torch.float64)
    found = advantages(config, samples, reward)

    for table, expected, decision in zip(
        found, slow_branches(config, reward, steps), samples.decisions, strict=True
    ):
        assert table.shape == (3, *decision.log_prob.shape[:2])
        torch.testing.assert_close(table.float(), expected)


def test_a_branch_is_judged_where_it_was_drawn():
    """Samples along one axis: step, grid and branch; the last step's are its actions."""
    config = config_of(BRANCHES, {"rollout.strides": [1, 2]})
    samples = draw(config)
    finished = samples.denoised.unflatten(1, (4, 2, 6))
    last = samples.decisions[3]

    for grid in range(2):
        torch.testing.assert_close(finished[:, 3, grid], last.action)
    assert not torch.allclose(finished[:, 0, 0], finished[:, 0, 1])


@pytest.mark.parametrize("heat", [0.0, 2.0])
@pytest.mark.parametrize("spread", ["group", "batch"])
def test_a_tree_s_nodes_are_compared_within_their_depth(heat, spread):
    """Rewards of inner nodes are their leaves'; a step's members take the table of its depth."""
    how = {"advantage.fusion_inverse_temperature": heat, "advantage.spread": spread}
    config = config_of(TREE, how, {"advantage.clip": 1.1, "objective.train_share": 0.75})
    samples = draw(config)
    paths = samples.leaf_log_prob
    reward = randn(3, 2, 4, seed=4, dtype=torch.float64)
    found = advantages(config, samples, reward, leaf_log_prob=paths if heat else None)
    depths = slow_tree(config, reward, (2, 2), paths if heat else None)

    assert len(samples.decisions) == 3
    for decision, table in zip(samples.decisions, found, strict=True):
        assert decision.depth == (0 if decision.step < 2 else 1)
        torch.testing.assert_close(table.float(), depths[decision.depth].float())


def test_a_leaf_s_path_counts_every_step():
    """Whether it is trained or not, over all views; what leaves share is the same number."""
    every = draw(config_of(TREE))
    some = draw(config_of(TREE, {"objective.train_share": 0.5}))
    expected = torch.zeros(2, 4)
    for decision in every.decisions:
        rows = decision.log_prob.sum(-1)
        expected += rows.repeat_interleave(4 // rows.shape[1], dim=1)

    torch.testing.assert_close(every.leaf_log_prob, expected)
    assert torch.equal(every.leaf_log_prob, some.leaf_log_prob)


@pytest.mark.parametrize("spread", ["group", "batch"])
def test_a_group_has_one_advantage_for_all_of_its_steps(spread):
    """Of each view by itself, among the samples of its prompt."""
    config = config_of(FLOW, GROUP, {"advantage.spread": spread, "advantage.delta": 0.1})
    samples = draw(config)
    reward = randn(3, 2, 3, seed=5, dtype=torch.float64)
    found = advantages(config, samples, reward)
    (expected,) = slow_tree(config, reward, (3,))

    assert len(found) == len(samples.decisions) == 4
    for table in found:
        torch.testing.assert_close(table.float(), expected.float())


def test_both_arms_of_a_pair_are_a_group_of_two():
    """The zigzag arm first, with states, actions and scores of their own."""
    config = config_of({"objective.kind": "policy_gradient"})
    samples = draw(config)
    reward = torch.tensor([[1.0, 3.0], [5.0, 5.0]], dtype=torch.float64)

    assert [d.step for d in samples.decisions] == [0, 1, 2]
    for table in advantages(config, samples, reward):
        assert table.tolist() == [[pytest.approx(-1, abs=1e-3), pytest.approx(1, abs=1e-3)], [0, 0]]
    first = samples.decisions[0]
    assert first.state.shape == first.action.shape == (2, 2, *samples.denoised.shape[2:])
    assert not torch.equal(first.action[:, 0], first.action[:, 1])
    plain = draw(config_of({"objective.kind": "policy_gradient", "zigzag.steps": 0}))
    same = [torch.equal(samples.denoised[:, arm], plain.denoised[:, arm]) for arm in range(2)]
    assert same == [False, True]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", ["lcm", "ddim"])
def test_an_action_that_no_image_shows_is_dropped_unless_asked_for(kind, trained):
    """Of pairs, as where their arms are compared."""
    how = {"objective.kind": "policy_gradient", "objective.train_last_action": trained}
    samples = draw(config_of(how, {"sampler.kind": kind}))

    assert len(samples.decisions) == (4 if trained else 3)


@pytest.mark.parametrize(("ddof", "clip"), [(0, math.inf), (1, 0.8)])
def test_a_tree_has_the_published_depth_advantages(ddof, clip):
    """Of one reward and each group's own spread, nodes fused by likelihood."""
    how = {
        "advantage.fusion_inverse_temperature": 0.3, "advantage.ddof": ddof, "advantage.delta": 0.1,
        "advantage.clip": 1e9 if clip == math.inf else clip,
    }  # fmt: skip
    config = config_of(TREE, how)
    samples = draw(config)
    reward = randn(2, samples.denoised.shape[1], seed=7, dtype=torch.float64)
    log_prob = randn(*reward.shape, seed=8, dtype=torch.float64)
    fused = fuse_leaf_rewards(
        reward, branching=samples.branching, leaf_log_prob=log_prob, inverse_temperature=0.3
    )
    published = depth_advantages(fused, ddof=ddof, delta=0.1, clip=clip)
    tables = advantages(config, samples, reward, leaf_log_prob=log_prob)

    assert {d.depth for d in samples.decisions} == {0, 1}
    for decision, table in zip(samples.decisions, tables, strict=True):
        torch.testing.assert_close(table, published[decision.depth], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strides", [[1], [1, 2]])
def test_branches_have_the_published_granular_advantages(strides):
    """Rewards are laid out as the record of a branched rollout lays them out."""
    config = config_of(BRANCHES, {"rollout.strides": strides})
    samples = draw(config)
    steps, grids = len(samples.decisions), len(strides)
    record = BranchTrajectory(
        decisions=samples.decisions,
        denoised=samples.denoised.unflatten(1, (steps, grids, -1)).movedim(0, 2),
        num_trunks=config.rollout.trunks,
    )
    reward = randn(2, steps * grids * record.denoised.shape[3], seed=9, dtype=torch.float64)
    by_step = reward.unflatten(1, (steps, grids, -1)).movedim(0, 2)
    published = granular_advantages(
        {"": record.reward_table(by_step)}, weights=ALONE, ddof=config.advantage.ddof,
        delta=config.advantage.delta, clip=config.advantage.clip,
    )  # fmt: skip
    tables = advantages(config, samples, reward)

    assert len(tables) == steps
    for table, expected in zip(tables, published, strict=True):
        torch.testing.assert_close(table, expected.flatten(1), rtol=1e-12, atol=1e-12)


def test_a_leaf_s_path_has_the_joint_log_density_of_its_views():
    """Added up over the steps of its path."""
    samples = draw(config_of(TREE))
    tree = GroupTrajectory(
        decisions=samples.decisions, denoised=samples.denoised, branching=samples.branching
    )
    by_step = joint_log_prob(tree.leaf_log_prob(), reduction="sum")

    torch.testing.assert_close(samples.leaf_log_prob, by_step.sum(0), rtol=1e-6, atol=1e-6)


# -- laws --------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.floats(0.1, 1.0), st.integers(0, 20))
def test_a_share_of_the_steps_is_trained(share, iteration):
    """At least one, drawn anew each iteration, and nothing else changes."""
    with without_shape_checks():
        whole = draw(config_of(FLOW, GROUP), iteration=iteration)
        part = draw(config_of(FLOW, GROUP, {"objective.train_share": share}), iteration=iteration)
    count = max(1, round(4 * share))
    kept = random_steps(seed=0, iteration=iteration, size=count, num_steps=4)

    assert tuple(d.step for d in part.decisions) == kept
    assert torch.equal(whole.denoised, part.denoised)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"window": "all"}, [(0, 1, 2, 3, 4, 5)] * 3),
        ({"window": "fixed", "window_start": 1, "window_spacing": 2}, [(1, 3)] * 3),
        ({"window": "sliding", "window_interval": 2, "window_stride": 2}, [(0, 1), (0, 1), (2, 3)]),
        ({"window": "sliding", "window_interval": 1, "window_size": 4}, [(0, 1, 2, 3)]),
        (
            {"window": "sliding", "window_interval": 1, "window_size": 5, "window_end": "restart"},
            [(0, 1, 2, 3, 4), (1, 2, 3, 4, 5)] * 2,
        ),
        (
            {"window": "decaying", "window_interval": 2, "window_decay": 9.0},
            [(0, 1), (0, 1), (1, 2)],
        ),
        (
            {"window": "decaying", "window_interval": 2, "window_decay": 9.0,
             "window_decay_after": 1},
            [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3), (3, 4)],
        ),
    ],
)  # fmt: skip
def test_windows_are_the_settings(window, expected):
    """Of the steps whose noise an image can show."""
    words = {f"rollout.{name}": value for name, value in window.items()}
    config = config_of(FLOW, GROUP, words)
    found = [stochastic_steps(config, most=6, iteration=n) for n in range(len(expected))]

    assert found == expected


def test_a_random_window_starts_between_its_ends():
    """All of them, in the end; another seed draws others."""
    how = {"rollout.window": "random", "rollout.window_start": 1, "rollout.window_last_start": 3}
    drawn = [
        [stochastic_steps(config_of(FLOW, GROUP, how, {"run.seed": s}), most=6, iteration=n)
         for n in range(40)]
        for s in (0, 1)
    ]  # fmt: skip

    assert set(drawn[0]) == {(1, 2), (2, 3), (3, 4)}
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"flow.kernel": "sde"}, 4),
        ({"flow.kernel": "cps"}, 3),
        ({"flow.kernel": "constant", "flow.image_is_denoised": True}, 3),
        ({"flow.kernel": "cps", "flow.image_is_denoised": True}, 3),
    ],
)
def test_all_is_every_step_whose_noise_shows(how, expected):
    """One that ends clean draws none there; of a clean guess the last draw is not seen."""
    config = config_of(FLOW, GROUP, how)
    plan = plan_of(config, analytic_system(config), 0)

    assert plan.stochastic_steps == tuple(range(expected))


def test_a_tree_draws_noise_from_its_first_split_on():
    """Before it all members would share what was drawn."""
    config = config_of(TREE, {"rollout.split_steps": [3, 1], "rollout.split_width": 3})
    plan = plan_of(config, analytic_system(config), 0)

    assert plan.stochastic_steps == (1, 2, 3)
    assert plan.widths == (1, 3, 1, 3)


def test_the_forward_process_draws_no_noise_on_the_way():
    """Each member follows the ODE from its own noise; rewards belong to samples alone."""
    config = config_of(FLOW, GROUP, {"objective.kind": "forward_process"})
    samples = draw(config)

    assert samples.decisions == ()
    (table,) = advantages(config, samples, torch.tensor([[1.0, 2.0, 3.0]]))
    assert table.shape == (1, 3)


@pytest.mark.parametrize("kind", [GROUP | FLOW, TREE, BRANCHES])
def test_means_are_kept_for_the_guard_alone(kind):
    """Nobody else reads them."""
    for objective in ("guard", "policy_gradient"):
        samples = draw(config_of(kind, {"objective.kind": objective}))
        kept = [decision.mean is not None for decision in samples.decisions]
        assert kept == [objective == "guard"] * len(kept)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ((FLOW, GROUP, {"rollout.window": "fixed", "rollout.window_size": 5}), "leave room"),
        ((BRANCHES, {"rollout.window": "fixed", "rollout.window_start": 3}), "leave room"),
        ((FLOW, GROUP, {"rollout.window": "random", "rollout.window_last_start": 3}), "leave room"),
        ((TREE, {"rollout.split_steps": [0, 4]}), "`branching` must increase within 0..3"),
        ((TREE, {"rollout.pruned_steps": [0, 1, 2, 3]}), "must leave a noisy step to train"),
        ((FLOW, GROUP, {"flow.kernel": "cps", "sampler.num_steps": 1}), "leave a step whose noise"),
        (
            (GROUP, {"sampler.num_steps": 1, "objective.train_last_action": True}),
            "leave a step whose noise the image shows; got 1",
        ),
    ],
)
def test_what_does_not_fit_the_grid_is_refused(how, said):
    """Before anything is sampled."""
    config = config_of(*how, {"zigzag.steps": 0})
    for check in (lambda: check_steps(analytic_system(config), config), lambda: check_grid(config)):
        with pytest.raises(ConfigError, match=rf"`rollout` does not fit `sampler`: .*{said}"):
            check()


@pytest.mark.parametrize(
    "how",
    [
        (FLOW, GROUP), (TREE,), (BRANCHES,), (FLOW, GROUP, {"objective.kind": "forward_process"}),
        ({"objective.kind": "policy_gradient"},), (GROUP,),
    ],
)  # fmt: skip
def test_what_fits_is_let_pass(how):
    """Every kind of sample."""
    config = config_of(*how)
    check_steps(analytic_system(config), config)
    check_grid(config)


def test_branches_need_a_flow_s_sampler():
    """No other has an ODE for the trunk; a group in its place would be something else."""
    flow = config_of(FLOW, {**GROUP, "rollout.kind": "branches"})
    system = analytic_system(config_of(GROUP))
    noise = SeededNoise(seed=0, iteration=0, objects=(0,), shape=system.latent_shape)
    with pytest.raises(TypeError, match=r"`sampler` must be a flow's.*got LcmSampler"):
        draw_samples(system, system.conditioning(PROMPTS[:1]), noise, config=flow, iteration=0)
