"""A recording as the adapters of corpora list it, and what they share."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, TextIO

from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError

NO_SPEECH = "no speech"


class Recording(NamedTuple):
    """One recording of a source: bytes of a file, all of them or some stretches of time."""

    id: str
    """The corpus' own; unique within the source, the same in every container."""
    leaf: Leaf
    """Where its bytes are."""
    spans_s: tuple[tuple[float, float], ...] = ()
    """From when to when, in seconds of the file, what belongs together in order; empty for all."""
    channel: int | None = None
    """Which one the corpus means, counted from 0; None where it means all of them."""
    language: str = ""
    """ISO 639 code; empty where the corpus says none."""
    speaker: str = ""
    session: str = ""
    """What recordings have in common that should not be torn apart by a split: a book, a show."""
    left_out: str = ""
    """Why the corpus' own metadata says that it should not be used; empty when it may be."""


def by_stem(leaves: Iterable[Leaf]) -> Iterator[tuple[str, Leaf]]:
    """Each audio file with its path without the suffix; ``leaves`` in the order of their paths.

    With it where two differ in that, and where another is called so: ``a.wav.flac`` by ``a.wav``.
    """
    for alike in _up_to_a_dot(leaf for leaf in leaves if leaf.is_audio):
        audio = {leaf.path: leaf for leaf in alike}
        names = [stem(path) for path in audio]
        stems = Counter(names)
        for name, (path, leaf) in zip(names, audio.items(), strict=True):
            yield (name if stems[name] == 1 and name not in audio else path), leaf


def _up_to_a_dot(leaves: Iterable[Leaf]) -> Iterator[list[Leaf]]:
    """Files with the same path up to the first dot of their names; between them may be a folder."""
    pending: list[tuple[str, list[Leaf]]] = []
    for leaf in leaves:
        folder, slash, name = leaf.path.rpartition("/")
        begin = folder + slash + name.partition(".")[0] + "."
        while pending and not leaf.path.startswith(pending[-1][0]):
            yield pending.pop()[1]
        if not pending or pending[-1][0] != begin:
            pending.append((begin, []))
        pending[-1][1].append(leaf)
    yield from (alike for _, alike in reversed(pending))


def stem(path: str) -> str:
    """A path without its last suffix."""
    return str(PurePosixPath(path).with_suffix(""))


def listed(leaves: Mapping[str, Leaf], *paths: str) -> Leaf:
    """The file that a list names, by the first of its paths that is there.

    Where none is, it has that as its problem: such a row is quarantined by its name, not forgotten.
    """
    found = next((leaves[path] for path in paths if path in leaves), None)
    return found or Leaf(paths[-1], 0, problem="is listed, and not below the root")


def language_code(said: str) -> str:
    """The ISO 639 code of ``en``, ``EN``, ``en-US``, ``English``; another word in small letters."""
    word = re.split("[-_]", said.strip().lower())[0]
    return word if len(word) <= 3 else _codes_of_names().get(said.strip().lower(), word)


@cache
def _codes_of_names() -> Mapping[str, str]:
    """By English name; slow to import, and asked for only where there are names."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return TO_LANGUAGE_CODE


def json_of(tree: Tree, leaf: Leaf) -> dict[str, Any]:
    """A file's JSON object. Raises DataError, OSError."""
    with tree.place(leaf).open() as file:
        return _object(file.read(), leaf.path)


def json_lines(tree: Tree, leaf: Leaf) -> Iterator[dict[str, Any]]:
    """A file's JSON objects, one a line. Raises DataError, OSError."""
    for number, line in enumerate(lines(tree, leaf), 1):
        yield _object(line, f"{leaf.path}: line {number}")


def rows(
    tree: Tree, leaf: Leaf, delimiter: str, needed: Iterable[str], *, quoted: bool = False
) -> Iterator[dict[str, str]]:
    """Rows of a table with a header, by column. Raises DataError when a column is missing."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with _text(tree, leaf) as text:
        reader = csv.DictReader(text, delimiter=delimiter, quoting=quoting)
        absent = [name for name in needed if name not in (reader.fieldnames or ())]
        if absent:
            raise DataError(f"{leaf.path}: has no column {', '.join(absent)}; fetch it again")
        yield from reader


def lines(tree: Tree, leaf: Leaf) -> Iterator[str]:
    """Lines of a text file that hold something."""
    with _text(tree, leaf) as text:
        for line in text:
            if line.strip():
                yield line.rstrip("\r\n")


def value(row: Mapping[str, Any], name: str, where: str) -> Any:
    """A field that must be there. Raises DataError."""
    try:
        return row[name]
    except (KeyError, TypeError):
        raise DataError(f"{where}: has no {name!r}; fetch it again") from None


@contextmanager
def _text(tree: Tree, leaf: Leaf) -> Iterator[TextIO]:
    """A file's text, unpacked where its name says that it is packed.

    Raises DataError for what is none, OSError for what cannot be read.
    """
    with tree.place(leaf).open() as file:
        try:
            if leaf.path.endswith(".gz"):
                with gzip.open(file, "rt", encoding="utf-8", newline="") as unpacked:
                    yield unpacked
            else:
                yield io.TextIOWrapper(file, encoding="utf-8", newline="")
        except UnicodeDecodeError:
            raise DataError(f"{leaf.path}: is no UTF-8; save it as such") from None
        except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
            raise DataError(f"{leaf.path}: {error}; fetch it again") from None


def _object(data: bytes | str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DataError(f"{where}: is no JSON ({error}); fetch it again") from None
    if not isinstance(found, dict):
        raise DataError(f"{where}: is no JSON object; fetch it again")
    return found
