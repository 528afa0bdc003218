"""What lies below a source's root, as adapters of corpora see it: paths, whatever holds them.

The same layout may lie in folders or in tars: a tree gives the same paths for both, and where the
bytes of each are. Nothing is unpacked. In Parquet a recording is a row, as a hub's data sets keep
them (huggingface.co/docs/datasets, feature ``Audio``: a column of ``struct<bytes, path>``).
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.audio.decode import AUDIO_SUFFIXES
from jobs.audio.mapped_tables import SortedRows, chunked
from jobs.audio.place import BYTES, PATH, Place, audio_column, open_parquet
from jobs.audio.tars import DEAD_LINK, members
from orchestrator.errors import DataError
from orchestrator.ledger.bucket_path import BucketPath
from orchestrator.ledger.source_files import (
    SourceFile,
    as_path,
    as_text,
    files_below,
    may_be_folder,
    versions_below,
)

_ID = ("id", "ID", "utt_id", "fileid", "file", "path")
"""Columns that name a row of Parquet."""
_TAR, _PARQUET = ".tar", ".parquet"
_PACKED = re.compile(r"\.tar\.(gz|bz2|xz|zst)$|\.(tgz|tbz2?|txz|tzst)$")
_MAX_GROUP_BYTES = 500_000_000
"""A decoder's memory has room for a row group three times: as it lies, decoded and put together."""


class Leaf(NamedTuple):
    """One file of a tree."""

    path: str
    """As the corpus lays it out, with forward slashes, as text (`source_files.as_text`)."""
    size: int
    """In bytes."""
    problem: str = ""
    """Why it must not be opened; empty for a file."""
    archive: str = ""
    """Path below the root of the tar that holds it; empty for a file of its own."""
    offset: int = 0
    """Where its bytes begin in that tar."""

    @property
    def is_audio(self) -> bool:
        """Whether its name is that of a recording."""
        return is_audio(self.path)


def is_audio(path: str) -> bool:
    """Whether a file of this name is taken for a recording."""
    return posixpath.splitext(path)[1].lower() in AUDIO_SUFFIXES


class Tree(Protocol):
    """A source's files."""

    @property
    def root(self) -> Path | BucketPath:
        """The folder that they are below."""

    def leaves(self) -> Iterator[Leaf]:
        """All files in the order of their paths as text. Raises OSError for what cannot be read."""

    def place(self, leaf: Leaf) -> Place:
        """Where the bytes of one of them are."""

    def versions(self) -> Iterator[tuple[str, int, str]]:
        """What must not have been written again for places to hold, as `versions_below` has it."""


_LEAF_SCHEMA = pa.schema(
    [(name, pa.int64() if name in ("size", "offset") else pa.string()) for name in Leaf._fields]
)


def in_order(leaves: Iterable[Leaf]) -> Iterator[Leaf]:
    """The same by path; there may be more than memory holds."""
    with closing(SortedRows(_LEAF_SCHEMA, Leaf._fields)) as rows:
        for some in chunked(leaves):
            columns = dict(zip(Leaf._fields, zip(*some, strict=True), strict=True))
            rows.add(pa.RecordBatch.from_pydict(columns, _LEAF_SCHEMA))
        table = rows.table()
    for batch in table.to_batches():
        yield from map(Leaf, *(column.to_pylist() for column in batch.columns))


class _Rooted:
    """What all trees on disks and in buckets have in common."""

    def __init__(
        self, root: Path | BucketPath, on_empty_folder: Callable[[str], object] = bool
    ) -> None:
        """``on_empty_folder``: as `files_below` has it."""
        self._root, self._on_empty_folder = root, on_empty_folder

    @property
    def root(self) -> Path | BucketPath:
        """The folder that its files are below."""
        return self._root

    def _files(self) -> Iterator[SourceFile]:
        return files_below(self._root, self._on_empty_folder)


class FolderTree(_Rooted):
    """Files in folders."""

    def leaves(self) -> Iterator[Leaf]:
        """All files, sorted, so that no file system's own order shows."""
        yield from in_order(Leaf(*file) for file in self._files())

    def place(self, leaf: Leaf) -> Place:
        """The file."""
        return Place(self._root / as_path(leaf.path), leaf.path)

    def versions(self) -> Iterator[tuple[str, int, str]]:
        """Nothing: a file's place is its name."""
        return iter(())


