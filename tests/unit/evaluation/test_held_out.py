"""`held_out`: an occasion is scored once and found again as it was; what the guard sees."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvczigal_ref.config import from_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError, NonFiniteError
from mvczigal_ref.evaluation import held_out
from mvczigal_ref.evaluation import watch as watch_module
from mvczigal_ref.evaluation.held_out import HeldOut
from mvczigal_ref.evaluation.scores import Evaluation
from mvczigal_ref.evaluation.watch import Watch, object_features
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.system.sampler import build_sampler
from tests.unit.evaluation.test_evaluate import PROMPTS, settings, system


@pytest.fixture
def made(monkeypatch):
    """Count the measurements; each is another table."""
    made = []

    def evaluate(system, prompts, *, config, world, num_noises, progress):
        del progress
        made.append(num_noises)
        table = torch.full((num_noises, len(prompts)), float(len(made)))
        table[0, 0] += 1
        return Evaluation(per_view=table, joint=-table, images=torch.zeros(1, 6, 3, 32, 32))

    monkeypatch.setattr(held_out, "evaluate", evaluate)
    return made


def judge(folder, noises=2, **more):
    """Scores of the three prompts, kept in a folder."""
    config = from_dict({"run": {"evaluation_noises": noises}})
    parts = {"system": system(), "prompts": PROMPTS, "folder": folder, "config": config}
    return HeldOut(**{**parts, "world": World(), **more})


def test_an_occasion_is_measured_once(made, tmp_path):
    """Its second answer comes from the file, bit for bit, to another judge too."""
    first = judge(tmp_path)("before", 0)
    again = judge(tmp_path)("before", 0)

    assert made == [2]
    for name in ("per_view", "joint", "images"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    files = sorted(path.name for path in (tmp_path / "evaluations").iterdir())
    assert files == ["before_000000.safetensors", "prompts.json"]
    assert json.loads((tmp_path / "evaluations" / "prompts.json").read_text()) == PROMPTS


def test_other_occasions_are_measured_apart(made, tmp_path):
    """By name and by iteration."""
    for name, iteration in (("before", 0), ("at", 3), ("after", 3), ("after", 4)):
        judge(tmp_path)(name, iteration)

    assert made == [2, 2, 2, 2]
    assert (tmp_path / "evaluations" / "after_000004.safetensors").is_file()


def test_another_number_of_noises_is_measured_anew(made, tmp_path):
    """And kept instead."""
    judge(tmp_path)("before", 0)
    assert judge(tmp_path, noises=3)("before", 0).joint.shape == (3, 3)
    assert judge(tmp_path, noises=3)("before", 0).joint.shape == (3, 3)
    assert made == [2, 3]


def test_another_number_of_steps_is_measured_anew(made, tmp_path):
    """A gain between two grids would be no gain."""
    judge(tmp_path)("before", 0)
    sampler = build_sampler(settings(), num_steps=7)
    for _ in range(2):
        judge(tmp_path, system=replace(system(), evaluation_sampler=sampler))("before", 0)

    assert made == [2, 2]


def test_metrics_are_the_means(made, tmp_path):
    """Over noises and prompts."""
    means = judge(tmp_path)("at", 2).means()

    assert means == {
        "held_out/per_view": pytest.approx(7 / 6),
        "held_out/joint": pytest.approx(-7 / 6),
    }


class Second(World):
    """The second of two processes, which waits for nobody."""

    def barrier(self):
        """Go on."""


def test_only_the_main_process_writes(made, tmp_path):
    """All of them measure."""
    judge(tmp_path, world=Second(rank=1, size=2))("before", 0)

    assert made == [2]
    assert list(tmp_path.iterdir()) == []


def test_the_scores_are_those_of_evaluation(tmp_path):
    """With the run's settings and the shared noises."""
    config = replace(settings(), run=replace(settings().run, evaluation_noises=1))
    kept = judge(tmp_path, config=config)("before", 0)
    fresh = held_out.evaluate(system(), PROMPTS, config=config, world=World(), num_noises=1)

    assert torch.equal(kept.joint, fresh.joint)
    assert torch.equal(kept.images, fresh.images)


