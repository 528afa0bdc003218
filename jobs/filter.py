"""The filter stage: recordings are heard once; some are left out, long ones get times of speech.

In: a corpus, as it is listed. Out: tables as the corpus stage writes them, for whatever reads
recordings: those that are kept, with their decoded length and, where asked for, when there is
speech in them; all that were left out or cannot be decoded, with the reason. ``duplicates.parquet``
names recordings with the same samples as an earlier one. What was heard of each recording stays in
``decisions/``, some recordings in a file: a file that is there is done, whoever goes on.
"""

from __future__ import annotations

import io
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from jobs import text_model
from jobs.attempt import Attempt, run_stage
from jobs.audio import places
from jobs.audio.corpus_tables import (
    CorpusTables,
    Expected,
    Row,
    create_table,
    read_table,
    share_out,
)
from jobs.audio.decode import UnreadableAudioError
from jobs.audio.decoders import Decoders
from jobs.audio.hearing import Heard, Listener
from jobs.audio.language_id import whisper
from jobs.audio.listing import LISTED_SCHEMA, Listing
from jobs.audio.roots import Root
from jobs.audio.voice_activity import Silero
from jobs.corpus import facts, say_what_is_not_used, write_tables
from jobs.device import own_device
from jobs.enough_audio import require_enough
from jobs.speech.account import require_readable
from jobs.speech.pool import stage_pool
from jobs.speech.units import create_same
from jobs.speech.utterances import read_corpus, source_roots
from jobs.weights import SAFETENSORS
from orchestrator.errors import Cause, CorruptError, DataError, RequestError
from orchestrator.ledger.storage import Storage, sha256_of
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Corpus, Filter, LanguageId

DECISIONS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("num_samples", pa.int64()),
        ("digest", pa.string()),
        ("speech_s", pa.list_(pa.list_(pa.float64(), 2))),
        ("language", pa.string()),
        ("probability", pa.float64()),
        ("wanted", pa.float64()),
        ("left_out", pa.string()),
        ("unreadable", pa.string()),
    ]
)
"""``wanted``: the probability of the corpus' languages; what was not asked for is null."""
_READERS, _NAMED = 8, 4
_OF_FILE = ("source", "channel", "archive", "path", "offset")
"""Columns in which stretches of one file agree."""


def work(attempt: Attempt) -> dict[str, Any]:
    """Hear what was not heard yet, and keep what may be kept; the facts of what is left."""
    text_model.require_all(attempt)
    corpus, roots, tables = attempt.recipe.corpus, source_roots(attempt), read_corpus(attempt)
    assert corpus.filter, "only recipes that filter have this stage"
    heard, listed = hear_all(attempt, tables, roots), attempt.upstream["corpus"].storage
    kept = judge(tables.table(), heard, corpus.filter, listed)
    require_usable(corpus, kept.listing)
    wanted = kept.listing.wanted
    expected = Expected.of(wanted["spans_s"], kept.lengths, corpus.windows)
    with_samples = wanted.append_column("num_samples", pa.array(expected.samples))
    require_enough(attempt.all_recipes, with_samples, attempt.scope)
    places.create(attempt.out, tables.places, wanted)
    shards = share_out(*expected, corpus.shard_hours)
    write_tables(attempt.out, kept.listing, kept.lengths, shards)
    say_what_is_not_used(kept.listing)
    create_table(attempt.out, "duplicates.parquet", kept.duplicates)
    about = facts(kept.listing, expected.samples, num_shards=shards.num_rows - 1)
    return {**about, "num_duplicates": kept.duplicates.num_rows}


