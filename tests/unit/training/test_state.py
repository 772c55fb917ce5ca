"""`training_state`: begun, saved, found again, refused."""

import json

import pytest
import torch

from mvczigal_ref.config import from_dict, to_dict
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.evaluation.guard import GuardCheck, GuardState
from mvczigal_ref.evaluation.scores import Evaluation
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.method.ahead import Ahead
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.system import build_system
from mvczigal_ref.training import state as training_state
from mvczigal_ref.training.checkpoint import load_checkpoint
from mvczigal_ref.training.prompt_batch import prompt_batch
from mvczigal_ref.training.run_folder import find_checkpoint
from mvczigal_ref.training.state import begin, initial_loss_scale, resume
from mvczigal_ref.training.tracking import StageTimer
from mvczigal_ref.update.loss_scale import LossScale
from tests.analytic_system import PROMPTS as NUMBERED
from tests.analytic_system import analytic_system
from tests.iterations import FORWARD
from tests.unit.method.test_sample import FLOW, GROUP, config_of

PROMPTS = ["a red ball", "a blue cube"]
CONSTRAINT = ConstraintState(multiplier=0.1 + 0.2, threshold=-1 / 3, initialised=True)


def config(constraint=None, model=None, optim=None, **run):
    """Settings; three objects an iteration."""
    sizes = {"iterations": 4, "objects_per_iteration": 3, "objects_per_slice": 1}
    return from_dict(
        {
            "run": {**sizes, **run},
            "constraint": constraint or {},
            "model": model or {},
            "optim": optim or {},
        }
    )


def system(config):
    """The narrowest network, always with the same weights."""
    components = tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))
    return build_system(config, device=torch.device("cpu"), components=components)


def stepped(config, folder, iterations=2):
    """A state that has changed in every part, saved into a run folder."""
    state = begin(system(config), config, World(), PROMPTS)
    for step in range(iterations):
        for index, parameter in enumerate(state.system.trained().values()):
            generator = torch.Generator().manual_seed(100 * step + index)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        state.optimizer.step()
    state.constraint, state.finished = CONSTRAINT, iterations
    state.save(folder)
    folder.joinpath("config.json").write_text(json.dumps(to_dict(config)))
    return state


