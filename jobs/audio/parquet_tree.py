"""Recordings in Parquet: a row each, their bytes in a column, as a hub's data sets keep them.

huggingface.co/docs/datasets, feature ``Audio``: a column of ``struct<bytes, path>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.audio.place import PATH, Place, audio_column, open_parquet
from jobs.audio.trees import Leaf
from orchestrator.errors import DataError
from orchestrator.ledger.source_files import as_path, files_below

_ID = ("id", "ID", "utt_id", "fileid", "file", "path")


class ParquetTree:
    """Rows of all Parquet files below a root; one row group is in memory at a time.

    A row's path is its id where that names an audio file, else the path beside its bytes.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def leaves(self) -> Iterator[Leaf]:
        """All rows, in the order of files and rows. Raises DataError for what is no such file."""
        yield from (leaf for leaf, _ in self.rows())

    def rows(self) -> Iterator[tuple[Leaf, Mapping[str, Any]]]:
        """The same, each with the row's other columns that are text."""
        for path, _, problem in sorted(files_below(self._root)):
            if path.endswith(".parquet"):
                if problem:
                    raise DataError(f"{self._root}/{path}: {problem}; repair it")
                yield from self._rows(path)

    def place(self, leaf: Leaf) -> Place:
        """The row."""
        return Place(self._root / as_path(leaf.archive), leaf.path, row=leaf.offset)

    def _rows(self, path: str) -> Iterator[tuple[Leaf, Mapping[str, Any]]]:
        with open_parquet(self._root / as_path(path)) as file:
            audio = audio_column(file)
            texts = [f.name for f in file.schema_arrow if pa.types.is_string(f.type)]
            number = 0
            for batch in file.iter_batches(columns=[f"{audio}.{PATH}", *texts]):
                for row in batch.to_pylist():
                    about = {name: row[name] for name in texts}
                    name = _name_of(about, (row.get(audio) or {}).get(PATH))
                    if not name:
                        raise DataError(
                            f"{self._root}/{path}: row {number}: has neither id nor path"
                        )
                    yield Leaf(name, 0, "", path, number), about
                    number += 1


def _name_of(about: Mapping[str, Any], path: str | None) -> str:
    named = next((about[name] for name in _ID if about.get(name)), None)
    if named and Leaf(named, 0).is_audio:
        return str(named)
    return str(path or named or "")
