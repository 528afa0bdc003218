"""Lists of recordings: text, tables, JSON, and the files that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.audio.lists import NOT_BELOW_ROOT, Files, json_lines, json_of, lines, rows, seconds
from jobs.audio.trees import FolderTree, Leaf
from orchestrator.errors import DataError
from tests.unit.jobs.audio.corpora.layouts import AUDIO, gzipped, write


def tree_of(root: Path, files: dict[str, bytes | str]) -> FolderTree:
    return FolderTree(write(root, files))


def files_of(root: Path, *names: str) -> Files:
    tree = tree_of(root, dict.fromkeys(names, AUDIO))
    return Files(tree, tree.leaves())


BELOW = "a/b c.wav"


@pytest.mark.parametrize(
    "said",
    [
        BELOW,
        f"./{BELOW}",
        "x/../a/b c.wav",
        "{root}/a/b c.wav",
        "file://{root}/a/b c.wav",
        "{link}/a/b c.wav",
        "a/b%20c.wav",
        "file://{root}/a/b%20c.wav",
        "a\\b c.wav",
    ],
)
def test_a_file_is_found_by_any_path_that_means_it(tmp_path: Path, said: str) -> None:
    files = files_of(tmp_path / "root", BELOW)
    (tmp_path / "link").symlink_to(tmp_path / "root")
    linked = Files(FolderTree(tmp_path / "link"), [Leaf(BELOW, 4)])
    named = said.format(root=tmp_path / "root", link=tmp_path / "link")
    assert linked.named("l", named).path == BELOW
    if "{link}" not in said:
        assert files.named("l", named).path == BELOW


@pytest.mark.parametrize("name", ["caf\u00e9.wav", "cafe\u0301.wav", "a\\b.wav", "100%25.wav"])
def test_names_are_what_they_are_first(tmp_path: Path, name: str) -> None:
    files = files_of(tmp_path, name)
    assert not files.named("l", name).problem
    other = (
        name.replace("e\u0301", "\u00e9")
        if "e\u0301" in name
        else name.replace("\u00e9", "e\u0301")
    )
    assert not files.named("l", other).problem


def test_what_is_not_there_has_that_as_its_problem(tmp_path: Path) -> None:
    files = files_of(tmp_path, BELOW)
    gone = files.named("l", "a/./gone.wav")
    assert (gone.path, gone.problem) == ("a/gone.wav", NOT_BELOW_ROOT)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("/mnt/other/speech/a/b c.wav", "a/b c.wav is: write paths from there"),
        ("/mnt/other/gone.wav", "give the source a root that it is below"),
        ("../b c.wav", "give the source a root that it is below"),
        ("s3://bucket/a/b c.wav", "a/b c.wav is: write paths from there"),
        ("https://host/x.wav", "give the source a root"),
        ("C:\\speech\\a\\b c.wav", "a/b c.wav is: write paths from there"),
    ],
)
def test_a_path_of_another_place_is_told_with_how_to_mend_it(
    tmp_path: Path, said: str, remedy: str
) -> None:
    files = files_of(tmp_path, BELOW)
    with pytest.raises(DataError) as error:
        files.named("m.csv: line 2", said)
    assert str(error.value).startswith(f"m.csv: line 2: {said} is not below {tmp_path}; {remedy}")


@pytest.mark.parametrize("said", ["", ".", "./"])
def test_no_path_is_told(tmp_path: Path, said: str) -> None:
    with pytest.raises(DataError, match="l: names no file; give it the path of one"):
        files_of(tmp_path, BELOW).named("l", said)


TABLE = "id,path\n1,a b\n"


@pytest.mark.parametrize(
    "content",
    [
        TABLE,
        "\ufeff" + TABLE,
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\r"),
        "id, path\n1, a b\n",
        "id,path,\n1,a b,\n\n,,\n",
        'id,path\n"1","a b"',
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_tables_are_read_as_programs_write_them(tmp_path: Path, content: str, packed: str) -> None:
    data = gzipped(content) if packed else content.encode()
    tree = tree_of(tmp_path, {f"t.csv{packed}": data})
    ((where, row),) = rows(tree, next(tree.leaves()), ",", ("id", "path"), quoted=True)
    assert (row["id"], row["path"], where) == ("1", "a b", f"t.csv{packed}: line 2")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("id,path\n1,a,b\n", "line 2: has 3 columns, and the header 2; quote a field"),
        ("id,path\n1\n", "line 2: has 1 columns, and the header 2"),
        ("id,path,id\n1,a,2\n", "has two columns id; keep one"),
        ('id,path\n1,"a\n2,b\n', "unexpected end of data; repair its quotes"),
        ('id,path\n1,"a"b\n', "',' expected after '\"'; repair its quotes"),
        ("id;path\n1;a\n", "has no column id, path"),
        ("", "has no column id, path"),
    ],
)
def test_a_table_that_would_lose_something_is_refused(
    tmp_path: Path, content: str, problem: str
) -> None:
    tree = tree_of(tmp_path, {"t.csv": content})
    with pytest.raises(DataError) as error:
        list(rows(tree, next(tree.leaves()), ",", ("id", "path"), quoted=True))
    assert str(error.value).startswith(f"t.csv: {problem}")


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, {"l": "\ufeffa\r\n\r\n b\n"})
    assert list(lines(tree, next(tree.leaves()))) == [("l: line 1", "a"), ("l: line 3", " b")]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[\n{}]", "line 1: is no JSON .*; write one object a line"),
        ('[{"a": 1}]', "line 1: is no JSON object; write one object a line"),
        ('{}\n\n{"a":', "line 3: is no JSON .*; write one object a line"),
        ('{"path": "\\ud800.wav"}', "line 1: is no JSON .*surrogates"),
        ("[" * 100_000, "line 1: is no JSON .*recursion"),
        ("{}\nnull", "line 2: is no JSON object"),
    ],
)
def test_what_is_no_json_line_is_named(tmp_path: Path, content: str, problem: str) -> None:
    tree = tree_of(tmp_path, {"l.jsonl": content})
    with pytest.raises(DataError, match=f"l.jsonl: {problem}"):
        list(json_lines(tree, next(tree.leaves())))


def test_json_may_begin_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, {"l.json": '\ufeff{"a": "\\ud83d\\ude00"}'})
    leaf = next(tree.leaves())
    assert json_of(tree, leaf) == {"a": "\U0001f600"}
    assert list(json_lines(tree, leaf)) == [("l.json: line 1", {"a": "\U0001f600"})]


@pytest.mark.parametrize("said", ["x", "", None, True, [1], {}, "1,5", "nan", float("nan"), "1 s"])
def test_what_is_no_time_is_named(said: object) -> None:
    with pytest.raises(DataError, match=r"l: line 2: start .* is no time in seconds; repair it"):
        seconds(said, "start", "l: line 2")