class TarTree(_Rooted):
    """Members of all uncompressed tars below a root, as if each were unpacked where it lies.

    Files beside the tars are in the tree too: annotations are often. Of members of one path in a
    tar the last counts.
    """

    def leaves(self) -> Iterator[Leaf]:
        """All members, sorted; what several tars have is there once for each.

        Raises DataError for a tar that is compressed, cut or damaged.
        """
        for _, alike in groupby(in_order(self._unsorted()), key=lambda leaf: leaf.path):
            last = {leaf.archive: leaf for leaf in sorted(alike, key=lambda leaf: leaf.offset)}
            yield from last.values()

    def place(self, leaf: Leaf) -> Place:
        """The member, or the file beside the tars."""
        if not leaf.archive:
            return Place(self._root / as_path(leaf.path), leaf.path)
        return Place(self._root / as_path(leaf.archive), leaf.path, leaf.offset, leaf.size)

    def versions(self) -> Iterator[tuple[str, int, str]]:
        """Of the tars: places are counted from their beginnings."""
        return versions_below(self._root, _TAR)

    def _unsorted(self) -> Iterator[Leaf]:
        tars, packed = set[str](), dict[str, str]()
        for file in self._files():
            name = file.path.lower()
            if match := _PACKED.search(name):
                packed[name[: match.start()] + _TAR] = file.path
            if not name.endswith(_TAR):
                yield Leaf(*file)
                continue
            tars.add(name)
            if file.problem:
                raise DataError(f"{self._root}/{file.path}: {file.problem}; repair it")
            yield from self._members(file.path)
        for name in packed.keys() - tars:
            raise DataError(
                f"{self._root}/{packed[name]}: a compressed tar cannot be entered; decompress it"
            )

    def _members(self, archive: str) -> Iterator[Leaf]:
        folder, file_at = PurePosixPath(archive).parent, self._root / as_path(archive)
        try:
            with file_at.open("rb") as file:
                for path, size, problem, offset in members(file):
                    if problem == DEAD_LINK and may_be_folder(path):
                        raise DataError(
                            f"{self._root}/{archive}: {path} is a link to what is not in the tar; "
                            "add it, or remove the link"
                        )
                    below = (folder / as_text(path)).as_posix()
                    yield Leaf(below, size, problem, archive, offset)
        except tarfile.TarError as error:
            raise DataError(
                f"{self._root}/{archive}: no whole uncompressed tar ({error}); fetch it again, or "
                "unpack it"
            ) from None


class ParquetTree(_Rooted):
    """Rows of all Parquet files below a root; one row group is in memory at a time.

    A row's path is its id where that names an audio file, else the path beside its bytes.
    """

    def __init__(
        self,
        root: Path | BucketPath,
        on_empty_folder: Callable[[str], object] = bool,
        *,
        max_group_bytes: int = _MAX_GROUP_BYTES,
    ) -> None:
        super().__init__(root, on_empty_folder)
        self._max_group_bytes = max_group_bytes

    def leaves(self) -> Iterator[Leaf]:
        """All rows, sorted. Raises DataError for what is no such file."""
        yield from in_order(leaf for leaf, _ in self.rows())

    def rows(self) -> Iterator[tuple[Leaf, Mapping[str, Any]]]:
        """The same in the order of files and rows, each with its columns of text and integers."""
        for path, _, problem in sorted(self._files()):
            if path.lower().endswith(_PARQUET):
                if problem:
                    raise DataError(f"{self._root}/{path}: {problem}; repair it")
                yield from self._rows(path)

    def place(self, leaf: Leaf) -> Place:
        """The row."""
        return Place(self._root / as_path(leaf.archive), leaf.path, row=leaf.offset)

    def versions(self) -> Iterator[tuple[str, int, str]]:
        """Of the files: rows are counted in each."""
        return versions_below(self._root, _PARQUET)

    def _rows(self, path: str) -> Iterator[tuple[Leaf, Mapping[str, Any]]]:
        with open_parquet(self._root / as_path(path)) as file:
            audio = audio_column(file, f"{self._root}/{path}")
            self._require_small_groups(path, file.metadata, f"{audio}.{BYTES}")
            texts = [f.name for f in file.schema_arrow if _is_said(f.type)]
            labels = _class_labels(file.schema_arrow)
            number = 0
            for batch in file.iter_batches(columns=[f"{audio}.{PATH}", *texts], use_threads=False):
                for row in batch.to_pylist():
                    about = {name: _as_said(row[name], labels.get(name, ())) for name in texts}
                    name = _name_of(about, (row.get(audio) or {}).get(PATH))
                    if not name:
                        raise DataError(
                            f"{self._root}/{path}: row {number}: has neither path nor id; add a "
                            f"column {_ID[0]}"
                        )
                    yield Leaf(name, 0, "", path, number), about
                    number += 1

    def _require_small_groups(self, path: str, about: pq.FileMetaData, audio: str) -> None:
        """Raise DataError for a row group that no decoder has the memory for."""
        for number in range(about.num_row_groups):
            group = about.row_group(number)
            columns = map(group.column, range(group.num_columns))
            size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == audio)
            if size > self._max_group_bytes:
                raise DataError(
                    f"{self._root}/{path}: row group {number} holds {size / 1e6:,.0f} MB of audio, "
                    f"and at most {self._max_group_bytes / 1e6:,.0f} MB are read at once; write "
                    "the file again with 100 rows in a group"
                )


def _class_labels(schema: pa.Schema) -> Mapping[str, Sequence[str]]:
    """The words that a hub's data set has numbers for (feature ``ClassLabel``), by column."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: f["names"] for name, f in about.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):  # written by something else
        return {}


def _as_said(value: Any, words: Sequence[str]) -> Any:
    """A number as the word that it stands for."""
    is_number = isinstance(value, int) and 0 <= value < len(words)
    return words[value] if is_number else value


def _name_of(about: Mapping[str, Any], path: str | None) -> str:
    said = [about[name] for name in _ID if about.get(name) not in (None, "")]
    named = str(next(iter(sorted(said, key=lambda value: isinstance(value, int))), ""))
    return named if Leaf(named, 0).is_audio else path or named


def _is_said(column: pa.DataType) -> bool:
    """Text, as several libraries write it, or an integer, as of speakers that are numbered."""
    of = column.value_type if pa.types.is_dictionary(column) else column
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return pa.types.is_integer(of) or any(is_text(of) for is_text in texts)


TREES: dict[str, type[FolderTree | TarTree | ParquetTree]] = {
    "folder": FolderTree,
    "tar": TarTree,
    "parquet": ParquetTree,
}
"""Container to what reads it."""
