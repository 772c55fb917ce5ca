"""`training.prompt_rows`: tables by column, paths with colons, lists, errors."""

import re
from pathlib import Path

import pytest

from mvczigal_ref.config import from_dict
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.training.places import absolute_paths
from mvczigal_ref.training.prompt_rows import list_rows, split_column
from mvczigal_ref.training.prompts import read_prompts, run_prompts

TABLES = {
    "list.jsonl": '{"id": 1, "text": "a red cup"}\n{"text": " a \\"big\\" dog "}\n',
    "list.csv": 'id,text\n1,a red cup\n2," a ""big"" dog "\n',
}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write a file into the working directory and give its name."""
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", TABLES)
def test_prompts_are_the_texts_of_a_column(table, name, mark, end):
    """Whatever ends the lines, with or without a byte-order mark, without blanks around."""
    path = table(name, mark + TABLES[name].replace("\n", end))

    assert read_prompts(f"{path}:text") == ["a red cup", 'a "big" dog']


def test_a_quoted_cell_may_hold_a_line_end(table):
    """The row's number is that of its first line."""
    path = table("list.csv", 'text\n"a cup\nand a plate"\n\nb\nb\n')
    with pytest.warns(UserWarning, match="^`prompts`: ") as warned:
        assert read_prompts(f"{path}:text") == ["a cup\nand a plate", "b", "b"]

    assert [str(each.message) for each in warned] == [
        f"`prompts`: '{path}:text' has 1 blank lines, left out: line 4.",
        f"`prompts`: '{path}:text' has 1 repeated prompts, kept: line 6.",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.jsonl", '{"text": "a"}\n{"id": 1}\n\n{"text": null}\n{"text": ""}\n{"text": "b"}'),
        ("list.csv", "id,text\n1,a\n2\n\n3,\n4, \n5,b"),
    ],
)
def test_a_cell_without_a_text_is_blank(table, name, content):
    """Absent, null, empty or of blanks: reported by number, as an empty line is."""
    table(name, content)
    with pytest.warns(
        UserWarning, match=r"has 4 blank lines, left out: line [23], [34], [45], \.{3}"
    ):
        assert read_prompts(f"{name}:text") == ["a", "b"]


def test_a_python_list_is_a_list_of_prompts():
    """Checked as a file is: by item."""
    with pytest.warns(UserWarning, match=r"^`prompts`: the list has 1 blank items, .* item 2\."):
        assert read_prompts(["a cup", "", " a dog"]) == ["a cup", "a dog"]
    assert list_rows(("a",), setting="prompts").place == "item"


# -- laws: colons ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path", "column"),
    [
        ("C:/lists/a.csv:prompt", "C:/lists/a.csv", "prompt"),
        ("C:\\lists\\a.jsonl:prompt", "C:\\lists\\a.jsonl", "prompt"),
        ("C:\\lists\\a.txt", "C:\\lists\\a.txt", None),
        ("a.CSV:x", "a.CSV", "x"),
        ("a.csv", "a.csv", None),
        ("a.csv:", "a.csv:", None),
        ("a:b/list.txt", "a:b/list.txt", None),
        ("a.csv:b:c", "a.csv", "b:c"),
        ("a.tsv:b", "a.tsv:b", None),
    ],
)
def test_a_column_follows_a_table_and_nothing_else(name, path, column):
    """A drive's colon, or one in a folder's name, is the path's."""
    assert split_column(name) == (Path(path), column)


@pytest.mark.parametrize(
    ("file", "name", "column"),
    [
        ("a.csv:b.csv", "a.csv:b.csv:text", "text"),
        ("a.csv:b.csv", "a.csv:b.csv", None),
        ("a.csv", "a.csv:b.csv:text", "b.csv:text"),
        ("d:x/a.jsonl", "d:x/a.jsonl:text", "text"),
        ("x.csv:text", "x.csv:text", None),
    ],
)
def test_the_file_that_exists_decides(table, file, name, column):
    """Of several ways to read a name."""
    table(file, "text\na\n")

    assert split_column(name) == (Path(file), column)


@pytest.mark.parametrize("name", ["list.csv:text", "list.jsonl:text"])
def test_a_table_keeps_its_column_where_paths_are_written_out(table, name, tmp_path):
    """So that a run goes on from another folder."""
    table(name.partition(":")[0], "text\na\n")
    config = from_dict({"run": {"prompts": name}})

    assert absolute_paths(config) == {"run.prompts": str(tmp_path / name)}


