"""The suite_units stage: the recordings of one suite as units, once for all models that share them.

In: the suite's folder, the encoder and one codebook per key. Out, per key: ``shards/000/000017.
parquet``, some utterances with their units each; a shard that is there is done. Recordings are
taken whole: one that cannot be read ends the stage by its name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jobs.attempt import Attempt, run_stage
from jobs.scoring.suites import open_suite
from jobs.scoring.suites.suite import Suite
from jobs.speech.pool import stage_pool
from jobs.speech.units import EncoderSpec, create_same, read_codebook, view_of
from jobs.speech.whole_files import Spoken, WholeFiles, read_table, table_bytes
from jobs.unit_shards import missing_shards, shard_path, shard_paths
from orchestrator.errors import RequestError
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ

FILES_PER_SHARD = 256


def work(attempt: Attempt) -> dict[str, Any]:
    """Write every missing shard; returns what there is, per key."""
    suite, folder = suite_of(attempt)
    shards = shards_of(suite)
    missing = missing_shards(range(len(shards)), attempt.outs)
    before = len(shards) - len(missing)
    if missing:
        _tokenize(attempt, folder, shards, missing, before)
    per_key = {
        key: {"num_tokens": sum(len(spoken.units_L) for spoken in utterances_of(out))}
        for key, out in zip(attempt.keys, attempt.outs, strict=True)
    }
    num_samples = sum(spoken.num_samples for spoken in utterances_of(attempt.out))
    return {
        "kind": suite.kind,
        "fingerprint": suite.fingerprint,
        "num_files": len(suite.files),
        "audio_s": num_samples / SAMPLE_RATE_HZ,
        "per_key": per_key,
    }


def suite_of(attempt: Attempt) -> tuple[Suite, Path]:
    """The suite of an attempt's node, and where it lies.

    Raises RequestError where it does not lie in a folder of this machine, and what `open_suite`
    does.
    """
    kind, data, _ = attempt.recipe.evaluate.asked_suites[attempt.part]
    root, container = attempt.data_source(data)
    if not isinstance(root, Path) or container != "folder":
        raise RequestError(
            f"cluster: data.{data}: {root} is no folder of files; unpack the suite into one that "
            "all nodes see"
        )
    return open_suite(kind, root), root


class FileTask(NamedTuple):
    """One shard to be made."""

    shard: int
    files: Sequence[tuple[str, str]]
    """Utterance id and path below the suite's folder."""
    missing: Sequence[int]
    """Positions of the codebooks whose shard is not there yet."""


def shards_of(suite: Suite) -> list[list[tuple[str, str]]]:
    """The files of each shard: a pure function of the suite."""
    files = list(suite.files.items())
    return [files[at : at + FILES_PER_SHARD] for at in range(0, len(files), FILES_PER_SHARD)]


def utterances_of(units: Storage) -> list[Spoken]:
    """All utterances of an artifact, in the suite's order."""
    shards = shard_paths(units.list("shards"))
    return [spoken for path in shards for spoken in read_table(units.read_bytes(path))]


class SuiteWorker:
    """The stage's worker: one pass of the encoder over a shard serves all codebooks."""

    def __init__(
        self,
        encoder: EncoderSpec,
        folder: Path,
        codebook_urls: Sequence[str],
        out_urls: Sequence[str],
        dedup: bool,
    ) -> None:
        """``codebook_urls`` and ``out_urls``: each codebook, and where its units go."""
        codebooks = [read_codebook(Storage(url))["centroids"] for url in codebook_urls]
        self._heard = WholeFiles(encoder.load(), codebooks, dedup=dedup)
        self._folder, self._outs = folder, [Storage(url) for url in out_urls]

    def __call__(self, task: FileTask) -> None:
        """Write the shard for every codebook that misses it."""
        heard = self._heard([self._folder / path for _, path in task.files])
        for which in task.missing:
            spoken = (
                Spoken(name, file.units[which], file.num_samples)
                for (name, _), file in zip(task.files, heard, strict=True)
            )
            create_same(self._outs[which], shard_path(task.shard), table_bytes(spoken))


def _tokenize(
    attempt: Attempt,
    folder: Path,
    shards: Sequence[Sequence[tuple[str, str]]],
    missing: dict[int, tuple[int, ...]],
    before: int,
) -> None:
    """Let the pool make the missing shards."""
    recipe = attempt.recipe
    url = attempt.upstream["encoder"].storage.url
    encoder = EncoderSpec.up_to([view_of(recipe.encoder)], url, recipe.encoder.precision)
    codebooks = [upstream["codebook"].storage.url for upstream in attempt.upstreams]
    outs, dedup = [out.url for out in attempt.outs], recipe.tokenizer.deduplicate

    def task(shard: int) -> FileTask:
        return FileTask(shard, shards[shard], missing[shard])

    attempt.progress(before, len(shards), "shards")
    with stage_pool(attempt, SuiteWorker, encoder, folder, codebooks, outs, dedup) as pool:
        made = pool.run(missing, task, tick=attempt.check)
        for done, _ in enumerate(made, start=before + 1):
            attempt.progress(done, len(shards), "shards")


if __name__ == "__main__":
    sys.exit(run_stage("suite_units", work))
