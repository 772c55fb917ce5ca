"""`evaluation`: every prompt under every noise, whatever the slices and processes."""

import itertools
import statistics
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.config import from_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.evaluation.evaluate import _room, evaluate, sample_objects
from mvczigal_ref.evaluation.scores import paired_gain
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.rollout.standard import standard_rollout
from mvczigal_ref.rollout.zigzag import zigzag_rollout
from mvczigal_ref.system import build_system, with_sampling
from tests.unannotated import without_shape_checks

CPU = torch.device("cpu")
PROMPTS = ["a red ball", "a blue cube", "a green can"]
TABLES = st.lists(
    st.lists(st.integers(-50, 50), min_size=3, max_size=3), min_size=1, max_size=4
).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


def per_view(images, prompts):
    """How bright each view is, and how long its prompt."""
    lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
    return images.mean((2, 3, 4)) + lengths[:, None]


def joint(images, prompts):
    """How much the first view differs from the last, and how long the prompt is."""
    lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
    return (images[:, 0] - images[:, -1]).mean((1, 2, 3)) + 2 * lengths


def settings(slices=1, **sampler):
    """A run's settings: two steps, so many objects a slice."""
    chosen = {"num_steps": 2, "guidance_scale": 2.0, **sampler}
    run = {"objects_per_iteration": 12, "objects_per_slice": slices}
    return from_dict({"sampler": chosen, "run": run, "zigzag": {"rounds": 2}})


@cache
def system():
    """The narrowest network with scorers in closed form."""
    components = tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))
    built = build_system(settings(), device=CPU, components=components)
    # A new network does not know its guidance yet.
    torch.nn.init.normal_(
        components.policy.unet.time_embedding.cond_proj.weight,
        generator=torch.Generator().manual_seed(0),
    )
    return replace(built, per_view=per_view, joint=joint)


def scores(slices=1, world=None, **more):
    """Evaluate the three prompts under two noises."""
    here = World() if world is None else world
    more = {"num_noises": 2, **more}
    return evaluate(system(), PROMPTS, config=settings(slices), world=here, **more)


evaluated = cache(scores)
"""Each evaluation is made once where it is compared with others."""


def noise(objects, seed=0):
    """Evaluation noise of some objects, by its definition."""
    return SeededNoise(
        seed=seed, iteration="evaluation", objects=objects, shape=system().latent_shape
    )


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("zigzag", [False, True])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_score_is_that_of_one_object_sampled_alone(zigzag, seed):
    """Object n * 3 + p of the occasion is prompt p under noise n."""
    found = scores(zigzag=zigzag, seed=seed)

    assert found.per_view.shape == found.joint.shape == (2, 3)
    for row in range(2):
        for column, prompt in enumerate(PROMPTS):
            own = noise([row * 3 + column], seed)
            more = {"guidance_scale": 2.0, "camera_scale": 1.0, "storage_dtype": torch.float32}
            parts = (system().policy, system().sampler, own.initial())
            told = system().conditioning([prompt])
            if zigzag:
                more |= {"inversion_guidance_scale": 1.0, "inversion_camera_scale": 1.0}
                more |= {"zigzag_steps": 1, "zigzag_rounds": 2}
                trajectory = zigzag_rollout(*parts, told, own.arm("zigzag"), **more)
            else:
                trajectory = standard_rollout(*parts, told, own.arm("standard"), **more)
            images = system().images(trajectory.denoised)
            assert found.per_view[row, column] == per_view(images, [prompt]).mean()
            assert found.joint[row, column] == joint(images, [prompt])[0]
            if row == 0:
                assert torch.equal(found.images[column], images[0])


