"""`method.score`: oracle."""

from dataclasses import replace
from itertools import chain

import pytest
import torch

from mvczigal_ref.condition.distinct import distinct_texts
from mvczigal_ref.method.score import score
from mvczigal_ref.reward.mixture import Mixture
from tests.analytic_system import analytic_system
from tests.iterations import GROUP, config_of


def asked(seen):
    """Make a scorer of each name that notes what it is told."""

    def scorer(name, joint):
        def score(images, prompts):
            seen.append((name, list(prompts)))
            number = torch.tensor([float(text.split()[-1]) for text in prompts])
            table = images.mean((-3, -2, -1)) * (1 + number)[:, None]
            return table.sum(-1) if joint else table

        return score

    per_view = Mixture(
        scorers={"b": scorer("b", False), "a": scorer("a", False)}, weights={"a": 2.0, "b": 0.5}
    )
    return per_view, scorer("joint_view", True)


# -- oracle ------------------------------------------------------------------------------


def test_every_sample_is_judged_under_every_caption():
    """Of its own prompt; conditions first, each scorer by its own name."""
    seen = []
    per_view, joint = asked(seen)
    system = replace(analytic_system(config_of(GROUP)), per_view=per_view, joint=joint)
    images = torch.rand(2, 4, 3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    captions = [["p 1", "p 2"], ["c 5", "c 7"], ["d 0", "d 9"]]
    found = score(system, images, distinct_texts(captions))
    brightness = images.mean((-3, -2, -1))

    for row, texts in enumerate(captions):
        factor = torch.tensor([1 + float(text.split()[1]) for text in texts])
        expected = brightness * factor[:, None, None]
        for name in ("a", "b"):
            torch.testing.assert_close(found.per_view[name][row], expected)
        torch.testing.assert_close(found.joint["joint_view"][row], expected.sum(-1))
    assert [name for name, _ in seen] == ["a", "b", "joint_view"] * 3
    assert seen[3][1] == ["c 5"] * 4 + ["c 7"] * 4
    assert found.weights == {"a": 2.0, "b": 0.5, "joint_view": 1.0}


@pytest.mark.parametrize("texts", [1, 2, 3, 9])
def test_several_captions_in_a_call_have_the_same_rewards(texts):
    """To the bit, of judges that treat each object by itself; in fewer and larger calls."""
    images = torch.rand(2, 4, 3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    columns = distinct_texts([["p 1", "p 2"], ["c 5", "p 2"], ["d 0", "d 9"]])
    seen, found = {}, {}
    for number in (1, texts):
        seen[number] = []
        per_view, joint = asked(seen[number])
        system = replace(analytic_system(config_of(GROUP)), per_view=per_view, joint=joint)
        found[number] = score(system, images, columns, texts_per_call=number)

    for kind in ("per_view", "joint"):
        one, several = (getattr(found[number], kind) for number in (1, texts))
        assert one.keys() == several.keys()
        assert all(torch.equal(one[name], several[name]) for name in one)
    calls = {k: [prompts for name, prompts in seen[k] if name == "a"] for k in (1, texts)}
    assert len(calls[texts]) == -(-len(columns) // texts)
    assert [*chain(*calls[texts])] == [*chain(*calls[1])]


# -- errors ------------------------------------------------------------------------------


def test_a_name_of_both_kinds_is_refused():
    """Its two tables would be taken for one; no scorer is asked."""
    seen = []
    per_view, joint = asked(seen)
    twice = Mixture(scorers={"a": joint, "joint": joint}, weights={"a": 1.0, "joint": 1.0})
    system = replace(analytic_system(config_of(GROUP)), per_view=per_view, joint=twice)
    with pytest.raises(ValueError, match=r"`per_view` does not; got \['a'\]"):
        score(system, torch.rand(1, 2, 3, 3, 2, 2), distinct_texts([["p 1"]]))

    assert not seen
