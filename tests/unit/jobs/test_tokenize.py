"""What a resumed tokenize stage reads, counted in calls to the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jobs.speech.units import ShardStats, shard_bytes, shard_path
from jobs.speech.utterances import Utterance
from jobs.tokenize import missing_shards, total_stats
from orchestrator.ledger.storage import Storage

NUM_SHARDS, NUM_CLUSTERS = 40, 3


class CountedStorage(Storage):
    """A store that counts how many objects were read."""

    reads = 0

    def read_bytes(self, path: str) -> bytes:
        self.reads += 1
        return super().read_bytes(path)


def test_no_finished_shard_is_read_before_the_missing_ones_are_made(tmp_path: Path) -> None:
    out = CountedStorage(str(tmp_path))
    shard = shard_bytes(
        [Utterance("u", "s", "u.wav", 0, 1600, "u")], [np.array([0, 1, 1], np.uint16)], dedup=True
    )
    for number in range(NUM_SHARDS - 2):
        out.create(shard_path(number), shard)
    missing = missing_shards(range(NUM_SHARDS), [out])
    assert missing == {NUM_SHARDS - 2: (0,), NUM_SHARDS - 1: (0,)}

    def made() -> Iterator[dict[int, ShardStats]]:
        for _ in missing:
            assert out.reads == 0
            yield {0: ShardStats.of(shard, NUM_CLUSTERS)}

    (total,) = total_stats([out], range(NUM_SHARDS), missing, made(), [NUM_CLUSTERS])
    assert out.reads == NUM_SHARDS - 2
    assert total.num_utterances == NUM_SHARDS
    assert total.unit_counts.tolist() == [NUM_SHARDS, NUM_SHARDS, 0]