def test_damaged_scores_are_refused_with_the_remedy(made, tmp_path):
    """Which is the report's; without the file they are measured again."""
    path = tmp_path / "evaluations" / "before_000000.safetensors"
    judge(tmp_path)("before", 0)
    os.truncate(path, 100)
    with pytest.raises(CheckpointError) as caught:
        judge(tmp_path)("before", 0)
    assert str(caught.value).startswith(f"cannot read the scores in '{path}': ")
    assert str(caught.value).endswith(". Remove the file.")
    path.unlink()
    judge(tmp_path)("before", 0)
    assert made == [2, 2]


@pytest.mark.parametrize("place", [-1, -200, 300])
def test_a_flipped_bit_is_refused(made, tmp_path, place):
    """In scores, images or names, by the file's name; nothing is measured again."""
    path = tmp_path / "evaluations" / "before_000000.safetensors"
    judge(tmp_path)("before", 0)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"before_000000\.safetensors': .* Remove the file\."):
        judge(tmp_path)("before", 0)
    assert made == [2]


def test_scores_of_another_iteration_are_refused(made, tmp_path):
    """Those of after training are not those of before."""
    judge(tmp_path)("after", 4)
    folder = tmp_path / "evaluations"
    (folder / "after_000004.safetensors").rename(folder / "before_000000.safetensors")
    with pytest.raises(CheckpointError, match="not what was written under that iteration"):
        judge(tmp_path)("before", 0)
    assert made == [2]


def test_scores_of_another_run_are_measured_again(made, tmp_path):
    """Of other settings, as of other noises; those of a version that sealed nothing are taken."""
    config = from_dict({"run": {"evaluation_noises": 2, "seed": 7}})
    judge(tmp_path)("before", 0)
    judge(tmp_path, config=config)("before", 0)
    assert made == [2, 2]

    path = tmp_path / "evaluations" / "before_000000.safetensors"
    steps = system().evaluation_sampler.num_steps
    save_file(load_file(path), path, metadata={"measured": f"2 noises, {steps} steps"})
    judge(tmp_path)("before", 0)
    assert made == [2, 2]


def test_other_prompts_are_refused(made, tmp_path):
    """Nothing is measured or written."""
    judge(tmp_path)("before", 0)
    with pytest.raises(CheckpointError, match=r"`held_out` must be the prompts of .*prompts\.json"):
        judge(tmp_path, prompts=PROMPTS[::-1])("after", 4)
    assert made == [2]