def test_lists_take_the_place_of_the_settings():
    """Of both, and are checked like them."""
    config = from_dict({})
    trained, held_out = ["a red ball with a green nose"], ["a blue can with a red fin"]

    assert run_prompts(config, prompts=trained, held_out=held_out) == (trained, held_out)
    with pytest.raises(ConfigError, match="item 2 of the list: `prompt` must read"):
        run_prompts(config, prompts=[*trained, "a boat"], held_out=held_out)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "column", "words"),
    [
        ("a.csv", "id,text\n1,a\n", ":prompt", "got 'prompt'. Its columns: 'id', 'text'."),
        ("a.csv", "id,text\n1,a\n", "", "as in `a.csv:COLUMN`; got no column. Its columns: 'id',"),
        ("a.jsonl", '{"a": "x"}\n{"b": "y"}', ":c", "got 'c'. Its columns: 'a', 'b'."),
        ("a.csv", "", ":c", "Its columns: none."),
        ("a.csv", "text\n", ":text", "must hold at least one prompt"),
        ("a.csv", "text,text\na,b\n", ":text", "must name each column once"),
        ("a.csv", 'text\n"a\n', ":text", "line 2 of 'a.csv' must be CSV: unexpected end of data"),
        ("a.jsonl", '{"text": "a"}\n{text}', ":text", "line 2 of 'a.jsonl' must be JSON; got"),
        ("a.jsonl", '{"text": "a"}\n["b"]', ":text", "line 2 of 'a.jsonl' must be a JSON object"),
        ("a.jsonl", '{"text": "a"}\n{"text": 3}', ":text", "line 2 of 'a.jsonl' must hold a text"),
        ("a.jsonl", "[" * 100_000, ":text", "line 1 of 'a.jsonl' must be JSON"),
        (
            "a.csv",
            "text,n\na red cube, small,1\n",
            ":text",
            "line 2 of 'a.csv' must hold at most 2",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "\\ud83d b"}',
            ":text",
            "line 2 of 'a.jsonl' must be Uni",
        ),
        ("a.jsonl", '{"text": "a\\u0000b"}', ":text", "line 1 of 'a.jsonl' must be Unicode text"),
        ("a.json", '["a", "b"]', "", "one prompt per line, or a column of a .jsonl or .csv file"),
        ("a.tsv", "text\tn\na\t1\n", "", "got 'a.tsv'. Write its prompts to one of these."),
        ("a.parquet", "PAR1", "", "got 'a.parquet'"),
        ("a.csv", b"text\na caf\xe9\n", ":text", "line 2 holds the byte 0xe9"),
    ],
)
def test_a_damaged_table_is_refused_in_one_line(table, file, content, column, words):
    """With the file, the line, and the columns that exist."""
    table(file, content)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        read_prompts(f"{file}{column}", setting="run.prompts")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("file", "content"),
    [("a.csv", "n,text\n1,a\n2\n"), ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n\n')],
)
def test_a_last_row_without_a_prompt_is_told_of(table, file, content):
    """As one in the middle is; empty lines after it are not."""
    table(file, content)
    with pytest.warns(UserWarning, match="has 1 blank lines, left out"):
        assert read_prompts(f"{file}:text") == ["a"]


def test_what_is_no_text_is_refused():
    """By its item."""
    with pytest.raises(ConfigError, match="item 1 of `prompts` must be Unicode text"):
        read_prompts(["\ud800"])
    with pytest.raises(ConfigError, match="`prompts` must hold texts; item 2 is 3"):
        list_rows(["a", 3], setting="prompts")  # readers' own types are checked by chance
    with pytest.raises(ConfigError, match="must hold at least one prompt; the list is empty"):
        read_prompts([])


def test_a_table_that_is_not_there_is_refused(table):
    """With the forms that exist."""
    with pytest.raises(
        ConfigError, match=r"a text file, FILE\.csv:COLUMN.* got 'absent\.csv:text'"
    ):
        read_prompts("absent.csv:text", setting="run.prompts")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<!DOCTYPE html><html>404</html>", "it is a web page"),
        ("version https://git-lfs.github.com/spec/v1\nsize 3\n", "it is a Git LFS pointer"),
        ('{"error": "Access to dataset X is restricted"}\n', "it is JSON, which a .jsonl file"),
        ('["a cat",\n"a dog"]\n', "it is JSON, which a .jsonl file"),
        ("%PDF-1.4\n", "it is a PDF"),
        ("{\\rtf1 a cat}", "it is rich text"),
    ],
)
def test_another_kind_of_file_is_no_list(table, content, words):
    """What a failed download leaves, and what an editor writes of itself."""
    with pytest.raises(ConfigError, match=f"'list.txt' must hold prompts; {words}"):
        read_prompts(table("list.txt", content))
    assert read_prompts(table("list.txt", "[a red cube]\n{a cat}\n")) == ["[a red cube]", "{a cat}"]


def test_a_comma_without_quotes_does_not_cut_a_prompt(table):
    """Its end would be a cell that no column has."""
    name = table("list.csv", "id,text\n1,a red cube, with a nose\n")
    with pytest.raises(ConfigError, match=r"line 2 of 'list.csv' must hold at most 2 cells"):
        read_prompts(f"{name}:text")


def test_half_a_character_is_refused(table):
    """JSON can write it, and no tokenizer can read it."""
    name = table("list.jsonl", '{"text": "a cat"}\n{"text": "a \\ud83e"}\n')
    with pytest.raises(ConfigError, match=r"line 2 of .* must be Unicode text; .* half a character"):
        read_prompts(f"{name}:text")
    with pytest.raises(ConfigError, match="item 1 of the list must be text"):
        read_prompts(["a \ud83e"])