def require_usable(corpus: Corpus, listing: Listing) -> None:
    """Raise DataError when nothing is left, or too much cannot be decoded."""
    num_listed = sum(table.num_rows for table in listing)
    bad = {row["id"]: row["reason"] for row in listing.quarantine.to_pylist()}
    require_readable(bad, num_listed, corpus.max_quarantine_percent)
    if not listing.wanted.num_rows:
        reasons = Counter(listing.left_out["reason"].to_pylist()).most_common(_NAMED)
        said = ", ".join(f"{reason}: {count:,}" for reason, count in reasons)
        raise DataError(
            f"corpus.filter: none of {num_listed:,} recordings is left ({said}); "
            "lower its thresholds, or add recordings"
        )


def runs(lengths: npt.NDArray[np.int64], hours: float) -> list[tuple[int, int]]:
    """Neighbouring rows with about so many hours together: the first and one past the last."""
    passed = np.cumsum(lengths) - lengths
    number = passed // max(int(hours * 3600 * SAMPLE_RATE_HZ), 1)
    firsts = np.flatnonzero(np.diff(number, prepend=-1)).tolist()
    return list(zip(firsts, [*firsts[1:], len(lengths)], strict=True))


def to_be_decoded(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Samples that each row adds: none where it is of the file of the row before it."""
    is_same = np.full(max(rows.num_rows - 1, 0), True)
    for name in _OF_FILE:
        column = rows[name].fill_null(-1) if name == "channel" else rows[name]
        if len(is_same):
            is_same &= pc.equal(column[1:], column[:-1]).to_numpy()
    return np.where(np.append(False, is_same)[: rows.num_rows], 0, rows["header_samples"])


def decisions_path(first: int) -> str:
    """Where what was heard of the rows from this one on lies."""
    return f"decisions/{first // 1_000_000:03d}/{first:09d}.parquet"


def hear_all(attempt: Attempt, tables: CorpusTables, roots: Mapping[str, Root]) -> pa.Table:
    """What was heard of every row, by this attempt or an earlier one: `DECISIONS_SCHEMA`."""
    corpus, out = attempt.recipe.corpus, attempt.out
    tasks = dict(runs(to_be_decoded(tables.table()), corpus.shard_hours))
    there = out.list("decisions")
    missing = [first for first in tasks if decisions_path(first) not in there]
    done, samples, started_at = len(tasks) - len(missing), 0, time.monotonic()

    def task(first: int) -> FilterTask:
        return FilterTask(first, tuple(tables.rows(first, tasks[first])))

    if missing:
        model = model_folder(attempt, corpus.filter)
        with stage_pool(attempt, FilterWorker, out.url, roots, corpus, model) as pool:
            for _, num_samples in pool.run(missing, task, tick=attempt.check):
                done, samples = done + 1, samples + num_samples
                rate = samples / SAMPLE_RATE_HZ / (time.monotonic() - started_at)
                attempt.progress(done, len(tasks), "pieces", audio_s_per_s=round(rate, 1))
    with ThreadPoolExecutor(_READERS) as threads:
        found = threads.map(lambda first: read_table(out, decisions_path(first)), tasks)
        return pa.concat_tables(found)


def model_folder(attempt: Attempt, wanted: Filter | None) -> str:
    """The folder of the model that knows languages; empty where none is asked for.

    Raises RequestError when it is not here, CorruptError when it is not the recipe's.
    """
    if wanted is None or wanted.language_id is None:
        return ""
    folder = Path(attempt.model_source(wanted.language_id.model))
    require_model(folder, wanted.language_id)
    return str(folder)


def require_model(folder: Path, wanted: LanguageId) -> None:
    """Raises what `model_folder` does."""
    where = "corpus.filter.language_id"
    if not folder.is_dir():
        raise RequestError(
            f"{where}.model: {folder} is no folder here; name it in the cluster's models"
        )
    weights = [folder / name for name in ("model.bin", SAFETENSORS) if (folder / name).is_file()]
    found = sha256_of(weights[0]) if weights else "nothing"
    if found != wanted.sha256:
        raise CorruptError(
            f"{where}.sha256: {folder} has {found}, not {wanted.sha256}; "
            "give the digest of the model you mean",
            cause=Cause.BAD_REQUEST,
        )


class FilterTask(NamedTuple):
    """Recordings to be heard."""

    first: int
    """Number of the first row."""
    rows: Sequence[Row]


class FilterWorker:
    """The filter stage's worker: hears recordings and decides on each by itself."""

    def __init__(
        self, out_url: str, roots: Mapping[str, Root], corpus: Corpus, model: str = ""
    ) -> None:
        assert corpus.filter, "only recipes that filter have such workers"
        self._out, self._roots, self._filter = Storage(out_url), roots, corpus.filter
        self._listener = listener(corpus.filter, corpus.languages, model)

    def __call__(self, task: FilterTask) -> int:
        """Write the decisions on some recordings; how many samples they have."""
        with closing(Decoders(1)) as decoders:
            files = groupby(task.rows, key=_of_file)
            found = [one for _, rows in files for one in self._decisions(list(rows), decoders)]
        buffer = io.BytesIO()
        table = pa.Table.from_pylist(found, DECISIONS_SCHEMA)
        pq.write_table(table, buffer, compression="zstd", version="2.6")
        create_same(self._out, decisions_path(task.first), buffer.getvalue())
        return sum(row["num_samples"] for row in found)

    def _decisions(self, rows: Sequence[Row], decoders: Decoders) -> list[dict[str, Any]]:
        """On neighbours that are stretches of one file, which is decoded once."""
        asks = [self._identifies(row) for row in rows]
        asked = [row.spans_s if ask else None for row, ask in zip(rows, asks, strict=True)]
        first = rows[0]
        try:
            blocks = self._roots[first.source].blocks(decoders, first.leaf, channel=first.channel)
            heard = self._listener.hear_each(blocks, asked)
        except UnreadableAudioError as error:
            return [{"id": r.id, "num_samples": 0, "unreadable": error.reason} for r in rows]
        return [self._decision(*one) for one in zip(rows, heard, asks, strict=True)]

    def _identifies(self, row: Row) -> bool:
        language_id = self._filter.language_id
        return language_id is not None and (language_id.hears == "all" or not row.language)

    def _decision(self, row: Row, heard: Heard, identifies: bool) -> dict[str, Any]:
        said = heard.identified
        return {
            "id": row.id,
            "num_samples": heard.num_samples,
            "digest": heard.digest,
            "speech_s": heard.stretches,
            "left_out": left_out(heard, self._filter, identifies=identifies),
            **({} if said is None else said._asdict()),
        }


def _of_file(row: Row) -> tuple[Any, ...]:
    """In what stretches of one file agree."""
    return row.source, row.leaf, row.channel


def listener(wanted: Filter, languages: Sequence[str], model: str) -> Listener:
    """Who hears what the filter asks for; ``model``: the folder of what knows languages."""
    if wanted.language_id is None and wanted.voice_activity is None:
        return Listener()
    device = own_device().type
    knows = whisper(Path(model), device, torch.get_num_threads()) if wanted.language_id else None
    return Listener(
        detector=Silero(),
        **({"rule": wanted.voice_activity} if wanted.voice_activity else {}),
        language_id=knows,
        num_windows=wanted.language_id.windows if wanted.language_id else 0,
        languages=languages,
    )


def left_out(heard: Heard, wanted: Filter, *, identifies: bool) -> str | None:
    """Why a recording is not kept, by itself; None where it is."""
    # Speech may be outside a recording's own times, or be too short to be cut out.
    has_none = wanted.voice_activity is not None and not heard.stretches
    if has_none or (identifies and heard.identified is None):
        return "no speech"
    if wanted.language_id is None or heard.identified is None:
        return None
    if heard.identified.wanted >= wanted.language_id.threshold:
        return None
    language, probability, _ = heard.identified
    return f"language: sounds like {language} ({probability:.2f})"


class Kept(NamedTuple):
    """What is left of a corpus, and what is not."""

    listing: Listing
    lengths: npt.NDArray[np.int64]
    """Of those wanted, in samples at 16 kHz, as decoded."""
    duplicates: pa.Table


def judge(rows: pa.Table, heard: pa.Table, wanted: Filter, listed: Storage) -> Kept:
    """Sort the rows of a corpus by what was heard of each; its own tables are gone on with."""
    if not rows["id"].equals(heard["id"]):
        raise CorruptError(
            "decisions: are of other recordings than the corpus lists; hear it again"
        )
    earlier, reasons = same_as(rows, heard), heard["left_out"]
    if wanted.duplicates == "drop":
        said = pc.binary_join_element_wise("the same audio as", earlier, " ")
        reasons = pc.coalesce(reasons, said)
    is_bad, is_left = pc.is_valid(heard["unreadable"]), pc.is_valid(reasons)
    is_kept = pc.invert(pc.or_(is_bad, is_left))
    rows = _as_heard(rows, heard, wanted)
    left = rows.append_column("reason", reasons).filter(pc.and_not(is_left, is_bad))
    bad = rows.append_column("reason", heard["unreadable"]).filter(is_bad)
    tables = (
        rows.filter(is_kept).select(LISTED_SCHEMA.names),
        _joined(listed, "left_out.parquet", left),
        _joined(listed, "quarantine.parquet", bad),
    )
    same = rows.select(["id", "source"]).append_column("same_as", earlier)
    duplicates = same.filter(pc.is_valid(earlier))
    return Kept(Listing(*tables), heard["num_samples"].filter(is_kept).to_numpy(), duplicates)


def same_as(rows: pa.Table, heard: pa.Table) -> pa.Array:
    """For each row with the same audio as an earlier one that may be kept, the id of that."""
    spans = pc.list_value_length(rows["spans_s"]).to_numpy()
    audio = heard["digest"].to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(spans).tolist():  # several may be of one file
        of_stretches = f"{audio[row]} {rows['spans_s'][row].as_py()}"
        audio[row] = sha256(of_stretches.encode()).hexdigest()
    may_be = pc.and_(pc.is_valid(heard["digest"]), pc.is_null(heard["left_out"])).to_numpy()
    candidates = np.flatnonzero(may_be)
    numbers = pa.array(audio[candidates], pa.string()).dictionary_encode().indices.to_numpy()
    _, firsts, which = np.unique(numbers, return_index=True, return_inverse=True)
    first = np.full(len(audio), -1)
    first[candidates] = candidates[firsts[which]]
    is_later = (first >= 0) & (first != np.arange(len(first)))
    return rows["id"].combine_chunks().take(pa.array(first, mask=~is_later))


def _as_heard(rows: pa.Table, heard: pa.Table, wanted: Filter) -> pa.Table:
    """Rows with the language and the times that were heard, where the corpus says none."""
    language = pc.coalesce(heard["language"], rows["language"])
    rows = rows.set_column(rows.column_names.index("language"), "language", language)
    if not wanted.voice_activity:
        return rows
    is_whole = pc.equal(pc.list_value_length(rows["spans_s"]), 0).combine_chunks()
    spans = [table.combine_chunks() for table in (heard["speech_s"], rows["spans_s"])]
    both = pa.concat_arrays(spans)
    numbers = np.arange(len(rows))
    picked = np.where(is_whole.to_numpy(zero_copy_only=False), numbers, numbers + len(rows))
    return rows.set_column(rows.column_names.index("spans_s"), "spans_s", both.take(picked))


def _joined(listed: Storage, path: str, rows: pa.Table) -> pa.Table:
    """A table of the corpus with more rows."""
    before = read_table(listed, path)
    both = pa.concat_tables([before, rows.select(before.column_names).cast(before.schema)])
    return both.sort_by([("source", "ascending"), ("id", "ascending")])


if __name__ == "__main__":
    sys.exit(run_stage("filter", work))