@given(TABLES, st.integers(0, 2**32))
def test_a_gain_is_the_mean_of_paired_differences_and_its_error(before, seed):
    """Over prompts, each averaged over its noises first."""
    after = before + torch.randn(before.shape, generator=torch.Generator().manual_seed(seed))
    gain = paired_gain(before, after)
    noises = len(before)
    differences = [
        sum(float(after[n, p]) - float(before[n, p]) for n in range(noises)) / noises
        for p in range(3)
    ]
    flat = before.flatten().tolist()

    assert gain.before == pytest.approx(sum(flat) / len(flat), rel=1e-12, abs=1e-12)
    assert gain.after == pytest.approx(gain.before + gain.gain, rel=1e-9, abs=1e-9)
    assert gain.gain == pytest.approx(statistics.fmean(differences), rel=1e-9, abs=1e-12)
    error = statistics.stdev(differences) / 3**0.5
    assert gain.standard_error == pytest.approx(error, rel=1e-9, abs=1e-12)


# -- laws --------------------------------------------------------------------------------


@given(TABLES, TABLES, st.integers(-5, 5))
def test_a_gain_does_not_see_what_both_share(before, after, shift):
    """And turns its sign when the two change places."""
    after = after[:1].expand_as(before)
    gain, other = paired_gain(before, after), paired_gain(after, before)
    shifted = paired_gain(before + shift, after + shift)

    assert shifted.gain == pytest.approx(gain.gain, abs=1e-12)
    assert shifted.standard_error == pytest.approx(gain.standard_error, abs=1e-12)
    assert other.gain == pytest.approx(-gain.gain, abs=1e-12)
    assert (other.before, other.after) == (gain.after, gain.before)


def test_a_single_prompt_has_no_error():
    """It is not known, which is not zero."""
    gain = paired_gain(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [5.0]]))

    assert gain.gain == 1.5
    assert gain.standard_error != gain.standard_error


