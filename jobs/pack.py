"""The pack stage: unit shards of one codebook become the three token streams of training."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.attempt import Attempt, run_stage
from jobs.lm.packing import SPLITS, pack_shards
from jobs.lm.token_stream import bin_name, index_name
from jobs.unit_shards import UsedRows, shard_paths
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage


def work(attempt: Attempt) -> dict[str, Any]:
    """Write ``{split}.bin``, ``{split}.idx.parquet`` and ``pack.json``; returns the counts."""
    recipe, units = attempt.recipe, attempt.upstream["tokenize"].storage
    with tempfile.TemporaryDirectory(dir=attempt.folder) as temporary:
        folder = Path(temporary)
        shards = _shards(attempt, units, folder / "shards")
        packed = pack_shards(
            shards,
            UsedRows.of(units),
            folder,
            shares=recipe.split,
            num_units=recipe.tokenizer.num_clusters,
        )
        check_splits(packed)
        for name in SPLITS:
            for path in (bin_name(name), index_name(name)):
                attempt.out.upload(folder / path, path)
    if not attempt.out.exists("pack.json"):
        attempt.out.create_json("pack.json", packed)
    counts = ("splits", "num_empty_utterances", "num_thinned_utterances")
    return {name: packed[name] for name in counts if name in packed}


def check_splits(packed: dict[str, Any]) -> None:
    """Raise DataError when a split has no tokens, naming the share that decides it."""
    num_recordings = sum(counts["num_recordings"] for counts in packed["splits"].values())
    for name, counts in packed["splits"].items():
        if not counts["num_tokens"]:
            of_train = "lower split.valid and split.test, raise split.train_fraction"
            share = of_train if name == "train" else f"raise split.{name}"
            raise DataError(
                f"pack: none of the {num_recordings} recordings fell into the {name} split; "
                f"{share} or add recordings"
            )


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
