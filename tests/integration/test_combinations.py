"""Samplers, rollouts, objectives and captions are independent: what does not fit says why."""

from itertools import product

import pytest
import torch

from mvczigal_ref.config import from_dict, to_dict
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.system import build_system
from mvczigal_ref.system.enhancer import build_enhancer
from mvczigal_ref.training.tracking import StageTimer

PROMPTS = ["a red cube with a white nose", "a blue can with a green fin"]
SAMPLERS = ("lcm", "ddim", "flow")
ROLLOUTS = ("pair", "group", "tree", "branches")
PAIRED, GROUPED = ("reward_difference", "preference"), ("policy_gradient", "guard")
OBJECTIVES = (*PAIRED, *GROUPED, "forward_process")
MODES = ("constrained", "joint", "per_view", "weighted_sum")


def reason(sampler, rollout, objective, captions):
    """Say why a cell is empty, in a few words of its refusal; None if it runs."""
    if rollout == "branches" and sampler != "flow":
        return "needs a flow model's ODE as trunk"
    if objective in PAIRED and rollout != "pair":
        return "compares two trajectories"
    if objective in ("guard", "forward_process") and sampler != "flow":
        return "defined on the noise levels of a flow"
    if objective == "guard" and rollout == "pair":
        return "needs groups"
    if objective == "forward_process" and rollout != "group":
        return "learns from samples alone"
    if captions and (rollout == "pair" or objective == "forward_process"):
        return "needs groups that are learnt by their"
    return None


CELLS = list(product(SAMPLERS, ROLLOUTS, OBJECTIVES, (False, True)))
RUN = [cell for cell in CELLS if reason(*cell) is None]
EMPTY = [cell for cell in CELLS if reason(*cell) is not None]


def config_of(sampler, rollout, objective, captions, mode=None):
    """Make the smallest run of a cell."""
    flow = sampler == "flow"
    return from_dict(
        {
            "model": {"network": "flow" if flow else "multiview", "lora_rank": 2},
            "sampler": {"kind": sampler, "num_steps": 3, "guidance_scale": 1.0},
            "rollout": {"kind": rollout, "members": 2, "split_steps": [0, 1]},
            "objective": {"kind": objective},
            "condition": {"enhancer": "world_edits" if captions else "none", "num_captions": 1},
            "reward": {"joint": "per_view" if flow else "world.joint"},
            "advantage": {"mode": mode or ("per_view" if flow else "constrained")},
            "optim": {"optimizer_steps_per_epoch": 1},
            "run": {"objects_per_iteration": 2, "objects_per_slice": 2},
        }
    )


def components(flow):
    """Build the smallest networks, random."""
    if flow:
        return tiny_flow_components(seed=0, num_heads=1, num_layers=1, num_single_layers=1)
    return tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))


def learn(config):
    """Do one iteration; return its metrics and whether a parameter moved."""
    flow = config.model.network == "flow"
    system = build_system(config, device=torch.device("cpu"), components=components(flow))
    trained = system.trained()
    before = {name: p.detach().clone() for name, p in trained.items()}
    result = run_iteration(
        system, torch.optim.SGD(list(trained.values()), lr=1.0),
        ConstraintState(multiplier=1.0, threshold=0.0, initialised=True), PROMPTS,
        iteration=0, config=config, world=World(), timer=StageTimer(torch.device("cpu")),
        enhancer=build_enhancer(config.condition, device=torch.device("cpu")),
        old=before if config.objective.kind == "forward_process" else None,
    )  # fmt: skip
    return result.metrics, any(not torch.equal(before[name], p) for name, p in trained.items())


def named(cells):
    """Name each cell; DDIM's differ from LCM's in the sampler alone, and take as long."""
    return [
        pytest.param(
            cell,
            id="-".join(map(str, cell)),
            marks=pytest.mark.slow if cell[0] == "ddim" and cell[1] != "group" else (),
        )
        for cell in cells
    ]


@pytest.mark.parametrize("cell", named(RUN))
def test_what_fits_together_learns(cell):
    """Finite numbers, a first ratio of exactly 1, and a parameter that moves."""
    metrics, moved = learn(config_of(*cell))

    assert all(value == value for value in metrics.values())
    assert metrics.get("replay_deviation", 0.0) == 0.0
    assert metrics["grad_norm"] > 0.0
    assert moved
    assert ("drift/mean" in metrics) == cell[-1]