@pytest.mark.parametrize("slices", [2, 3, 4])
def test_slices_change_no_more_than_rounding(slices):
    """Even those that join the end of one noise and the beginning of the next."""
    alone, together = evaluated(), scores(slices)

    torch.testing.assert_close(together.per_view, alone.per_view, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(together.joint, alone.joint, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(together.images, alone.images, rtol=0, atol=1e-5)


class Other(World):
    """One of two processes; what the other would send is sampled here."""

    def gather_objects(self, share):
        """Add the other half, which a process of its own would have computed."""
        sent[self.rank].append(share)
        return torch.cat([share, share])


sent = {0: [], 1: []}


def test_two_processes_share_out_whole_slices():
    """The first has the first half, and both together have all."""
    for part in sent.values():
        part.clear()
    whole = evaluated()
    for rank in range(2):
        scores(world=Other(rank=rank, size=2))
    *images, _, joint = zip(*sent.values(), strict=True)

    assert [len(part) for part in sent[0]] == [len(part) for part in sent[1]] == [1, 1, 1, 3, 3]
    assert torch.equal(torch.cat(joint).view(2, 3), whole.joint)
    assert torch.equal(torch.cat([first for first, _ in images]), whole.images)


def test_slices_that_do_not_divide_are_done_by_all():
    """Six objects in slices of four: nobody could gather them in order."""
    for part in sent.values():
        part.clear()
    found = scores(4, world=Other(rank=1, size=2))

    assert sent == {0: [], 1: []}
    assert torch.equal(found.joint, scores(4).joint)


def test_whoever_listens_hears_each_slice():
    """The last one is all of this process's."""
    heard = []
    scores(slices=2, progress=lambda done, total: heard.append((done, total)))

    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_the_noise_is_the_seeds_alone():
    """The same for every policy, another for another seed, and none of training's."""
    assert torch.equal(scores().joint, evaluated().joint)
    assert (evaluated().joint != evaluated(seed=1).joint).all()
    image = sample_objects(
        system(),
        PROMPTS[:1],
        replace(noise([0]), iteration=0),
        config=settings(),
    )
    assert not torch.equal(image[0], evaluated().images[0])


class Whole(World):
    """The second of two processes, each of which has one noise; the first sends its images."""

    def gather_objects(self, share):
        """Put what the first has sent before what the second has."""
        return torch.cat([scores().images if share.ndim == 5 else share, share])


@pytest.mark.parametrize("keep", [2, 3])
def test_a_process_without_the_first_noise_has_its_images_too(keep):
    """They are gathered, so that every process holds the same."""
    found = scores(3, world=Whole(rank=1, size=2), keep_images=keep)

    torch.testing.assert_close(found.images, scores(3).images[:keep], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("keep", "kept"), [(0, 0), (2, 2), (8, 3), (None, 3)])
def test_images_are_kept_for_the_first_prompts(keep, kept):
    """As many as asked for, at most all; all where they fit."""
    found = scores(keep_images=keep)

    assert found.images.shape == (kept, 6, 3, 32, 32)
    assert torch.equal(found.images, evaluated().images[:kept])


@pytest.mark.parametrize(("edge", "count"), [(32, 910), (256, 14), (768, 8)])
def test_images_that_are_kept_fit_into_a_file(edge, count):
    """64 MiB of fp32, but 8 prompts at least."""
    assert _room(6, edge) == count


def test_the_guidance_of_the_configuration_is_used():
    """Every setting that sampling reads moves a score."""
    base = scores(num_noises=1).joint
    for change in (
        {"guidance_scale": 5.0},
        {"camera_scale": 0.0},
        {"num_steps": 3},
        {"evaluation_steps": 3},
    ):
        config = settings(**change)
        wanted = with_sampling(system(), config)
        found = evaluate(wanted, PROMPTS, config=config, world=World(), num_noises=1)
        assert not torch.equal(found.joint, base), change


# -- errors ------------------------------------------------------------------------------


def harmed(scorer, view=()):
    """Let a scorer give no number for the second prompt in half of its calls, or in one view."""
    calls = itertools.count()

    def score(images, prompts):
        table = scorer(images, prompts)
        at = [prompt == PROMPTS[1] and next(calls) > 0 for prompt in prompts]
        table[at, *view] = float("inf")
        return table

    return score


@pytest.mark.parametrize(
    ("kind", "name", "end"),
    [
        ("per_view", "reward/sharp of 'a blue cube', noise 1", "got inf at object 1, view 2."),
        ("joint", "reward/whole of 'a blue cube', noise 1", "got inf at object 1."),
    ],
)
def test_a_score_that_is_not_finite_is_named(kind, name, end):
    """By its scorer among several, the prompt and its noise, in one line."""
    bad = per_view if kind == "joint" else harmed(per_view, view=(2,))
    whole = joint if kind == "per_view" else harmed(joint)
    judges = {
        "per_view": Mixture(
            scorers={"bright": per_view, "sharp": bad}, weights={"bright": 1.0, "sharp": 0.5}
        ),
        "joint": Mixture(scorers={"whole": whole}, weights={"whole": 1.0}),
    }
    with pytest.raises(NonFiniteError) as refused:
        evaluate(
            replace(system(), **judges), PROMPTS, config=settings(), world=World(), num_noises=2
        )

    assert str(refused.value) == f"`{name}` must be finite; {end}"


def test_a_sum_of_scores_that_overflows_is_refused():
    """Each of them is finite."""
    judge = Mixture(scorers={"bright": per_view}, weights={"bright": 1e38})
    with pytest.raises(NonFiniteError, match=r"`per_view_reward` must be finite; got inf"):
        evaluate(
            replace(system(), per_view=judge), PROMPTS, config=settings(), world=World(),
            num_noises=1,
        )  # fmt: skip


def test_tables_of_different_prompts_are_refused():
    """They are no pairs."""
    wanted = r"`after` must have the shape of `before`, \(1, 2\)"
    with without_shape_checks(), pytest.raises(ValueError, match=wanted):
        paired_gain(torch.zeros(1, 2), torch.zeros(1, 3))


@pytest.mark.parametrize(("name", "bad"), [("num_noises", 0), ("keep_images", -1)])
def test_a_count_below_its_least_is_refused(name, bad):
    """With the argument's name."""
    with pytest.raises(ValueError, match=rf"`{name}` must be at least .*got {bad}\."):
        scores(**{name: bad})
