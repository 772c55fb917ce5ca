"""`reward.callable`, `reward.source`: the user's functions as scorers, and what is refused."""

import hashlib
import inspect
import os
import re
from functools import partial

import pytest
import torch

from mvczigal_ref.config import RewardConfig, code_names, load_config
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.callable import SIGNATURE
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.reward.provenance import files_read
from mvczigal_ref.reward.registry import (
    check_scorers,
    joint_view_scorer,
    mixture,
    per_view_scorer,
)
from mvczigal_ref.reward.source import hand_over, load_source

FILE = """
import torch

RUNS = []
RUNS.append(1)


def score(images, prompts):
    assert isinstance(prompts, list)
    return images.mean((-1, -2, -3))


def joint(images, prompts):
    return images.double().mean((-1, -2, -3, -4))


def shape(images, prompts):
    return images.mean((-1, -2, -3))[:, :1]


def integers(images, prompts):
    return torch.ones(images.shape[:2], dtype=torch.int64)


def text(images, prompts):
    return [[0.5] * images.shape[1]] * len(prompts)


def infinite(images, prompts):
    return score(images, prompts) / 0


def random(images, prompts):
    return score(images, prompts) + torch.rand(())


def changes(images, prompts):
    return score(images.mul_(0.5), prompts) * 0


def raises(images, prompts):
    return {}["nothing"]


def leaves(images, prompts):
    raise SystemExit(0)


def centred(images, prompts):
    return score(images, prompts) - score(images, prompts).mean()


def squeezed(images, prompts):
    return score(images, prompts).squeeze()


def sparse(images, prompts):
    return score(images, prompts).to_sparse()


def meta(images, prompts):
    return score(images, prompts).to("meta")


def doubles(images, prompts):
    torch.set_default_dtype(torch.float64)
    return score(images, prompts)


def graph(images, prompts):
    with torch.enable_grad():
        return score(images.clone().requires_grad_(), prompts)


def late(images, prompts):
    RUNS.append(1)
    if len(RUNS) > 4:
        raise SystemExit(0)
    return score(images, prompts)


TABLE = torch.zeros(1, 3)


def table(images, prompts):
    if len(prompts) > 1:
        return score(images, prompts)
    return TABLE.copy_(score(images, prompts))


class Redness:
    def __call__(self, images, prompts):
        return images[:, :, 0].mean((-1, -2))


class Holder:
    redness = Redness()


NUMBER = 3
"""
OPTIONS = ScorerOptions(num_views=3, image_size=16)
IMAGES = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
PROMPTS = ["a red cube", "a blue ball"]


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of functions, none of which has been typed."""
    monkeypatch.setattr(code_names, "_TYPED", set())
    path = tmp_path / "my_rewards.py"
    path.write_text(FILE, "utf-8")
    return path


def typed(file, name):
    """Type a function of the file on the command line; give its name."""
    word = f"{file}:{name}"
    load_config(overrides=[f"reward.per_view={word}"])
    return word


# -- laws --------------------------------------------------------------------------------


def test_a_function_of_a_file_scores_as_it_does_alone(file):
    """Its own numbers bit for bit, fp32, of either kind; a callable object and a member too."""
    per_view = per_view_scorer(typed(file, "score"), OPTIONS)
    joint = joint_view_scorer(typed(file, "joint"), OPTIONS)
    member = per_view_scorer(typed(file, "Holder.redness"), OPTIONS)

    assert torch.equal(per_view(IMAGES, PROMPTS), IMAGES.mean((-1, -2, -3)))
    assert torch.equal(joint(IMAGES, PROMPTS), IMAGES.double().mean((-1, -2, -3, -4)).float())
    assert joint(IMAGES, PROMPTS).dtype == torch.float32
    assert torch.equal(member(IMAGES, PROMPTS), IMAGES[:, :, 0].mean((-1, -2)))
    assert isinstance(per_view, PerViewScorer)
    assert isinstance(joint, JointViewScorer)


def test_no_gradient_passes(file):
    """Whatever the images require."""
    scorer = per_view_scorer(typed(file, "score"), OPTIONS)

    assert not scorer(IMAGES.clone().requires_grad_(), PROMPTS).requires_grad
    assert not per_view_scorer(typed(file, "graph"), OPTIONS)(IMAGES, PROMPTS).requires_grad


def test_a_function_of_a_module_scores_as_it_does_alone(file, monkeypatch):
    """Of any module that can be imported."""
    monkeypatch.syspath_prepend(file.parent)
    load_config(overrides=["reward.joint=my_rewards:joint"])
    scorer = joint_view_scorer("my_rewards:joint", OPTIONS)

    assert torch.equal(scorer(IMAGES, PROMPTS), IMAGES.double().mean((-1, -2, -3, -4)).float())
    assert scorer.source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_mixture_may_name_a_function(file):
    """By its name and a weight, as any scorer."""
    word = f"{file}:score"
    config = load_config(overrides=[f"reward.per_view={{{word}: 2, {file}:Holder.redness: 1}}"])
    both = mixture(config.reward.per_view, lambda name: per_view_scorer(name, OPTIONS))

    expected = 2 * IMAGES.mean((-1, -2, -3)) + IMAGES[:, :, 0].mean((-1, -2))
    assert torch.allclose(both(IMAGES, PROMPTS), expected)


def test_the_source_is_the_file_and_its_hash(file):
    """As `sha256sum` prints it; noted among the files that decide scores."""
    word = typed(file, "score")
    with files_read() as files:
        source = load_source(word, setting="reward.per_view")

    assert source.place == str(file)
    assert source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert files == [file]


def test_a_file_runs_once_for_each_of_its_contents(file):
    """However often it is looked up; when it has changed, anew."""
    one, two = (
        load_source(typed(file, name), setting="reward.per_view").function
        for name in ("score", "joint")
    )
    assert one.__globals__ is two.__globals__
    file.write_text(FILE + "\n# changed\n", "utf-8")
    three = load_source(typed(file, "score"), setting="reward.per_view").function

    assert three.__globals__ is not one.__globals__


def test_what_runs_is_what_is_hashed(file, monkeypatch):
    """After a change of one digit within a second too, which Python's own cache takes for none."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    numbers = []
    for digit in "12":
        file.write_text(FILE.replace("NUMBER = 3", f"NUMBER = {digit}"), "utf-8")
        os.utime(file, (0, 0))
        function = load_source(typed(file, "score"), setting="reward.per_view").function
        numbers.append(function.__globals__["NUMBER"])

    assert numbers == [1, 2]


