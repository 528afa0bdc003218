"""What a resumed tokenize stage reads, counted in calls to the store."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.audio.corpus_tables import Part, read_table
from jobs.speech.account import Account, Books
from jobs.speech.units import ShardResult, ShardStats, shard_bytes
from jobs.speech.utterances import Heard, ShardAudio, Utterance
from jobs.tokenize import LEFT_OUT, Shards, ended, facts, write_fates
from jobs.unit_shards import QUARANTINE, shard_path
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Windows
from tests.corpora import row_of
from tests.unit.jobs.test_codebook import several

NUM_SHARDS, NUM_CLUSTERS = 40, 3


class CountedStorage(Storage):
    """A store that counts how many objects were read."""

    reads = 0

    def read_bytes(self, path: str) -> bytes:
        self.reads += 1
        return super().read_bytes(path)


def shard(number: int) -> bytes:
    """A shard of one recording."""
    heard = [Heard(Utterance("u", row_of(f"r{number}"), 0, 1600))]
    audio = ShardAudio([], Windows(), heard)
    return shard_bytes(audio, {0: np.array([0, 1, 1], np.uint16)}, dedup=True)


def result(number: int, which: int = 0) -> ShardResult:
    return result_of(number, which, shard(number))


def result_of(number: int, which: int, data: bytes) -> ShardResult:
    table = pq.read_table(io.BytesIO(data))
    stats = {which: ShardStats.of(table, NUM_CLUSTERS)}
    return ShardResult(shard=number, accounts={which: Account.of(table)}, stats=stats)


def test_finished_shards_are_read_once_and_after_the_missing_ones(tmp_path: Path) -> None:
    out = CountedStorage(str(tmp_path))
    for number in range(NUM_SHARDS - 2):
        out.create(shard_path(number), shard(number))
    shards = Shards(NUM_SHARDS, [out], [NUM_CLUSTERS])
    assert shards.missing == {NUM_SHARDS - 2: (0,), NUM_SHARDS - 1: (0,)}
    for number in shards.missing:
        shards.add(result(number))
    assert out.reads == 0
    shards.add_earlier()
    assert out.reads == NUM_SHARDS - 2
    (total,) = shards.totals
    assert total.num_utterances == NUM_SHARDS
    assert total.unit_counts.tolist() == [NUM_SHARDS, NUM_SHARDS, 0]
    assert shards.books[0].facts()["num_recordings"] == NUM_SHARDS


def test_recordings_are_counted_once_for_several_codebooks(tmp_path: Path) -> None:
    outs = [Storage(str(tmp_path / name)) for name in ("a", "b")]
    outs[1].create(shard_path(0), shard(0))
    shards = Shards(2, outs, [NUM_CLUSTERS] * 2)
    shards.add(result(0))
    for which in (0, 1):
        shards.add(result(1, which))
    shards.add_earlier()
    about = facts(["k", "l"], shards, num_shards=2)
    one, other = (about["per_key"][key] for key in ("k", "l"))
    assert one == other
    assert (one["num_tokens"], one["unit_entropy_bits"]) == (4, 1.0)
    assert (one["num_utterances"], one["audio_s"], one["num_recordings"]) == (2, 0.2, 2)


def test_units_that_are_quarantined_fail_no_other(tmp_path: Path) -> None:
    """A layer whose features hold no numbers; the other layer's units are complete."""
    attempt, published = several(tmp_path, (2, NUM_CLUSTERS), (1, NUM_CLUSTERS))
    shards = Shards(8, attempt.outs, [NUM_CLUSTERS] * 2)
    for number in range(8):
        row = row_of(f"r{number}", number=number)
        audio = ShardAudio([Part(row, 0, None)], Windows(), [Heard(Utterance("u", row, 0, 1600))])
        bad = audio.without([0], "no numbers")
        for which, own in enumerate((audio, bad)):
            data = shard_bytes(own, {0: np.array([0, 1], np.uint16)}, dedup=True)
            shards.add(result_of(number, which, data))
    shards.require_readable(8, 1.0)
    assert [shards.wanted_of(number) for number in (0, 7)] == [[0], [0]]
    with pytest.raises(DataError) as error:
        ended(attempt, shards, num_shards=8)
    assert str(error.value).startswith(
        "units of 3 clusters of layer 1 after_residual: corpus.max_quarantine_percent: 8 of 8"
    )
    assert {key: facts["num_tokens"] for key, facts in published.items()} == {"a": 16}
    assert published["a"]["num_shards"] == 8
    assert [out.exists(QUARANTINE) for out in attempt.outs] == [True, False]


def test_units_of_which_all_are_quarantined_stop_at_once(tmp_path: Path) -> None:
    shards = Shards(1, [Storage(str(tmp_path))], [NUM_CLUSTERS])
    for number in range(8):
        row = row_of(f"r{number}", number=number)
        audio = ShardAudio([Part(row, 0, None)], Windows(), unreadable={row.id: "broken"})
        shards.add(result_of(number, 0, shard_bytes(audio, {}, dedup=True)))
    with pytest.raises(DataError, match="8 of 8 recordings cannot be read"):
        shards.require_readable(8, 1.0)


def test_what_is_not_used_is_listed(tmp_path: Path) -> None:
    names = ("still", "broken")
    heard = [Heard(Utterance(n, row_of(n), 0, 1600), "silent") for n in names]
    audio = ShardAudio([], Windows(), heard)
    books, out = Books(), Storage(str(tmp_path))
    books.add(0, Account.of(pq.read_table(io.BytesIO(shard_bytes(audio, {}, dedup=True)))))
    for _ in range(2):  # a later attempt finds them there
        write_fates(out, books)
    assert [row["id"] for row in read_table(out, LEFT_OUT).to_pylist()] == ["broken", "still"]
    assert read_table(out, QUARANTINE).num_rows == 0