def same(one, other):
    """Whether two optimiser states are equal bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    entries = [(k, n) for k, named in mine["state"].items() for n in named]
    assert mine["param_groups"] == theirs["param_groups"]
    assert mine["state"].keys() == theirs["state"].keys()
    assert entries
    return all(torch.equal(mine["state"][k][n], theirs["state"][k][n]) for k, n in entries)


# -- oracle ------------------------------------------------------------------------------


def test_a_new_run_starts_from_its_settings():
    """The optimiser holds every trained parameter, and no iteration is done."""
    optim = {"lr": 0.5, "betas": [0.1, 0.2], "eps": 1e-3, "weight_decay": 0.25}
    state = begin(system(config()), config(optim=optim), World(), PROMPTS)
    (group,) = state.optimizer.param_groups

    assert {k: group[k] for k in optim} == {**optim, "betas": (0.1, 0.2)}
    assert isinstance(state.optimizer, torch.optim.AdamW)
    trained = list(state.system.trained().values())
    assert all(a is b for a, b in zip(group["params"], trained, strict=True))
    assert state.finished == 0
    assert list(state.prompts) == PROMPTS


@pytest.mark.parametrize(
    ("wanted", "threshold", "initialised"),
    [
        ({}, 0.0, False),
        ({"threshold_init": -2.5}, -2.5, True),
        ({"threshold_init": 0.0, "threshold_objects": 3}, 0.0, True),
        ({"threshold_objects": 3}, 4.0, True),
    ],
    ids=["of the first batch", "given", "given as zero", "sampled"],
)
def test_the_first_threshold(monkeypatch, wanted, threshold, initialised):
    """Given, or the mean joint score of so many training prompts, or left to the first batch."""
    asked = []

    def evaluate(system, prompts, *, config, world, num_noises, seed, keep_images):
        asked.append((list(prompts), num_noises, seed, keep_images))
        joint = torch.tensor([[1.0, 4.0, 7.0]])
        return Evaluation(per_view=-joint, joint=joint, images=torch.zeros(0, 6, 3, 32, 32))

    monkeypatch.setattr(training_state, "evaluate", evaluate)
    chosen = config({**wanted, "multiplier_init": 0.5}, seed=3)
    state = begin(system(chosen), chosen, World(), PROMPTS)

    assert state.constraint == ConstraintState(
        multiplier=0.5, threshold=threshold, initialised=initialised
    )
    sampled = prompt_batch(PROMPTS, seed=3, iteration=0, count=3)
    assert asked == ([(sampled, 1, 3, 0)] if threshold == 4.0 else [])


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_what_was_saved_is_found_again(tmp_path, finetune):
    """Parameters, optimiser, multiplier, threshold and place, bit for bit."""
    chosen = config(model={"finetune": finetune})
    state = stepped(chosen, tmp_path)
    fresh = system(chosen)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(fresh.trained().values(), state.system.trained().values(), strict=True)
    )
    again = resume(fresh, chosen, PROMPTS, find_checkpoint(tmp_path, chosen))

    assert again.finished == 2
    assert again.constraint == CONSTRAINT
    assert same(again.optimizer, state.optimizer)
    for name, value in state.system.trained().items():
        assert torch.equal(again.system.trained()[name], value)
    assert list(again.prompts) == PROMPTS


def test_the_guard_s_memory_and_what_is_pending_are_found_again(tmp_path):
    """Bit for bit; a number that is not finite is unknown afterwards."""
    check = GuardCheck(
        iteration=2, trained={"joint": (0.1 + 0.2, 1 / 3)}, watched={"other": (1e-300, -0.0)}
    )
    state = stepped(config(), tmp_path)
    state.guard = GuardState(best=check, latest=check, fired=True)
    state.pending = {"loss": 0.1, "grad_norm": float("nan"), "known": None}
    state.save(tmp_path)
    again = resume(system(config()), config(), PROMPTS, find_checkpoint(tmp_path, config()))

    assert again.guard == state.guard
    assert again.pending == {"loss": 0.1, "grad_norm": None, "known": None}
    assert (again.logged, again.ended) == (1, True)


HALF = {"dtype": "fp16"}


@pytest.mark.parametrize(
    ("model", "optim", "expected"),
    [
        ({}, {}, None),
        ({"dtype": "bf16"}, {}, None),
        (HALF, {}, LossScale(scale=65536.0)),
        (HALF, {"loss_scale": 1024.0}, LossScale(scale=1024.0)),
        (HALF, {"loss_scale": 1.0}, None),
        ({"dtype": "bf16"}, {"loss_scale": 2.0}, LossScale(scale=2.0)),
    ],
)
def test_the_first_loss_scale(model, optim, expected):
    """2^16 for fp16 alone, unless the settings name one; 1 is none."""
    assert initial_loss_scale(config(model=model, optim=optim)) == expected


def test_the_loss_scale_is_found_again(tmp_path):
    """With the steps that it has been good for."""
    chosen = config(model=HALF)
    state = stepped(chosen, tmp_path)
    assert state.loss_scale == LossScale()
    state.loss_scale = LossScale(scale=512.0, good_steps=3)
    state.save(tmp_path)
    again = resume(system(chosen), chosen, PROMPTS, find_checkpoint(tmp_path, chosen))

    assert again.loss_scale == LossScale(scale=512.0, good_steps=3)


@pytest.mark.parametrize(("model", "expected"), [(HALF, LossScale()), ({}, None)])
def test_a_checkpoint_of_before_there_was_a_loss_scale_goes_on_with_the_first(
    tmp_path, model, expected
):
    """As a new run would begin."""
    chosen = config(model=model)
    stepped(chosen, tmp_path)
    checkpoint = find_checkpoint(tmp_path, chosen)
    del checkpoint.state["loss_scale"]

    assert resume(system(chosen), chosen, PROMPTS, checkpoint).loss_scale == expected


def test_the_best_state_is_taken_back(tmp_path):
    """Parameters, optimiser, constraint and loss scale; iterations and memory stay."""
    check = GuardCheck(iteration=2, trained={"a": (1.0, 1.0)}, watched={"b": (1.0, 1.0)})
    state = stepped(config(), tmp_path)
    state.guard, state.loss_scale = GuardState(best=check, latest=check), LossScale(scale=8.0)
    state.keep_best(tmp_path)
    state.loss_scale = LossScale(scale=16.0)
    kept = {name: p.detach().clone() for name, p in state.system.trained().items()}
    for parameter in state.system.trained().values():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.constraint, state.finished = ConstraintState(), 4
    state.ahead = Ahead(behaviour=kept)
    state.return_to_best(tmp_path)

    assert all(torch.equal(p, kept[n]) for n, p in state.system.trained().items())
    assert (state.constraint, state.loss_scale) == (CONSTRAINT, LossScale(scale=8.0))
    assert same(state.optimizer, stepped(config(), tmp_path / "other").optimizer)
    assert state.finished == 4
    assert state.ahead is None  # the next iteration is sampled by what was taken back


def test_a_best_checkpoint_that_is_not_the_best_any_more_goes(tmp_path):
    """With the next checkpoint, which does not name it."""
    state = stepped(config(), tmp_path)
    for iteration in (1, 2):
        check = GuardCheck(iteration=iteration, trained={"a": (1.0,)}, watched={"b": (1.0,)})
        state.finished, state.guard = iteration, GuardState(best=check, latest=check)
        state.keep_best(tmp_path)
    assert len(list((tmp_path / "best").iterdir())) == 2
    state.save(tmp_path)

    assert [path.name for path in (tmp_path / "best").iterdir()] == ["iteration_000002"]


FOLLOWED = {**FORWARD, "forward.old_decay_rate": 0.2, "run.iterations": 3}


def forwards(state, iterations):
    """Go on with a run on the forward process, as the loop does."""
    for _ in range(iterations):
        state.set_learning_rate()
        result = run_iteration(
            state.system, state.optimizer, state.constraint, NUMBERED[:2],
            iteration=state.finished, config=state.config, world=World(), timer=StageTimer(),
            old=state.old, ahead=state.ahead,
            next_prompts=NUMBERED[:2] if state.config.rollout.ahead else (),
        )  # fmt: skip
        state.constraint, state.old, state.ahead = result.constraint, result.old, result.ahead
        state.finished += 1
    return state


@pytest.mark.parametrize("ahead", [False, True])
def test_a_run_on_the_forward_process_resumes_bit_for_bit(tmp_path, ahead):
    """The checkpoint holds the policy that samples, which is not the one that learns; and the one
    before, where that has sampled ahead, but no samples.
    """
    chosen = config_of(FOLLOWED, **{"rollout.ahead": ahead})
    whole = forwards(begin(analytic_system(chosen), chosen, World(), NUMBERED), 2)
    whole.save(tmp_path)
    folder = tmp_path / "checkpoints" / "iteration_000002"
    again = resume(analytic_system(chosen), chosen, NUMBERED, load_checkpoint(folder))
    started = begin(analytic_system(chosen), chosen, World(), NUMBERED)
    learnt = whole.system.trained()

    assert started.old.keys() == again.old.keys() == learnt.keys()
    assert all(torch.equal(started.old[n], p) for n, p in started.system.trained().items())
    assert started.old["gain"] is not started.system.trained()["gain"]
    assert all(torch.equal(again.old[name], value) for name, value in whole.old.items())
    assert any(not torch.equal(again.old[name], p) for name, p in learnt.items())
    assert (again.ahead is not None) == (whole.ahead is not None) == ahead
    if ahead:
        assert (len(again.ahead.samples), len(whole.ahead.samples)) == (0, 2)
        assert any(not torch.equal(again.ahead.behaviour[n], again.old[n]) for n in learnt)
    for state in (whole, again):
        forwards(state, 1)
    assert all(torch.equal(again.old[name], value) for name, value in whole.old.items())
    assert all(torch.equal(again.system.trained()[name], p) for name, p in learnt.items())


AVERAGED = {"average_decay": 0.5, "average_every": 2}


def test_an_average_follows_is_saved_and_is_what_is_kept(tmp_path):
    """Every so many iterations; a resumed run has the same one, and a loaded policy is it."""
    chosen = config(optim=AVERAGED)
    state = begin(system(chosen), chosen, World(), PROMPTS)
    start = {name: value.clone() for name, value in state.average.items()}
    for finished in (1, 2):
        with torch.no_grad():
            for parameter in state.system.trained().values():
                parameter += 1.0
        state.finished = finished
        state.follow()
        if finished == 1:
            assert all(torch.equal(state.average[name], value) for name, value in start.items())
    # One optimiser step or more an iteration: the decay is still warming up.
    steps = 2 * chosen.optim.optimizer_steps_per_epoch * chosen.optim.epochs_per_iteration
    moved = 2.0 * (1 - min(0.5, (1 + steps) / (10 + steps)))
    for name, value in start.items():
        torch.testing.assert_close(state.average[name], value + moved, rtol=1e-6, atol=1e-6)
    learnt = {name: p.detach().clone() for name, p in state.system.trained().items()}
    with state.averaged():
        now = state.system.trained()
        assert all(torch.equal(now[name], value) for name, value in state.average.items())
    assert all(torch.equal(state.system.trained()[n], value) for n, value in learnt.items())

    state.save(tmp_path)
    found = load_checkpoint(tmp_path / "checkpoints" / "iteration_000002")
    again = resume(system(chosen), chosen, PROMPTS, found)
    assert again.average.keys() == state.average.keys()
    assert all(torch.equal(again.average[name], value) for name, value in state.average.items())
    assert all(torch.equal(again.system.trained()[n], value) for n, value in learnt.items())
    assert all(torch.equal(found.policy[name], value) for name, value in state.average.items())


def test_an_average_counts_every_change_of_the_parameters():
    """Where they change after each decision, these are the window's steps that are trained."""
    moved = []
    for often, share, decisions in ((False, 1.0, 1), (True, 1.0, 2), (True, 0.5, 1)):
        chosen = config_of(
            FLOW, GROUP,
            {"optim.step_per_decision": often, "optim.average_decay": 0.9,
             "optim.average_every": 1, "rollout.window": "fixed", "rollout.window_size": 2,
             "objective.train_share": share},
        )  # fmt: skip
        state = begin(analytic_system(chosen), chosen, World(), NUMBERED)
        before = state.average["gain"].clone()
        with torch.no_grad():
            state.system.trained()["gain"].add_(1.0)
        state.finished = 1
        state.follow()
        steps = decisions * chosen.optim.optimizer_steps_per_epoch
        moved.append(
            (float((state.average["gain"] - before).mean()), 1 - (1 + steps) / (10 + steps))
        )

    for found, expected in moved:
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_guard_returns_to_its_best_average_too(tmp_path):
    """With the parameters that it is of."""
    chosen = config(optim=AVERAGED)
    state = begin(system(chosen), chosen, World(), PROMPTS)
    check = GuardCheck(iteration=0, trained={"a": (1.0,)}, watched={"b": (1.0,)})
    state.guard = GuardState(best=check, latest=check)
    state.keep_best(tmp_path)
    best, state.average = state.average, {n: v + 1 for n, v in state.average.items()}
    state.return_to_best(tmp_path)

    assert all(torch.equal(state.average[name], value) for name, value in best.items())


