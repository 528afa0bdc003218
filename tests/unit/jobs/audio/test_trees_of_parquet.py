"""Rows of Parquet files as files of a tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.audio.corpora import adapter
from jobs.audio.decode import UnreadableAudioError, blocks
from jobs.audio.trees import FolderTree, ParquetTree
from orchestrator.errors import DataError, RequestError

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, num_rows: int = 5, **columns: Any) -> Path:
    """A data set in row groups of two; row n holds n + 1 bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = [{"bytes": bytes([n]) * (n + 1), "path": f"{n}.flac"} for n in range(num_rows)]
    table = pa.table({"audio": pa.array(audio, AUDIO), "n": list(range(num_rows)), **columns})
    pq.write_table(table, path, row_group_size=2)
    return path


def test_each_row_has_its_bytes_in_whatever_order_they_are_read(tmp_path: Path) -> None:
    write(tmp_path / "clean/train-00000-of-00002.parquet")
    write(tmp_path / "clean/train-00001-of-00002.parquet", id=[f"s/{n}x.flac" for n in range(5)])
    tree = ParquetTree(tmp_path)
    leaves = list(tree.leaves())
    assert [leaf.path for leaf in leaves] == [
        *(f"{n}.flac" for n in range(5)),
        *(f"s/{n}x.flac" for n in range(5)),
    ]
    for order in (leaves, leaves[::-1], leaves[::3]):
        for leaf in order:
            with tree.place(leaf).open() as file:
                assert file.read() == bytes([leaf.offset]) * (leaf.offset + 1)


def test_a_data_set_of_a_hub(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 2, locale=["en-US", "pt"], client_id=["bob", "ana"])
    found = list(adapter("hf_parquet")(ParquetTree(tmp_path)))
    assert [(r.id, r.language, r.speaker) for r in found] == [
        ("0", "en", "bob"),
        ("1", "pt", "ana"),
    ]
    with pytest.raises(RequestError, match="container parquet"):
        list(adapter("hf_parquet")(FolderTree(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (pa.int64(), [0, 19]),
        (pa.int16(), [0, 19]),
        (pa.large_string(), ["0", "19"]),
        (pa.string_view(), ["0", "19"]),
        (pa.dictionary(pa.int32(), pa.string()), ["0", "19"]),
        (pa.dictionary(pa.int8(), pa.large_string()), ["0", "19"]),
    ],
)
def test_speakers_may_be_numbers_or_text_of_any_kind(
    tmp_path: Path, kind: pa.DataType, said: list[Any]
) -> None:
    write(tmp_path / "a.parquet", 2, speaker_id=pa.array(said, kind), language=[0, 1])
    found = list(adapter("hf_parquet")(ParquetTree(tmp_path)))
    assert [(r.speaker, r.language) for r in found] == [("0", ""), ("19", "")]


def test_an_integer_may_be_the_id_of_a_row_without_a_path(tmp_path: Path) -> None:
    audio = pa.array([{"bytes": b"x", "path": None}] * 2, AUDIO)
    pq.write_table(pa.table({"audio": audio, "id": [0, 7]}), tmp_path / "a.parquet")
    assert [r.id for r in adapter("hf_parquet")(ParquetTree(tmp_path))] == ["0", "7"]
    named = pa.table({"audio": audio, "id": [0, 7], "path": ["a.mp3", "b.mp3"]})
    pq.write_table(named, tmp_path / "a.parquet")
    assert [r.id for r in adapter("hf_parquet")(ParquetTree(tmp_path))] == ["a", "b"]


def test_what_is_none_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-50])
    with pytest.raises(DataError, match=r"a\.parquet: .*fetch it again"):
        list(ParquetTree(tmp_path).leaves())
    pq.write_table(pa.table({"text": ["no audio"]}), tmp_path / "a.parquet")
    needs = r"a\.parquet: needs one column of struct<bytes, path>, and has none; write it"
    with pytest.raises(DataError, match=needs):
        list(ParquetTree(tmp_path).leaves())


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.int16(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_ids_speakers_and_languages_are_of_any_type(tmp_path: Path, kind: pa.DataType) -> None:
    some = pa.array([7, 8]) if pa.types.is_integer(kind) else pa.array(["7", "8"])
    column = some.dictionary_encode() if pa.types.is_dictionary(kind) else some.cast(kind)
    languages = pa.array(["en", "pt"]).dictionary_encode()
    write(tmp_path / "a.parquet", 2, speaker_id=column, language=languages)
    found = list(adapter("hf_parquet")(ParquetTree(tmp_path)))
    assert [(r.speaker, r.language) for r in found] == [("7", "en"), ("8", "pt")]


def test_numbers_of_class_labels_are_words(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 3, language=[1, 0, None], speaker_id=[1, 0, -1])
    names = {"language": {"names": ["en", "de"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": names}})}
    pq.write_table(pq.read_table(path).replace_schema_metadata(about), path)
    found = list(adapter("hf_parquet")(ParquetTree(tmp_path)))
    assert [r.language for r in found] == ["de", "en", ""]
    assert [r.speaker for r in found] == ["1", "0", "-1"]


@pytest.mark.parametrize("about", [b"no JSON", b"[]", b'{"info": 1}'])
def test_notes_of_others_are_no_class_labels(tmp_path: Path, about: bytes) -> None:
    path = write(tmp_path / "a.parquet", 2)
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"huggingface": about}), path)
    assert len(list(ParquetTree(tmp_path).leaves())) == 2


def test_rows_without_names_or_bytes_are_told(tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": "/abs/a.wav"}, None, {"bytes": b"", "path": "b.wav"}]
    table = pa.table({"audio": pa.array(rows, AUDIO), "id": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    tree = ParquetTree(tmp_path)
    for leaf in tree.leaves():
        with pytest.raises(UnreadableAudioError, match="holds no bytes"):
            list(blocks(tree.place(leaf)))
    pq.write_table(table.drop(["id"]), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"a\.parquet: row 1: has neither path nor id; add a column"
    ):
        list(tree.leaves())


@pytest.mark.parametrize("name", ["B.PARQUET", "b.Parquet"])
def test_a_suffix_is_one_in_any_case(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, 2)
    assert len(list(ParquetTree(tmp_path).leaves())) == 2
    assert [path for path, _, _ in ParquetTree(tmp_path).versions()] == [name]


def test_a_row_group_that_takes_too_much_memory_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    assert len(list(ParquetTree(tmp_path, max_group_bytes=1_000).leaves())) == 5
    with pytest.raises(
        DataError, match=r"a\.parquet: row group 0 holds .* with 100 rows in a group"
    ):
        list(ParquetTree(tmp_path, max_group_bytes=2).leaves())


def test_splits_that_each_count_from_0_are_told_apart(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"en/{split}/0000.parquet", 1)
    found = list(adapter("hf_parquet")(ParquetTree(tmp_path)))
    assert [r.id for r in found] == ["en/test/0000.parquet/0.flac", "en/train/0000.parquet/0.flac"]
