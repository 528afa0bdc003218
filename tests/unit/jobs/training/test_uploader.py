"""Publishing a snapshot: what each rank leaves, who may commit, and what is retired after it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.training.rank import RankConfig, RankInfo
from jobs.training.uploader import KEPT, CheckpointUploader, Snapshot, files_below
from orchestrator.errors import AlreadyExistsError, Cause, LeaseHeldError, RunFailedError
from orchestrator.ledger import checkpoints
from orchestrator.ledger import lease as leases
from orchestrator.ledger.checkpoints import Manifest
from orchestrator.ledger.storage import Storage
from tests.unit.jobs.training.countdown import rank_config


def uploader(config: RankConfig, rank: int = 0, world_size: int = 1, **options: Any) -> Any:
    info = RankInfo(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size)
    return CheckpointUploader(config, info, **options)


def snapshot(tmp_path: Path, step: int = 4, rank: int = 0, *, leads: bool = True) -> Snapshot:
    """A rank's files on the node's disk, one of them below a folder."""
    name = checkpoints.name_of(step, 1)
    folder = tmp_path / "staging" / str(rank) / name
    (folder / "deep").mkdir(parents=True)
    (folder / f"{rank}.pt").write_bytes(b"state")
    (folder / "deep" / f"{rank}.bin").write_bytes(bytes(3))
    draft = Manifest(
        step=step,
        lease_n=1,
        world_size=1,
        zero_stage=0,
        cursor=step,
        sample_hash="",
        files={},
        metrics=(segment := checkpoints.segment(checkpoints.segment_path(step, 1), []))[:1],
    )
    return Snapshot(
        name=name,
        step=step,
        folder=folder,
        rng_name=f"rng-{rank:05d}.safetensors",
        draft=draft if leads else None,
        segments=[segment] if leads else (),
    )


def publish(uploader: CheckpointUploader, snapshot: Snapshot) -> BaseException | None:
    uploader.start(snapshot)
    uploader.wait_committed()
    return uploader.error


def test_a_published_snapshot_is_a_checkpoint_and_leaves_the_disk(tmp_path: Path) -> None:
    config, ticks = rank_config(tmp_path), []
    own = uploader(config, tick=lambda: ticks.append(1))
    staged = snapshot(tmp_path)
    assert publish(own, staged) is None
    (manifest,) = checkpoints.committed(Storage(config.out_url))
    assert {name: entry.size for name, entry in manifest.files.items()} == {
        "0.pt": 5,
        "deep/0.bin": 3,
    }
    assert manifest.rng == {"0": "rng-00000.safetensors"}
    assert not staged.folder.exists()
    assert not own.is_busy
    assert own.took_s > 0
    assert len(ticks) >= 7, "the heartbeat was not told of every step on the way"


def test_what_went_to_a_remote_store_stays_on_the_node_until_the_next_has_followed(
    tmp_path: Path,
) -> None:
    config = rank_config(tmp_path).model_copy(update={"out_url": f"memory://{tmp_path.name}"})
    kept = Path(config.scratch, KEPT, checkpoints.FOLDER)
    ranks = [uploader(config, rank, 2) for rank in range(2)]
    for step in (4, 8):
        staged = [snapshot(tmp_path, step, rank, leads=rank == 0) for rank in range(2)]
        assert [publish(own, s) for own, s in zip(ranks[::-1], staged[::-1], strict=True)] == [
            None,
            None,
        ]
        name = checkpoints.name_of(step, 1)
        assert [folder.name for folder in kept.iterdir()] == [name]
        found = ["0.pt", "1.pt", "deep/0.bin", "deep/1.bin"]
        assert files_below(kept / name) == found
        assert not any(s.folder.exists() for s in staged)


def test_a_store_that_is_a_path_is_kept_nowhere_else(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    assert publish(uploader(config), snapshot(tmp_path)) is None
    assert not Path(config.scratch, KEPT).exists()


def test_a_rank_that_does_not_lead_leaves_a_note_and_no_manifest(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    staged = snapshot(tmp_path, rank=1, leads=False)
    assert publish(uploader(config, 1, 2), staged) is None
    out = Storage(config.out_url)
    assert checkpoints.committed(out) == []
    assert set(out.read_json(checkpoints.done_path(staged.name, 1))["files"]) == {
        "1.pt",
        "deep/1.bin",
    }


def test_the_manifest_waits_for_every_rank(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    leader, other = uploader(config, 0, 2), uploader(config, 1, 2)
    leader.start(snapshot(tmp_path))
    leader.wait_uploaded()  # its own part; others need not have begun
    out = Storage(config.out_url)
    assert leader.is_busy
    assert checkpoints.committed(out) == []
    assert publish(other, snapshot(tmp_path, rank=1, leads=False)) is None
    leader.wait_committed()
    (manifest,) = checkpoints.committed(out)
    assert sorted(manifest.files) == ["0.pt", "1.pt", "deep/0.bin", "deep/1.bin"]
    assert manifest.rng == {"0": "rng-00000.safetensors", "1": "rng-00001.safetensors"}


def test_a_part_that_never_comes_is_an_error(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    leader = uploader(config, 0, 2, commit_timeout_s=0.05)
    error = publish(leader, snapshot(tmp_path))
    assert isinstance(error, RunFailedError)
    assert error.cause is Cause.STORAGE
    assert "rank 1 never published its part" in str(error)
    assert checkpoints.committed(Storage(config.out_url)) == []


def test_an_attempt_that_was_fenced_off_commits_nothing(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    out = Storage(config.out_url)
    for _ in range(2):
        leases.acquire(out, holder="later", timeout_s=0.0).release()
    error = publish(uploader(config), snapshot(tmp_path))
    assert isinstance(error, LeaseHeldError)
    assert "lease 1 was lost to 2" in str(error)
    assert checkpoints.committed(out) == []
    assert not out.children("metrics"), "metric lines of a fenced attempt"


def test_the_holder_of_the_lease_may_commit(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    leases.acquire(Storage(config.out_url), holder="this", timeout_s=60.0)
    assert publish(uploader(config), snapshot(tmp_path)) is None


def test_retention_follows_the_commit(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    own, segments = uploader(config), ()
    for step in (4, 8, 12):
        staged = snapshot(tmp_path, step)
        assert staged.draft
        segments = (*segments, *staged.draft.metrics)
        object.__setattr__(staged, "draft", staged.draft.model_copy(update={"metrics": segments}))
        assert publish(own, staged) is None
    assert [m.step for m in checkpoints.committed(Storage(config.out_url))] == [8, 12]


def test_a_failed_upload_is_kept_for_the_training_and_ends_the_waiting(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    own, staged = uploader(config), snapshot(tmp_path)
    Storage(config.out_url).create(checkpoints.done_path(staged.name, 0), b"{}")
    own.start(staged)
    own.wait_uploaded()
    own.wait_committed()
    assert isinstance(own.error, AlreadyExistsError)
    assert not own.is_busy


def test_nothing_is_waited_for_when_nothing_is_on_its_way(tmp_path: Path) -> None:
    own = uploader(rank_config(tmp_path))
    waiting = threading.Thread(target=lambda: (own.wait_uploaded(), own.wait_committed()))
    waiting.start()
    waiting.join(5)
    assert not waiting.is_alive()
    assert own.error is None


@pytest.mark.parametrize("leads", [True, False])
def test_waiting_for_an_upload_begins_anew_with_each_snapshot(tmp_path: Path, leads: bool) -> None:
    own = uploader(rank_config(tmp_path))
    assert publish(own, snapshot(tmp_path, 4, leads=leads)) is None
    own.start(snapshot(tmp_path, 8, leads=leads))
    own.wait_uploaded()
    assert Storage(rank_config(tmp_path).out_url).exists(
        checkpoints.done_path(checkpoints.name_of(8, 1), 0)
    )
    own.wait_committed()
