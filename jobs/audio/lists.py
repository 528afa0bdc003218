"""Reads what lists of recordings are written in, and finds the files that they name.

In: files of a tree. Out: lines, rows and JSON objects, each with its place, for errors to name it;
nothing of a list is passed over without a word.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import posixpath
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO
from urllib.parse import unquote

from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError
from orchestrator.ledger.source_files import as_text

NOT_BELOW_ROOT = "is listed, and not below the root"
_ELSEWHERE = re.compile(r"/|\.\.(/|$)|[a-zA-Z][a-zA-Z0-9+]*://|[a-zA-Z]:[\\/]")
"""How a path begins that cannot be below the root."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
BOM = "\ufeff".encode()


class Files:
    """The files of a tree, by the paths that lists give them."""

    def __init__(self, tree: Tree, leaves: Iterable[Leaf]) -> None:
        """Raises DataError where two recordings have one path, in two tars or beside one."""
        self._root = str(tree.root)
        self._roots = [f"{self._root.rstrip('/')}/"]
        if isinstance(tree.root, Path):
            self._roots.append(f"{tree.root.resolve()}/")
        self._by_path: dict[str, Leaf] = {}
        for leaf in leaves:
            if leaf.is_audio and leaf.path in self._by_path:
                others = (self._by_path[leaf.path].archive, leaf.archive)
                raise DataError(
                    f"{leaf.path}: is in {' and in '.join(o or 'the root' for o in others)}; put "
                    "each into a folder of its own"
                )
            self._by_path[leaf.path] = leaf

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def __getitem__(self, path: str) -> Leaf:
        return self._by_path[path]

    def named(self, where: str, *paths: str) -> Leaf:
        """The file that a list names, by the first of its paths that is there.

        Where none is, it has that as its problem: such a row is quarantined by its name, not
        forgotten. Raises DataError, with ``where``, for a path that is none, or of another place.
        """
        below = [self._below(path) for path in paths]
        for path in below:
            found = next((way for way in _ways(path) if way in self._by_path), None)
            if found is not None:
                return self._by_path[found]
        if below[-1] in ("", "."):
            raise DataError(f"{where}: names no file; give it the path of one")
        if all(_ELSEWHERE.match(path) for path in below):
            raise DataError(
                f"{where}: {paths[-1]} is not below {self._root}; {self._remedy(below)}"
            )
        return Leaf(below[-1], 0, problem=NOT_BELOW_ROOT)

    def _below(self, path: str) -> str:
        """A path as it is from the root, where it is below it."""
        path = path.removeprefix("file://")
        root = next((root for root in self._roots if path.startswith(root)), "")
        path = path.removeprefix(root)
        return path if path in self._by_path or "://" in path or not path else _normal(path)

    def _remedy(self, paths: Sequence[str]) -> str:
        for path in paths:
            parts = path.replace("\\", "/").split("/")
            ends = ("/".join(parts[first:]) for first in range(1, len(parts)))
            if end := next((end for end in ends if end in self._by_path), None):
                return f"{end} is: write paths from there"
        return "give the source a root that it is below, or write paths from its root"


def _normal(path: str) -> str:
    return posixpath.normpath(path).removeprefix("./")


def _ways(path: str) -> Iterator[str]:
    """How a path may be meant: as it is, as in a URL, on Windows, with accents set otherwise."""
    yield path
    yield as_text(path)
    yield _normal(unquote(path)) if path else path
    yield path.replace("\\", "/")
    yield from (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))


def json_of(tree: Tree, leaf: Leaf) -> dict[str, Any]:
    """A file's JSON object. Raises DataError, OSError."""
    with tree.place(leaf).open() as file:
        return _object(file.read(), leaf.path)


def json_lines(tree: Tree, leaf: Leaf) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each is, and a file's JSON objects, one a line. Raises DataError, OSError."""
    for where, line in lines(tree, leaf):
        yield where, _object(line, where, "write one object a line, or fetch it again")


