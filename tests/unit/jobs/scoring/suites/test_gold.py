from __future__ import annotations

from pathlib import Path

import pytest

from jobs.scoring.suites.gold import paired, read_gold
from orchestrator.errors import DataError

HEADER = "filename,id,correct\n"


def write(tmp_path: Path, data: bytes | str) -> Path:
    file = tmp_path / "gold.csv"
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


def test_columns_are_found_by_name_and_a_suffix_is_no_part_of_a_stem(tmp_path: Path) -> None:
    file = write(tmp_path, "\ufeffcorrect,filename,id\n1,abc.wav,7\n0.0,abd,7\n")
    rows = read_gold(tmp_path, file, ["id"]).rows
    assert [(r.stem, r.is_correct, r.get("id"), r.line) for r in rows] == [
        ("abc", True, "7", 2),
        ("abd", False, "7", 3),
    ]


@pytest.mark.parametrize("empty", ["", "nan", "NA", "null"])
def test_what_pandas_takes_for_missing_is_empty(tmp_path: Path, empty: str) -> None:
    file = write(tmp_path, f"{HEADER}abc,{empty},1\n")
    assert read_gold(tmp_path, file, ["id"]).rows[0].get("id") == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "has no column filename, id, correct; its header is empty"),
        ("filename,correct\n", "has no column id; its header is filename,correct"),
        (f"{HEADER}abc,1\n", "row 2: has 2 cells, not 3"),
        (f'{HEADER}abc,"1,1\n', "row 2: unexpected end of data"),
        (b"filename,id,correct\n\xff,1,1\n", "byte 20 is no UTF-8"),
    ],
)
def test_a_damaged_file_is_named_with_its_row(
    tmp_path: Path, data: bytes | str, message: str
) -> None:
    with pytest.raises(DataError, match=rf"^gold.csv: {message}"):
        read_gold(tmp_path, write(tmp_path, data), ["id"])


def test_a_row_without_an_id_is_no_pair(tmp_path: Path) -> None:
    rows = read_gold(tmp_path, write(tmp_path, f"{HEADER}abc,nan,1\nabd,nan,0\n"), ["id"]).rows
    with pytest.raises(DataError, match=r"^gold\.csv: row 2: has no id"):
        paired(rows, ["id"])
