"""Where the recordings of a corpus artifact are on this cluster: found once, kept beside it.

The same artifact serves clusters that keep the audio elsewhere, or in other containers; each has a
table of places of its own there. So has each writing of a tar or a Parquet file: where something
lay in the one before, something else may lie now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from jobs.audio.corpus_tables import (
    PLACES,
    PLACES_SCHEMA,
    create_table,
    piece_path,
    pieces_of,
    read_table,
)
from jobs.audio.each_channel import file_ids
from jobs.audio.listing import list_corpus
from jobs.audio.roots import Root, unread
from orchestrator.errors import BackendError, DataError
from orchestrator.ledger.storage import Storage
from orchestrator.plan.keys import canonical_json
from orchestrator.spec.recipe import Corpus


def folder_of(roots: Mapping[str, Root]) -> str:
    """The folder of the table that holds for what lies below these roots now.

    Raises BackendError for what cannot be listed.
    """
    where = {
        name: [str(root.path), root.container, *_versions(name, root)]
        for name, root in roots.items()
    }
    return f"{PLACES}/{hashlib.sha256(canonical_json(where)).hexdigest()[:12]}"


def _versions(name: str, root: Root) -> list[tuple[str, int, str]]:
    try:
        return sorted(root.tree().versions())
    except OSError as error:
        raise BackendError(f"data.{name}: {unread(error)}") from None


def create(artifact: Storage, folder: str, wanted: pa.Table) -> None:
    """Keep the places of all rows, `listing.LISTED_SCHEMA`.

    ``folder``: as `folder_of` said before they were listed.
    """
    for number, piece in enumerate(pieces_of(wanted.select(PLACES_SCHEMA.names))):
        create_table(artifact, piece_path(folder, number), piece)


def ensured(artifact: Storage, corpus: Corpus, roots: Mapping[str, Root]) -> str:
    """The folder of the table, made where this cluster has none yet.

    Raises DataError when other recordings lie below these roots than the artifact lists.
    """
    folder = folder_of(roots)
    num_pieces = len(artifact.list("recordings"))
    if len(artifact.list(folder)) < num_pieces:
        wanted = list_corpus(corpus, roots).wanted
        create(artifact, folder, _listed(artifact, wanted, is_filtered=corpus.filter is not None))
    return folder


def _listed(artifact: Storage, wanted: pa.Table, *, is_filtered: bool) -> pa.Table:
    """The rows that the artifact lists: all, or those that its filter has left."""
    if _are_all(artifact, wanted["id"]):
        return wanted
    ids = pa.concat_tables(piece.select(["id"]) for piece in _recordings(artifact))["id"]
    files = pc.coalesce(pc.index_in(ids, wanted["id"]), pc.index_in(file_ids(ids), wanted["id"]))
    are_all = is_filtered or pc.count_distinct(files).as_py() == wanted.num_rows
    if files.null_count or not are_all:
        missing = ids.filter(pc.is_null(files)).to_pylist()
        others = pc.is_in(pa.array(range(wanted.num_rows)), files)
        other = min(missing or wanted["id"].filter(pc.invert(others)).to_pylist())
        raise DataError(
            f"data: {other} is not both here and in the corpus that was made of this snapshot; "
            "give corpus.snapshot another label, or the source its root"
        )
    return wanted.take(files)


def _are_all(artifact: Storage, ids: pa.ChunkedArray) -> bool:
    """Whether the artifact lists just these, in this order: it does where nothing is filtered."""
    passed = 0
    for piece in _recordings(artifact):
        if not piece["id"].equals(ids.slice(passed, piece.num_rows)):
            return False
        passed += piece.num_rows
    return passed == len(ids)


def _recordings(artifact: Storage) -> Iterator[pa.Table]:
    """The pieces of what the artifact lists, one at a time."""
    return (read_table(artifact, path) for path in sorted(artifact.list("recordings")))