def rows(
    tree: Tree, leaf: Leaf, delimiter: str, needed: Iterable[str], *, quoted: bool = False
) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each is, and the rows of a table with a header, by column.

    Raises DataError when a column is missing, or a row has more or fewer than the header.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with _text(tree, leaf) as text:
        # Strict, as a quote that is not closed would take all that follows for one field.
        reader = csv.reader(
            text, delimiter=delimiter, quoting=quoting, strict=quoted, skipinitialspace=quoted
        )
        header = [name.strip() for name in next(reader, ())]
        _require_columns(leaf.path, header, needed)
        for row in reader:
            where = f"{leaf.path}: line {reader.line_num}"
            if any(field.strip() for field in row):
                yield where, _by_column(header, row, where)


def _require_columns(path: str, header: Sequence[str], needed: Iterable[str]) -> None:
    if absent := [name for name in needed if name not in header]:
        raise DataError(f"{path}: has no column {', '.join(absent)}; fetch it again")
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise DataError(f"{path}: has two columns {', '.join(twice)}; keep one")


def _by_column(header: Sequence[str], row: list[str], where: str) -> dict[str, str]:
    while len(row) > len(header) and not row[-1].strip():
        row = row[:-1]
    if len(row) != len(header):
        raise DataError(
            f"{where}: has {len(row)} columns, and the header {len(header)}; quote a field that "
            "holds what separates them, or fetch it again"
        )
    return dict(zip(header, row, strict=True))


def lines(tree: Tree, leaf: Leaf) -> Iterator[tuple[str, str]]:
    """Where each is, and the lines of a text file that hold something."""
    with _text(tree, leaf) as text:
        for number, line in enumerate(text, 1):
            if line.strip():
                yield f"{leaf.path}: line {number}", line.rstrip("\r\n")


def value(row: Any, name: str, where: str) -> Any:
    """A field that must be there. Raises DataError."""
    found = row.get(name) if isinstance(row, Mapping) else None
    if found is None:
        raise DataError(f"{where}: has no {name!r}; repair it, or fetch it again")
    return found


def items(row: Any, name: str, where: str) -> list[Any]:
    """A field that must be a list. Raises DataError."""
    found = value(row, name, where)
    if not isinstance(found, list):
        raise DataError(f"{where}: {name!r} is no list; repair it, or fetch it again")
    return found


def seconds(said: Any, name: str, where: str) -> float:
    """A time. Raises DataError for what is no number."""
    try:
        found = math.nan if isinstance(said, bool) else float(said)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if math.isnan(found):
        raise DataError(f"{where}: {name} {said!r} is no time in seconds; repair it")
    return found


def stretch(said: Any, where: str) -> tuple[float, float]:
    """From when to when, of a pair of times in a list. Raises DataError."""
    if not isinstance(said, list) or len(said) != 2:
        raise DataError(f"{where}: {said!r} is no pair of times in seconds; repair it")
    return seconds(said[0], "start", where), seconds(said[1], "end", where)


@contextmanager
def _text(tree: Tree, leaf: Leaf) -> Iterator[TextIO]:
    """A file's text, unpacked where its name says that it is packed.

    Raises DataError for what is none, OSError for what cannot be read.
    """
    with tree.place(leaf).open() as file:
        try:
            if leaf.path.endswith(".gz"):
                with gzip.open(file, "rt", encoding="utf-8-sig", newline="") as unpacked:
                    yield unpacked
            else:
                yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        except UnicodeDecodeError:
            raise DataError(f"{leaf.path}: is no UTF-8; save it as such") from None
        except csv.Error as error:
            raise DataError(f"{leaf.path}: {error}; repair its quotes, or fetch it again") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{leaf.path}: {error}; fetch it again") from None


def _object(data: bytes | str, where: str, remedy: str = "fetch it again") -> dict[str, Any]:
    try:
        found = json.loads(data)
        if isinstance(data, str) and _SURROGATE.search(data):
            json.dumps(found, ensure_ascii=False).encode()  # half a character is no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise DataError(f"{where}: is no JSON object; {remedy}")
    return found