def test_rewards_stay_when_a_function_writes_into_its_memory_again(file):
    """As one does that fills the same table at each call."""
    scorer = per_view_scorer(typed(file, "table"), OPTIONS)
    first, second = (scorer(IMAGES[place : place + 1], PROMPTS[:1]) for place in range(2))

    assert torch.equal(torch.cat([first, second]), IMAGES.mean((-1, -2, -3)))


def test_what_is_handed_over_needs_no_file(file):
    """By its name in settings; its source is hashed where it can be read."""
    name = hand_over("reward", lambda images, prompts: images.mean((-1, -2, -3)))

    assert name == "fit.reward:lambda"
    assert re.fullmatch("[0-9a-f]{64}", load_source(name, setting="reward.per_view").sha256)
    assert load_source(hand_over("reward", len), setting="reward.per_view").sha256 is None
    assert torch.equal(per_view_scorer(name, OPTIONS)(IMAGES, PROMPTS), IMAGES.mean((-1, -2, -3)))


def test_the_source_of_what_is_handed_over_is_that_of_its_code(file):
    """Of a partial call the function's, of an object the class's."""

    def scaled(images, prompts, scale=1.0):
        return scale * images.mean((-1, -2, -3))

    class Scaled:
        def __call__(self, images, prompts):
            return images.mean((-1, -2, -3))

    digests = [
        load_source(hand_over("reward", function), setting="reward.per_view").sha256
        for function in (scaled, partial(scaled, scale=2.0), Scaled())
    ]
    expected = [inspect.getsource(code) for code in (scaled, scaled, Scaled)]
    assert digests == [hashlib.sha256(text.encode()).hexdigest() for text in expected]


