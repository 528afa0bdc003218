"""The pack stage: unit shards of one codebook become the three token streams of training."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.attempt import Attempt, run_stage
from jobs.enough_audio import require_window
from jobs.lm.packing import deal_out, pack_shards
from jobs.lm.splits import SPLITS
from jobs.lm.token_stream import bin_name, index_name
from jobs.unit_shards import UsedRows, shard_paths
from orchestrator.ledger.storage import Storage


def work(attempt: Attempt) -> dict[str, Any]:
    """Write ``{split}.bin``, ``{split}.idx.parquet`` and ``pack.json``; returns the counts."""
    recipe, units = attempt.recipe, attempt.upstream["tokenize"].storage
    rows = UsedRows.of(units)
    with tempfile.TemporaryDirectory(dir=attempt.folder) as temporary:
        folder = Path(temporary)
        packed = pack_shards(
            _shards(attempt, units, folder / "shards"),
            rows,
            folder,
            shares=recipe.split,
            deal=deal_out(_shards(attempt, units, folder / "dealt"), rows, recipe.split),
            num_units=recipe.tokenizer.num_clusters,
            sources=tuple(recipe.mixture_ratio),
        )
        for stream in packed.get("streams", ()):
            require_window(
                stream["num_tokens"], recipe.train.context_length, source=stream["source"]
            )
        for name in SPLITS:
            for path in (bin_name(name), index_name(name)):
                attempt.out.upload(folder / path, path)
    if not attempt.out.exists("pack.json"):
        attempt.out.create_json("pack.json", packed)
    counts = ("splits", "streams", "num_empty_utterances", "num_thinned_utterances")
    return {name: packed[name] for name in counts if name in packed}


def _shards(attempt: Attempt, units: Storage, cache: Path) -> Iterator[Path]:
    """Local files of all unit shards in order, each removed after its use when it is a copy."""
    paths = shard_paths(units.list("shards"))
    for n, path in enumerate(paths, start=1):
        local = units.fetch(path, cache)
        yield local
        if units.local_root is None:
            local.unlink()
        attempt.check()
        attempt.progress(n, len(paths), "shards")


if __name__ == "__main__":
    sys.exit(run_stage("pack", work))
