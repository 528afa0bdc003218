"""A random sample of a corpus' utterances, for stages that read some of its audio.

In: the tables of a corpus, which know lengths by headers alone. Windows are drawn by the hashes of
their names, and the recordings they lie in decoded as far as it takes to know them exactly: by the
pool's workers, once. Out: ``sample.parquet`` in the stage's artifact, and its utterances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.audio.corpus_tables import CorpusTables, Part, create_table, read_table
from jobs.audio.decode import UnreadableAudioError
from jobs.speech.units import create_same
from jobs.speech.utterances import Utterance, WaveReader
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Windows

if TYPE_CHECKING:  # ranks that read a sample need no pool
    from jobs.attempt import Attempt
    from jobs.speech.pool import Pool

SAMPLE = "sample.parquet"
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("start_sample", pa.int64()),
        ("num_samples", pa.int64()),
    ]
)
_PARTS_OF_TASK = 64


class Measured(NamedTuple):
    """An utterance as it was found."""

    row: int
    start_sample: int
    num_samples: int
    id: str


@dataclass(frozen=True, kw_only=True)
class MeasureTask:
    """Windows to be found, those of a recording one after the other."""

    parts: Sequence[Part]
    windows: Windows

    def __call__(self, reader: WaveReader) -> list[Measured]:
        """Those that are there and can be heard, of recordings that can be decoded."""
        found: list[Measured] = []
        for _, own in groupby(self.parts, lambda part: part.row.number):
            try:
                found += list(self._of_recording(own, reader))
            except UnreadableAudioError:
                continue  # the stage that reads all of it says so
        return found

    def _of_recording(self, parts: Iterable[Part], reader: WaveReader) -> Iterator[Measured]:
        for part in parts:
            for window in reader.windows(part, self.windows):
                if not window.left_out(self.windows):
                    name, row, start, size = window.utterance
                    yield Measured(row.number, start, size, name)


class _Candidates(NamedTuple):
    """Windows as headers let expect them, in the order in which they are drawn."""

    row: npt.NDArray[np.int64]
    window: npt.NDArray[np.int64]
    samples: npt.NDArray[np.float64]

    @classmethod
    def of(cls, tables: CorpusTables, seed: int, windows: Windows) -> _Candidates:
        """All windows of a corpus."""
        row, window, samples, rank, first = [], [], [], [], 0
        for piece, (used, counts) in tables.expected(windows):
            numbers = np.repeat(np.arange(piece.num_rows), counts)
            row.append(first + numbers)
            window.append(np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts))
            samples.append(np.repeat(used / np.maximum(counts, 1), counts))
            names = zip(np.repeat(piece["id"].to_pylist(), counts), window[-1], strict=True)
            rank.append(np.array([_rank(f"{seed}:{name}#{n}") for name, n in names], np.uint64))
            first += piece.num_rows
        order = np.argsort(np.concatenate(rank), kind="stable")
        return cls(*(np.concatenate(parts)[order] for parts in (row, window, samples)))


def _rank(name: str) -> int:
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big")


Measure = Callable[[Sequence[MeasureTask]], Iterable[list[Measured]]]


def drawn(
    attempt: Attempt, tables: CorpusTables, pool: Pool, hours: float, seed: int
) -> list[Utterance]:
    """A random sample of at least so many hours, or all utterances, in the corpus' order.

    Drawn where no artifact of the attempt has it yet; then all have. The order of choice is that of
    names' hashes: another corpus with the same recording treats it alike. Raises DataError when
    nothing can be heard.
    """
    windows = attempt.recipe.corpus.windows
    missing = [out for out in attempt.outs if not out.exists(SAMPLE)]
    there = [out for out in attempt.outs if out not in missing]
    if missing and not there:

        def measured(tasks: Sequence[MeasureTask]) -> Iterable[list[Measured]]:
            results = pool.run(range(len(tasks)), tasks.__getitem__, tick=attempt.check)
            return (some for _, some in results)

        there = [missing.pop()]
        keep(there[0], draw(tables, hours, seed, windows, measured))
    if missing:
        data = there[0].read_bytes(SAMPLE)
        for out in missing:
            create_same(out, SAMPLE, data)
    return read(attempt.out, tables)


def keep(out: Storage, found: Iterable[Measured]) -> None:
    """Write the table of a sample."""
    rows = [measured._asdict() for measured in sorted(found)]
    create_table(out, SAMPLE, pa.Table.from_pylist(rows, _SCHEMA))


def read(artifact: Storage, tables: CorpusTables) -> list[Utterance]:
    """The utterances of an artifact's sample."""
    rows: list[dict[str, Any]] = read_table(artifact, SAMPLE).to_pylist()
    recordings = {row.number: row for row in tables.at([about["row"] for about in rows])}
    return [
        Utterance(a["id"], recordings[a["row"]], a["start_sample"], a["num_samples"]) for a in rows
    ]


def draw(
    tables: CorpusTables, hours: float, seed: int, windows: Windows, measured: Measure
) -> list[Measured]:
    """Windows of at least so many hours, or all that can be heard. Raises DataError for none."""
    candidates = _Candidates.of(tables, seed, windows)
    wanted, taken = hours * 3600 * SAMPLE_RATE_HZ, 0
    found: list[Measured] = []
    while (
        taken < len(candidates.row) and (missing := wanted - sum(m.num_samples for m in found)) > 0
    ):
        expected = np.cumsum(candidates.samples[taken:])
        upto = taken + int(np.searchsorted(expected, missing)) + 1
        chosen = sorted(
            zip(
                candidates.row[taken:upto].tolist(),
                candidates.window[taken:upto].tolist(),
                strict=True,
            )
        )
        taken = upto
        for some in measured(list(_tasks(tables, chosen, windows))):
            found += some
    if not found:
        raise DataError(
            "corpus: nothing can be heard in any recording that can be read; look at the audio"
        )
    return found


def _tasks(
    tables: CorpusTables, chosen: Sequence[tuple[int, int]], windows: Windows
) -> Iterator[MeasureTask]:
    """The windows in tasks, those of a recording in one."""
    numbers = sorted({row for row, _ in chosen})
    rows = {row.number: row for row in tables.at(numbers)}
    parts: list[Part] = []
    for number, own in groupby(chosen, lambda row_window: row_window[0]):
        if len(parts) >= _PARTS_OF_TASK:
            yield MeasureTask(parts=parts, windows=windows)
            parts = []
        parts += [Part(rows[number], window, window + 1) for _, window in own]
    if parts:
        yield MeasureTask(parts=parts, windows=windows)