# -- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("shape", "of (2, 3, 3, 16, 16) images it returned shape (2, 1)"),
        ("joint", "it returned shape (2,), as `reward.joint` takes"),
        ("integers", "it returned int64, not a floating type"),
        ("text", "it returned a list, not a torch tensor"),
        ("infinite", "of finite numbers; got [[inf, inf, inf]"),
        ("random", "that is deterministic; two calls on equal images differ. Seed what it draws."),
        ("raises", "it raised KeyError: 'nothing' at "),
        ("leaves", "it raised SystemExit: 0 at "),
        ("centred", "that scores an object by its own images and prompt; with another object"),
        ("squeezed", "of (1, 3, 3, 16, 16) images it returned shape (3,)"),
        ("sparse", "it returned a sparse tensor"),
        ("meta", "or one on the device meta"),
        ("Redness", "it is a class, so name an instance of it"),
    ],
)
def test_a_function_that_breaks_the_contract_is_refused(file, name, complaint):
    """With the signature, what came, and in one line."""
    with pytest.raises(ConfigError) as caught:
        per_view_scorer(typed(file, name), OPTIONS)

    assert complaint in str(caught.value)
    assert SIGNATURE["per_view"] in str(caught.value)
    assert f"`reward.per_view` = '{file}:{name}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_that_changes_its_images_is_refused(file):
    """Though its numbers are right: the next scorer would judge other images."""
    with pytest.raises(ConfigError, match="leaves its images as they are"):
        per_view_scorer(typed(file, "changes"), OPTIONS)


def test_a_function_that_changes_torch_is_refused(file):
    """The run's networks would compute in another dtype."""
    with pytest.raises(ConfigError, match="must leave torch's default dtype as it is; it set"):
        per_view_scorer(typed(file, "doubles"), OPTIONS)


def test_a_function_that_ends_the_process_later_is_refused(file):
    """A run that has not ended must not look as if it had."""
    scorer = per_view_scorer(typed(file, "late"), OPTIONS)

    with pytest.raises(ConfigError, match="it raised SystemExit: 0 at"):
        scorer(IMAGES, PROMPTS)


def test_a_function_that_changes_its_mind_is_refused_in_training(file):
    """The shape counts at every call."""
    scorer = per_view_scorer(typed(file, "score"), OPTIONS)
    wrong = type(scorer)(load_source(typed(file, "shape"), setting="x"), "per_view")

    with pytest.raises(ValueError, match=re.escape("returned shape (2, 1)")):
        wrong(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("{folder}/absent.py:score", "there is no '{folder}/absent.py'"),
        ("{folder}/my_rewards.py:scoer", "it defines Holder, Redness, centred, changes, "),
        ("{folder}/my_rewards.py:NUMBER", "must be a function; got a int"),
        ("no_such_module:score", "No module named 'no_such_module'. Install it; a file"),
        ("{folder}/broken.py:score", "raised ZeroDivisionError: division by zero"),
        ("{folder}/leaves.py:score", "raised SystemExit: 0"),
        ("{folder}/doubles.py:score", "must leave torch's default dtype as it is"),
        ("a b:score", "'a b' is neither"),
        ("fit.reward:score", "name its file: `reward.per_view=my_rewards.py:score`"),
        ("score:", "must read FILE.py:NAME or package.module:NAME"),
    ],
)
def test_what_cannot_be_imported_is_refused_before_anything_is_loaded(file, word, complaint):
    """In one line that names setting, place and remedy."""
    (file.parent / "broken.py").write_text("1 / 0\n", "utf-8")
    (file.parent / "leaves.py").write_text("raise SystemExit(0)\n", "utf-8")
    doubles = "import torch\ntorch.set_default_dtype(torch.float64)\n"
    (file.parent / "doubles.py").write_text(doubles, "utf-8")
    name = word.format(folder=file.parent)
    code_names.note_typed([name])

    with pytest.raises(ConfigError) as caught:
        check_scorers(RewardConfig(per_view=name))

    assert complaint.format(folder=file.parent) in str(caught.value)
    assert str(caught.value).startswith("`reward.per_view`")


def test_code_that_nobody_typed_is_never_run(file, tmp_path):
    """A file of settings, a checkpoint or a run may name it: its file is not even opened."""
    mark = tmp_path / "mark"
    file.write_text(f"open({str(mark)!r}, 'w')\n", "utf-8")
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"reward: {{per_view: '{file}:score'}}", "utf-8")
    config = load_config(file=settings)

    with pytest.raises(ConfigError, match=re.escape(f"add `reward.per_view={file}:score`")):
        check_scorers(config.reward)
    with pytest.raises(ConfigError, match="Code is run only where you type it"):
        per_view_scorer(f"{file}:score", OPTIONS)
    assert not mark.exists()
