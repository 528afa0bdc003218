"""The utterances of a split, as the pack artifact holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.scoring.held_out import HeldOut
from orchestrator.ledger.storage import Storage


def test_each_utterance_is_its_part_of_the_stream(tmp_path: Path) -> None:
    np.arange(10, dtype=np.uint16).tofile(tmp_path / "test.bin")
    index = {"id": ["b", "a"], "offset": [4, 0], "num_tokens": [3, 4], "num_samples": [900, 1000]}
    pq.write_table(pa.table(index), tmp_path / "test.idx.parquet")
    split = HeldOut(Storage(str(tmp_path)), "test", tmp_path / "cache")
    assert split.ids == ["b", "a"]
    assert [u.tolist() for u in split.utterances] == [[4, 5, 6], [0, 1, 2, 3]]
    assert split.num_samples.tolist() == [900, 1000]