FURTHER = {
    "gspo": ("flow", "group", "sequence", {"optim": {"epochs_per_iteration": 2}}),
    "flow_dppo": ("flow", "group", "divergence", {"optim": {"epochs_per_iteration": 2}}),
    "awm": ("flow", "group", "forward_process", {"forward": {"loss": "matching"}}),
    "dgpo": (
        "flow", "group", "forward_process",
        {"forward": {"loss": "group_preference", "shared_noise": True}},
    ),
    "flash_grpo": (
        "flow", "group", "policy_gradient",
        {"objective": {"step_weight": "rectified"},
         "rollout": {"window": "random", "window_size": 1, "window_last_start": 1}},
    ),
    "pruned_tree": (
        "flow", "tree", "policy_gradient",
        {"rollout": {"split_steps": [0], "split_noise": 2.0, "split_density": "kernel",
                     "pruned_leaves": "extremes", "window": "fixed", "window_start": 1,
                     "window_size": 1},
         "advantage": {"fusion": "edge", "fusion_inverse_temperature": 1.0}},
    ),
    "second_order": (
        "flow", "group", "policy_gradient",
        {"flow": {"kernel": "cps", "density": "unscaled", "ode": "dpm2m"},
         "rollout": {"window": "fixed", "window_size": 1, "tail_share": 0.5},
         "advantage": {"drop_alike": True, "pruned_share": 0.5}},
    ),
    "frozen_reference": ("lcm", "pair", "preference", {"objective": {"reference": "frozen"}}),
    "joint_density": ("lcm", "pair", "reward_difference", {"objective": {"density": "joint"}}),
}  # fmt: skip


def further(name):
    """Make the smallest run of a method that is a setting of a cell."""
    sampler, rollout, objective, changes = FURTHER[name]
    values = to_dict(config_of(sampler, rollout, objective, captions=False))
    for section, settings in changes.items():
        values[section] = {**values[section], **settings}
    return from_dict(values)


@pytest.mark.parametrize("name", FURTHER)
def test_further_methods_learn(name):
    """As the cells do; a first ratio is 1 whatever is scored, weighed or left out."""
    metrics, moved = learn(further(name))

    assert all(value == value for value in metrics.values())
    assert metrics.get("replay_deviation", 0.0) == 0.0
    assert metrics["grad_norm"] > 0.0
    assert moved


REFUSED = [
    ("gspo", {"rollout": {"kind": "tree"}}, "needs the whole trajectory of every sample"),
    ("gspo", {"optim": {"step_per_decision": True}}, "whose ratio is over all steps"),
    ("flow_dppo", {"rollout": {"kind": "pair"}}, "needs groups"),
    ("flow_dppo", {"flow": {"kernel": "cps", "density": "unscaled"}}, "which compares Gaussians"),
    ("dgpo", {"model": {"finetune": "full"}}, "needs a reference"),
    ("frozen_reference", {"model": {"finetune": "full"}}, "needs a reference"),
    ("pruned_tree", {"flow": {"kernel": "cps", "density": "unscaled"}}, "adds up log-densities"),
]


@pytest.mark.parametrize(("name", "changes", "why"), REFUSED)
def test_further_methods_refuse_what_does_not_fit(name, changes, why):
    """Before anything is built, with the reason."""
    values = to_dict(further(name))
    for section, settings in changes.items():
        values[section] = {**values[section], **settings}
    with pytest.raises(ConfigError, match=why):
        from_dict(values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rollout", "captions"), [("group", True), ("tree", False)])
def test_the_constraint_is_independent_of_the_objective(mode, rollout, captions):
    """Every mixture of the two rewards gives groups their advantages, with captions too."""
    metrics, moved = learn(config_of("lcm", rollout, "policy_gradient", captions, mode))

    assert moved
    assert metrics["multiplier"] >= 0.0


@pytest.mark.parametrize("cell", EMPTY, ids=lambda cell: "-".join(map(str, cell)))
def test_what_does_not_fit_is_refused_with_the_reason(cell):
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match=reason(*cell)):
        config_of(*cell)