@pytest.mark.parametrize("content", [b"", b"[", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_list_of_prompts_is_refused(made, tmp_path, content):
    """By the file's name."""
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "prompts.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"prompts\.json' must list the prompts .* damaged"):
        judge(tmp_path)("before", 0)
    assert made == []


# -- the guard's look --------------------------------------------------------------------

GUARD = {"every": 2, "diversity": True, "noises": 2, "per_view": ["red"], "joint": ["blue"]}


def watch(slices=1, mode="constrained", judges=None, **guard):
    """Watch the three prompts; one scorer of each kind is watched beside the trained ones."""
    found = judges or {"red": lambda images, prompts: images[:, :, 0].mean((2, 3))}
    whole = {"blue": lambda images, prompts: images[:, :, 2].mean((1, 2, 3))}
    run = {"objects_per_iteration": 12, "objects_per_slice": slices}
    config = from_dict(
        {
            "sampler": {"num_steps": 2, "guidance_scale": 2.0},
            "run": run,
            "advantage": {"mode": mode},
            "guard": {**GUARD, **guard},
        }
    )
    guarded = replace(system(), watched_per_view=found, watched_joint=whole)
    return Watch(system=guarded, prompts=PROMPTS, config=config, world=World())


@pytest.fixture
def drawn(monkeypatch):
    """Replace sampling by random images that depend on the objects' noise alone."""
    seen = {}

    def sample_objects(system, prompts, noise, *, config, world):
        for place, index in enumerate(noise.objects):
            generator = torch.Generator().manual_seed(index)
            seen[index] = (torch.rand(6, 3, 32, 32, generator=generator), prompts[place])
        return torch.stack([seen[index][0] for index in noise.objects])

    monkeypatch.setattr(watch_module, "sample_objects", sample_objects)
    return seen


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_a_look_is_a_mean_over_noises_for_every_prompt(drawn, slices):
    """Of each score alike, however the objects are cut; sample i is prompt i modulo three."""
    check, metrics = watch(slices)(4)
    assert [said for _, said in (drawn[i] for i in range(6))] == PROMPTS * 2

    for name, judge in (("red", lambda v: v[:, 0].mean()), ("blue", lambda v: v[:, 2].mean())):
        expected = [(judge(drawn[p][0]) + judge(drawn[p + 3][0])).item() / 2 for p in range(3)]
        assert check.watched[name] == pytest.approx(expected, rel=1e-6)
        assert metrics[f"guard/{name}"] == pytest.approx(sum(expected) / 3, rel=1e-6)
    bright = [(drawn[p][0].mean() + drawn[p + 3][0].mean()).item() / 2 for p in range(3)]
    lengths = [len(prompt) for prompt in PROMPTS]
    expected = [b + n for b, n in zip(bright, lengths, strict=True)]
    assert check.trained["per_view"] == pytest.approx(expected, rel=1e-6)
    assert check.iteration == 4


def test_diversity_is_the_distance_between_a_prompt_s_samples(drawn):
    """In colours averaged over an eighth of an edge, over all the views."""
    check, metrics = watch()(0)

    def feature(index):
        return drawn[index][0].unflatten(-1, (8, 4)).unflatten(-3, (8, 4)).mean((-1, -3)).flatten()

    expected = [(feature(p) - feature(p + 3)).square().mean().sqrt().item() for p in range(3)]
    assert check.watched["diversity"] == pytest.approx(expected, rel=1e-5)
    assert metrics["guard/diversity"] == pytest.approx(sum(expected) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "trained"),
    [
        ("constrained", {"per_view", "joint"}),
        ("weighted_sum", {"per_view", "joint"}),
        ("joint", {"joint"}),
        ("per_view", {"per_view"}),
    ],
)
def test_a_reward_that_the_mode_leaves_out_is_watched(drawn, mode, trained):
    """So that one reward alone is held against the other."""
    check, _ = watch(mode=mode)(0)

    assert check.trained.keys() == trained
    assert check.watched.keys() == {"per_view", "joint", "red", "blue", "diversity"} - trained


def test_diversity_counts_only_if_asked(drawn):
    """It is shown anyway, where there are two noises to tell it from."""
    check, metrics = watch(diversity=False)(0)
    assert "diversity" not in check.watched
    assert "guard/diversity" in metrics
    check, metrics = watch(diversity=False, noises=1)(0)
    assert check.watched.keys() == {"red", "blue"}
    assert "guard/diversity" not in metrics


def test_a_look_is_due_every_so_many_iterations():
    """From the start; never without a guard."""
    assert [n for n in range(6) if watch().due(n)] == [0, 2, 4]
    assert not any(watch(every=0).due(n) for n in range(6))


def test_a_look_always_meets_the_same_noises():
    """Twice the same, to the last bit, on the network itself."""
    assert watch()(2) == watch()(2)


def test_a_scorer_may_say_what_an_image_s_features_are():
    """The first that does is asked; colours serve where none does."""

    class Knows:
        __call__ = print

        def image_features(self, images):
            return images.mean((3, 4))

    images = torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    assert torch.equal(object_features(images, [print, Knows()]), images.mean((3, 4)).flatten(1))
    assert object_features(images, [print]).shape == (2, 6 * 3 * 64)


def test_a_watched_score_that_is_not_finite_is_told(drawn):
    """By its scorer's name."""
    bad = {"red": lambda images, prompts: images[:, :, 0].mean((2, 3)) / 0}
    name = f"guard/red of '{PROMPTS[0]}', noise 0"
    with pytest.raises(NonFiniteError, match=f"`{name}` must be finite; got inf at object 0, view"):
        watch(judges=bad)(0)


def test_a_trained_score_that_is_not_finite_is_told_by_the_guard(drawn):
    """By its scorer's name too."""
    judged = watch()
    bad = Mixture(
        scorers={"dim": lambda images, prompts: images.mean((2, 3, 4)).log() * torch.inf},
        weights={"dim": 0.5},
    )
    judged = replace(judged, system=replace(judged.system, per_view=bad))
    with pytest.raises(NonFiniteError, match=f"`reward/dim of '{PROMPTS[0]}', noise 0` must be"):
        judged(0)