def test_a_run_without_an_average_keeps_its_parameters(tmp_path):
    """Nothing is stored twice."""
    state = stepped(config(), tmp_path)
    state.follow()
    found = load_checkpoint(tmp_path / "checkpoints" / "iteration_000002")

    assert state.average is None
    assert found.tensors.keys() == {"policy", "optimizer"}
    assert found.policy is found.tensors["policy"]


def test_a_checkpoint_without_its_average_is_refused(tmp_path):
    """Such as one that has lost it."""
    chosen = config(optim=AVERAGED)
    state = begin(system(chosen), chosen, World(), PROMPTS)
    state.average = None
    state.save(tmp_path)
    found = load_checkpoint(tmp_path / "checkpoints" / "iteration_000000")
    with pytest.raises(CheckpointError, match="the checkpoint's average policy"):
        resume(system(chosen), chosen, PROMPTS, found)


def test_a_checkpoint_without_the_old_policy_is_refused(tmp_path):
    """Such as one that has lost it; other runs have none."""
    chosen = config_of(FOLLOWED)
    state = begin(analytic_system(chosen), chosen, World(), NUMBERED)
    state.old = None
    state.save(tmp_path)
    found = load_checkpoint(tmp_path / "checkpoints" / "iteration_000000")
    with pytest.raises(CheckpointError, match="the checkpoint's old policy"):
        resume(analytic_system(chosen), chosen, NUMBERED, found)
    assert begin(system(config()), config(), World(), PROMPTS).old is None


def test_a_checkpoint_says_where_the_prompts_are(tmp_path):
    """Two iterations of three."""
    stepped(config(), tmp_path)
    state = load_checkpoint(tmp_path / "checkpoints" / "iteration_000002").state

    assert state["prompt_position"] == 6


def test_old_checkpoints_are_removed(tmp_path):
    """As many as asked are kept."""
    chosen = config(keep_checkpoints=2)
    for iterations in range(4):
        stepped(chosen, tmp_path, iterations)

    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["iteration_000002", "iteration_000003"]


# -- errors ------------------------------------------------------------------------------


def test_tensors_of_another_network_are_refused(tmp_path):
    """By name."""
    stepped(config(), tmp_path)
    found = find_checkpoint(tmp_path, config())
    wrong = system(config(model={"lora_rank": 3}))
    with pytest.raises(CheckpointError, match="`the checkpoint` must hold exactly"):
        resume(wrong, config(), PROMPTS, found)
