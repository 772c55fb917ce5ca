"""`protocol`: every enhancer and every model fits it; streams belong to names."""

import numpy as np
import pytest

from mvczigal_ref.condition.offline import OfflineEnhancer
from mvczigal_ref.condition.online import OnlineEnhancer
from mvczigal_ref.condition.protocol import Caption, ConditionEnhancer, stream
from mvczigal_ref.condition.tiny_world import GrammarEnhancer
from mvczigal_ref.language.chat import ChatEndpoint
from mvczigal_ref.language.protocol import LanguageModel
from tests.unannotated import without_shape_checks
from tests.unit.condition.fakes import Talker


@pytest.mark.parametrize(
    ("enhancer", "needs_images", "captions"),
    [
        (OfflineEnhancer(Talker(), num_captions=3), False, 3),
        (OnlineEnhancer(Talker()), True, 5),
        (GrammarEnhancer(), True, 5),
    ],
)
def test_every_enhancer_fits_the_protocol(enhancer, needs_images, captions):
    """It says whether it looks at samples, and how many captions it gives a group of five."""
    assert isinstance(enhancer, ConditionEnhancer)
    assert enhancer.needs_images is needs_images
    assert enhancer.num_captions(5) == captions


def test_a_served_model_fits_the_protocol():
    """An endpoint can be asked as it is."""
    assert isinstance(ChatEndpoint("http://127.0.0.1:1/v1", "judge"), LanguageModel)


def test_a_stream_belongs_to_its_names():
    """The number 1 and the text 1 are different names, and a name's place counts."""
    first = [stream(*names).random() for names in [(0, 1), (0, "1"), (1, 0), (0, 1, 0)]]

    assert len(set(first)) == 4
    assert stream(0, 1).random() == first[0]


def test_a_caption_is_frozen():
    """No stage changes what another reads."""
    with pytest.raises(AttributeError):
        Caption(caption="a cat", instruction="add").caption = "a dog"


def test_an_integer_is_a_name_whatever_its_type():
    """A seed out of an array gives the captions that Python's number gives."""
    with without_shape_checks():
        assert stream(np.int64(3), "a", np.str_("b")).random() == stream(3, "a", "b").random()
