"""Gold files of the ZeroSpeech suites: a CSV with a header, one row for each file.

Columns are found by name, as their order differs between releases; rows are checked against the
audio beside them, and paired by what they hold, never by their order.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jobs.scoring.suites.suite import Pair, Part, wavs
from orchestrator.errors import DataError

_MISSING = frozenset(
    {
        *("", "nan", "NaN", "-nan", "-NaN", "NA", "<NA>", "N/A", "n/a", "#N/A", "#NA", "#N/A N/A"),
        *("null", "NULL", "None", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN"),
    }
)
"""What the official scorer, which reads with pandas, takes for an empty cell."""
_AGAIN = "see that the file came over whole"


class Row(NamedTuple):
    """One file of a gold CSV."""

    file: str
    line: int
    stem: str
    is_correct: bool
    cells: Mapping[str, str]

    @property
    def where(self) -> str:
        """File and row, for errors."""
        return f"{self.file}: row {self.line}"

    def get(self, column: str) -> str:
        """A cell's text; empty where the column or the cell is missing."""
        text = self.cells.get(column, "")
        return "" if text in _MISSING else text


class Gold(NamedTuple):
    """The rows of a gold file, in its order, and its digest."""

    rows: list[Row]
    sha256: str


def read_gold(root: Path, file: Path, columns: Sequence[str]) -> Gold:
    """Read a gold CSV that must have some ``columns``, ``filename`` and ``correct`` besides.

    Raises DataError, with file and line, for a column that is not there and a row that is odd.
    """
    where = file.relative_to(root).as_posix()
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is no UTF-8; {_AGAIN}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if gone := [c for c in ("filename", *columns, "correct") if c not in header]:
            raise DataError(
                f"{where}: has no column {', '.join(gone)}; its header is "
                f"{','.join(header) or 'empty'}"
            )
        rows = list(_rows(where, header, reader))
    except csv.Error as error:
        raise DataError(f"{where}: row {reader.line_num}: {error}; {_AGAIN}") from None
    return Gold(rows, hashlib.sha256(data).hexdigest())


def _rows(where: str, header: list[str], reader: Iterator[list[str]]) -> Iterator[Row]:
    line_num = 1
    for cells in reader:
        line_num += 1
        if not cells:
            continue
        place = f"{where}: row {line_num}"
        if len(cells) != len(header):
            raise DataError(f"{place}: has {len(cells)} cells, not {len(header)}; {_AGAIN}")
        row = dict(zip(header, cells, strict=True))
        if row["correct"] not in ("0", "1", "0.0", "1.0"):
            raise DataError(f"{place}: correct is {row['correct']!r}, not 0 or 1; {_AGAIN}")
        stem = row["filename"].removesuffix(".wav")
        yield Row(where, line_num, stem, row["correct"][0] == "1", row)


def gold_part(
    root: Path,
    folder: Path,
    split: str,
    *,
    columns: Sequence[str],
    pairs: Callable[[Sequence[Row], str], Iterator[Pair]],
    prefix: str = "",
    once: bool = True,
) -> Part:
    """What a folder with a gold file holds; ``pairs`` makes pairs of rows and the ids' beginning.

    Ids begin with ``prefix``, else with the split. Without a gold file, as test sets were once
    given out, there are files alone. Raises DataError for an odd row, or audio that does not match.
    """
    prefix = prefix or f"{split}/"
    files, file = wavs(root, folder, prefix), folder / "gold.csv"
    if not file.is_file():
        return Part(split=split, files=files, pairs=())
    gold = read_gold(root, file, columns)
    require_audio(gold.rows, files, prefix, once=once)
    return Part(
        split=split,
        files=files,
        pairs=[replace(pair, split=split) for pair in pairs(gold.rows, prefix)],
        gold={file.relative_to(root).as_posix(): gold.sha256},
    )


def require_audio(
    rows: Sequence[Row], files: Mapping[str, tuple[str, int]], prefix: str, *, once: bool = True
) -> None:
    """Every row has its file and every file its row, ``once`` that is: exactly one.

    Raises DataError with the first that has not.
    """
    seen: dict[str, Row] = {}
    for row in rows:
        if prefix + row.stem not in files:
            raise DataError(f"{row.where}: there is no {row.stem}.wav beside the file; {_AGAIN}")
        if once and row.stem in seen:
            first = seen[row.stem].line
            raise DataError(f"{row.where}: {row.stem} is in row {first} already; leave one of them")
        seen[row.stem] = row
    extra = sorted(name for name in files if name.removeprefix(prefix) not in seen)
    if extra:
        file = rows[0].file if rows else "the gold file"
        others = f", nor have {len(extra) - 1} others" if len(extra) > 1 else ""
        raise DataError(
            f"{files[extra[0]][0]}: has no row in {file}{others}; "
            "take them away, or get the gold file that belongs to them"
        )


def paired(rows: Sequence[Row], columns: Sequence[str]) -> list[tuple[Row, Row]]:
    """The correct and the incorrect row that agree in some columns, in the order of the former.

    Where several do, the first goes with the first. Raises DataError for a row left alone, and for
    one without an id, which the official scorers drop.
    """
    sides: dict[tuple[str, ...], tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for row in rows:
        if not row.get("id"):
            raise DataError(f"{row.where}: has no id, by which rows are paired; {_AGAIN}")
        key = tuple(row.cells.get(column, "") for column in columns)
        sides[key][not row.is_correct].append(row)
    found: list[tuple[Row, Row]] = []
    for key, (correct, incorrect) in sides.items():
        if len(correct) != len(incorrect):
            alone = max(correct, incorrect, key=len)[-1]
            there = ", ".join(f"{c} {k}" for c, k in zip(columns, key, strict=True))
            raise DataError(
                f"{alone.where}: {len(correct)} correct and {len(incorrect)} incorrect of {there}, "
                f"which do not make pairs; {_AGAIN}"
            )
        found += zip(correct, incorrect, strict=True)
    return sorted(found, key=lambda pair: pair[0].line)


def number(row: Row, column: str) -> int | None:
    """A cell that holds a count; None where it is empty. Raises DataError for anything else."""
    if not (text := row.get(column)):
        return None
    try:
        value = float(text)
        if value.is_integer():
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise DataError(f"{row.where}: {column} is {text!r}, no whole number; {_AGAIN}")
