"""The targets stage without Ray: its steps on a pool that works in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from jobs.attempt import Attempt
from jobs.speech import targets
from jobs.speech.pool import Pool
from jobs.speech.units import shard_path
from jobs.targets import make_targets
from orchestrator.errors import DataError
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.storage import Storage
from orchestrator.spec.cluster import Cluster, Resources
from orchestrator.spec.recipe import Recipe
from tests.unit.jobs.speech.test_targets import blocks_of, corpus_of
from tests.unit.orchestrator.recipes import pretrained_recipe


class PoolHere:
    """A pool of one worker, in this process."""

    def __init__(self, worker: targets.TargetWorker) -> None:
        self.worker = worker
        self.done: list[targets.TargetTask] = []

    def run(
        self, items: Iterable[int], payload: Callable[[int], targets.TargetTask], **_: Any
    ) -> Iterator[tuple[int, Any]]:
        for item in items:
            self.done.append(payload(item))
            yield item, self.worker(self.done[-1])


def attempt_of(folder: Path, recipe: Recipe, resources: Resources | None = None) -> Attempt:
    """The first attempt at a node of the first iteration."""
    upstream = {
        role: Artifact(role, "0" * 64, Storage(str(folder / role)))
        for role in ("corpus", "targets", "pack", "train")
    }
    return Attempt(
        recipe=recipe,
        cluster=Cluster(backend="local", store="unused", data={"speech": str(folder)}),
        resources=resources or Resources(),
        artifacts=(Artifact("targets", "1" * 64, Storage(str(folder / "out"))),),
        upstreams=(upstream,),
        lease_n=1,
        folder=folder,
        record=AttemptFolder(1, Storage(str(folder / "attempt"))),
        part="1",
    )


def pool_of(attempt: Attempt, folder: Path) -> tuple[Pool, PoolHere, targets.AudioBlocks]:
    tables, roots = corpus_of(folder, [16_000, 12_345])
    spec = attempt.recipe.encoder.pretrain
    assert spec
    whole = blocks_of(tables, roots, spec)
    blocks = targets.AudioBlocks([[u] for u in whole.blocks[0]], whole.grid)
    pool = PoolHere(targets.TargetWorker(None, blocks.grid, roots, attempt.out.url))
    return cast(Pool, pool), pool, blocks


def test_a_later_attempt_labels_what_is_missing_and_fits_nothing(tmp_path: Path) -> None:
    few = {"encoder.pretrain.iterations": [{"num_clusters": 3, "steps": 5}]}
    attempt = attempt_of(tmp_path, pretrained_recipe(**few))
    pool, here, blocks = pool_of(attempt, tmp_path)
    make_targets(attempt, pool, blocks)
    assert [(task.block, task.count > 0) for task in here.done] == [
        *((0, True), (1, True)),
        *((0, False), (1, False)),
    ]
    made = {path: attempt.out.read_bytes(path) for path in attempt.out.list()}
    attempt.out.delete(shard_path(1, "npy"))
    here.done.clear()
    make_targets(attempt, pool, blocks)
    assert [(task.block, task.count) for task in here.done] == [(1, 0)]
    assert {path: attempt.out.read_bytes(path) for path in attempt.out.list()} == made


def test_more_clusters_than_frames_can_fill_are_the_datas_fault(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path, pretrained_recipe())  # 100 clusters of some 85 frames
    pool, _, blocks = pool_of(attempt, tmp_path)
    with pytest.raises(DataError, match="frames cannot fit 100 clusters"):
        make_targets(attempt, pool, blocks)
    progress = attempt.record.progress
    told = (progress["done"], progress["total"], progress["unit"])
    assert told == (2, 2, "sampled blocks"), "the pass over the audio was not shown"
