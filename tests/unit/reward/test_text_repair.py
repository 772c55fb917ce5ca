"""`text_repair`: oracle, laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.reward.builders import JOINT, PER_VIEW, ScorerOptions
from mvczigal_ref.reward.text_repair import repaired
from tests.unit.reward import published_files

PAIRS = [
    ("a cat's nose", "a cat\u2019s nose"),
    ("red & white", "red &amp; white"),
    ("red & white", "red &amp;amp; white"),
    ("a fin", "a \ufb01n"),
    ("caf\u00e9", "caf\u00c3\u00a9"),
    ("a red cube", " A  RED\n\tcube "),
    ("a wide cube", "\uff41 wide\u00a0cube"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return published_files.write_published(tmp_path_factory.mktemp("scorers"))


# -- oracle: what the released tokenizers make of a text -------------------------------------


@pytest.mark.parametrize(("plain", "typed"), PAIRS)
def test_typed_text_becomes_plain(plain, typed):
    """Marks, names of HTML, ligatures, bytes read in another encoding, space, case."""
    assert repaired(typed) == plain


@pytest.mark.parametrize("name", ["hpsv2", "hyperscore.overall"])
def test_scorers_with_those_tokenizers_see_no_difference(places, name):
    """To the bit; and what differs in words differs in score."""
    place = places[name.partition(".")[0]]
    options = ScorerOptions(weights=place, tokenizer=place, num_views=6)
    scorer = (PER_VIEW | JOINT)[name](options)
    images = torch.rand(1, 6, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    for plain, typed in PAIRS[:4]:
        assert torch.equal(scorer(images, [plain]), scorer(images, [typed]))
    assert not torch.equal(scorer(images, ["a fin"]), scorer(images, ["a red cube"]))


def test_transformers_own_are_left_alone(places):
    """CLIP score and PickScore go through transformers in their releases, which repairs nothing."""
    place = places["clip_score"]
    scorer = PER_VIEW["clip_score"](ScorerOptions(weights=place, tokenizer=place))
    images = torch.rand(1, 1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(scorer(images, ["red & white"]), scorer(images, ["red &amp; white"]))


# -- laws -------------------------------------------------------------------------------------


@given(st.text(alphabet="abc XYZ.,'\n", max_size=30))
def test_plain_text_keeps_its_words(text):
    """Nothing but case and white space changes."""
    assert repaired(text).split() == text.lower().split()
