"""Lists the recordings of a corpus: which are wanted, which are not, which cannot be opened.

In: the recipe's sources and where they lie. Out: tables in the order of sources and ids, the same
in any container, and where the bytes of each recording are. Nothing is decoded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

import pyarrow as pa

from jobs.audio.corpora import adapter
from jobs.audio.corpora.recording import Recording
from jobs.audio.corpus_tables import (
    LEFT_OUT_SCHEMA,
    PLACES_SCHEMA,
    QUARANTINE_SCHEMA,
    RECORDINGS_SCHEMA,
)
from jobs.audio.languages import language_code
from jobs.audio.lists import NOT_BELOW_ROOT
from jobs.audio.mapped_tables import SortedRows, chunked
from jobs.audio.roots import Root, other_container, unread
from jobs.audio.same_ids import SameIds
from jobs.audio.trees import Tree
from orchestrator.errors import BackendError, DataError, OrchestratorError
from orchestrator.spec.recipe import Corpus, Source

LISTED_SCHEMA = pa.schema([*list(RECORDINGS_SCHEMA)[:-1], *PLACES_SCHEMA])
"""A row of ``recordings`` before its header is read, and its place."""


class Listing(NamedTuple):
    """All that lies below the roots."""

    wanted: pa.Table
    """`LISTED_SCHEMA`."""
    left_out: pa.Table
    quarantine: pa.Table


def list_corpus(
    corpus: Corpus, roots: Mapping[str, Root], on_empty_folder: Callable[[str], object] = bool
) -> Listing:
    """All recordings of all sources; ``on_empty_folder`` is told of each that holds nothing.

    Raises BackendError when a part of a root cannot be listed: nothing is left out without a row;
    DataError for a corpus that is not laid out as its adapter expects, and for ids given twice.
    """
    listings = [
        _of_source(corpus, source, roots[source.name], on_empty_folder) for source in corpus.sources
    ]
    return Listing(*(pa.concat_tables(tables) for tables in zip(*listings, strict=True)))


def unwanted(recording: Recording, name: str, language: str, corpus: Corpus) -> str:
    """Why the recipe does not want a recording of this full name; empty when it does."""
    if recording.left_out:
        return recording.left_out
    is_told_later = corpus.keeps_unknown_languages and not language
    if language not in map(language_code, corpus.languages) and not is_told_later:
        return "language"
    if corpus.data_fraction == 1:
        return ""
    # Salted, because the split into train, valid and test hashes the same ids.
    digest = hashlib.sha256(f"data_fraction/{name}".encode()).digest()
    is_in = int.from_bytes(digest[:6], "big") / 2**48 < corpus.data_fraction
    return "" if is_in else "data_fraction"


def _of_source(
    corpus: Corpus, source: Source, root: Root, on_empty_folder: Callable[[str], object]
) -> Listing:
    tree = root.tree(lambda path: on_empty_folder(f"{source.name}/{path}"))
    try:
        listing = _of_tree(corpus, source, tree)
    except DataError as error:
        if remedy := other_container(root):
            raise DataError(f"{error}; {remedy}") from None
        raise
    if not any(table.num_rows for table in listing) and (remedy := other_container(root)):
        raise DataError(f"data.{source.name}: no recording is found; {remedy}")
    return listing


def _of_tree(corpus: Corpus, source: Source, tree: Tree) -> Listing:
    ids, num_there, first_gone = SameIds(), 0, ""
    with closing(ListingTables()) as tables:
        for chunk in chunked(_recordings(source, tree)):
            tables.add(corpus, source, chunk)
            ids.add(chunk)
            gone = [r.leaf.path for r in chunk if r.leaf.problem == NOT_BELOW_ROOT]
            num_there += len(chunk) - len(gone)
            first_gone = first_gone or next(iter(gone), "")
        if problem := ids.problem(_recordings(source, tree)):
            raise DataError(f"data.{source.name}: {problem}")
        if first_gone and not num_there:
            raise DataError(
                f"data.{source.name}: none of the files that its list names is below {tree.root} "
                f"({first_gone} is the first); give it the root, and the container, of the list"
            )
        return tables.listing()


def _recordings(source: Source, tree: Tree) -> Iterator[Recording]:
    """What the source's adapter finds, its errors with the source's name."""
    where = f"data.{source.name}"
    try:
        yield from adapter(source.adapter)(tree)
    except OSError as error:
        raise BackendError(f"{where}: {unread(error)}") from None
    except OrchestratorError as error:
        raise type(error)(f"{where}: {error}") from None


class ListingTables:
    """The tables of one source while they are gathered."""

    def __init__(self) -> None:
        self._wanted = SortedRows(LISTED_SCHEMA)
        self._left_out = SortedRows(LEFT_OUT_SCHEMA)
        self._quarantine = SortedRows(QUARANTINE_SCHEMA)

    def add(self, corpus: Corpus, source: Source, recordings: list[Recording]) -> None:
        """Put each recording into its table."""
        wanted: list[dict[str, Any]] = []
        left_out: list[dict[str, Any]] = []
        quarantine: list[dict[str, Any]] = []
        for recording in recordings:
            row = {"id": f"{source.name}/{recording.id}", "source": source.name}
            row["language"] = _language(source, recording)
            if reason := unwanted(recording, row["id"], row["language"], corpus):
                left_out.append({**row, "reason": reason})
            elif recording.leaf.problem:
                quarantine.append({**row, "reason": recording.leaf.problem})
            else:
                _require_times(source, recording)
                wanted.append({**row, **_facts(recording)})
        self._wanted.add(pa.RecordBatch.from_pylist(wanted, LISTED_SCHEMA))
        self._left_out.add(pa.RecordBatch.from_pylist(left_out, LEFT_OUT_SCHEMA))
        self._quarantine.add(pa.RecordBatch.from_pylist(quarantine, QUARANTINE_SCHEMA))

    def listing(self) -> Listing:
        """All of it, by id."""
        return Listing(self._wanted.table(), self._left_out.table(), self._quarantine.table())

    def close(self) -> None:
        """Forget what was gathered; a listing of it stays."""
        for rows in (self._wanted, self._left_out, self._quarantine):
            rows.close()


def _language(source: Source, recording: Recording) -> str:
    return (
        recording.language if source.language == "from_folder" else language_code(source.language)
    )


def _require_times(source: Source, recording: Recording) -> None:
    """Raise DataError for a stretch that is none."""
    for start_s, end_s in recording.spans_s:
        if not 0 <= start_s < math.inf or not start_s <= end_s:
            raise DataError(
                f"data.{source.name}: {recording.id}: from {start_s:g} to {end_s:g} s is no "
                "stretch of time; repair what lists it"
            )


def _facts(recording: Recording) -> dict[str, Any]:
    leaf = recording.leaf
    return {
        "channel": recording.channel,
        "spans_s": recording.spans_s,
        "speaker": recording.speaker,
        "session": recording.session,
        "path": leaf.path,
        "size": leaf.size,
        "archive": leaf.archive,
        "offset": leaf.offset,
    }
