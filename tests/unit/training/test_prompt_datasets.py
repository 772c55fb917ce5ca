"""`training.prompt_datasets`: a column of a dataset, by a stand-in for the library."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models import reach
from mvczigal_ref.training import prompt_datasets
from mvczigal_ref.training.prompts import read_prompts


class Table:
    """Columns by name, as `datasets.Dataset` gives them."""

    def __init__(self, **columns):
        self._columns = columns
        self.column_names = list(columns)

    def select_columns(self, names):
        """Keep some."""
        return Table(**{name: self._columns[name] for name in names})

    def __getitem__(self, name):
        """Give one."""
        return self._columns[name]


@pytest.fixture
def library(monkeypatch):
    """Stand in for the library: its calls, and what it gives or raises."""
    module = ModuleType("datasets")
    module.__spec__ = ModuleSpec("datasets", None)
    module.calls, module.gives = [], Table(id=[1, 2, 3], text=["a cup", None, " a dog "])

    def load_dataset(name, **options):
        module.calls.append((name, options))
        if isinstance(module.gives, Exception):
            raise module.gives
        return module.gives

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(reach, "hub_answers", lambda: True)
    return module


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hf:user/set:text", ("user/set", {"split": "train", "revision": None})),
        ("hf:user/set/test:text", ("user/set", {"split": "test", "revision": None})),
        ("hf:user/set:text@v1.0", ("user/set", {"split": "train", "revision": "v1.0"})),
        ("hf:u.s-r/s_t:text@refs/pr/2", ("u.s-r/s_t", {"split": "train", "revision": "refs/pr/2"})),
    ],
)
def test_a_name_says_dataset_split_column_and_revision(library, name, asked):
    """Nothing else is asked for: no code of a repository is run."""
    with pytest.warns(UserWarning, match=r"has 1 blank rows, left out: row 2\."):
        assert read_prompts(name) == ["a cup", "a dog"]
    assert library.calls == [asked]


@pytest.mark.parametrize(
    "name", ["hf:set:text", "hf:user/set", "hf:user/set:", "hf:a/b/c/d:text", "hf:user/set:text@"]
)
def test_another_form_is_refused(library, name):
    """With the forms that there are."""
    with pytest.raises(ConfigError, match=r"`run\.prompts` must read hf:USER/DATASET:COLUMN"):
        read_prompts(name, setting="run.prompts")
    assert library.calls == []


def test_an_unknown_column_is_refused_with_those_that_exist(library):
    """By name."""
    with pytest.raises(ConfigError, match="must name a column of the dataset; it has 'id', 'text'"):
        read_prompts("hf:user/set:prompt")
    with pytest.raises(ConfigError, match="row 1 of 'hf:user/set:id' must hold a text"):
        read_prompts("hf:user/set:id")


def test_what_cannot_be_loaded_is_refused_in_one_line(library):
    """With the library's reason and what to do."""
    library.gives = FileNotFoundError("no such\ndataset." + "x" * 1000)
    with pytest.raises(
        ConfigError, match="cannot be loaded: FileNotFoundError: no such dataset"
    ) as e:
        read_prompts("hf:user/set:text")
    assert "without a network, load it once" in str(e.value)
    assert len(str(e.value)) < 500


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    """Before anything else."""
    monkeypatch.setattr(prompt_datasets, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[datasets\]"'):
        read_prompts("hf:user/set:text", setting="run.prompts")
