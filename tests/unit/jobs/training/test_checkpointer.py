"""Saving and resuming together: every rank learns what one of them cannot do."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.training.checkpointer import (
    CONVERTED,
    Checkpointer,
    files_below,
    is_converted,
    restore_rng,
    rng_state,
)
from jobs.training.rank import RankConfig
from orchestrator.errors import Cause, LeaseHeldError, RequestError, RunFailedError
from orchestrator.ledger import checkpoints
from orchestrator.ledger import lease as leases
from orchestrator.ledger.storage import Storage, sha256_of
from tests.unit.jobs.training.countdown import Countdown, rank_config
from tests.unit.jobs.training.ranks import Member, Threads, build_plain


def save(
    config: RankConfig, *steps: int, world_size: int = 2, block: int | None = None
) -> list[Any]:
    """What ranks raise that resume and save after some steps; ``block``: one cannot publish."""

    def work(member: Member) -> Any:
        checkpointer = Checkpointer(config, member, build=build_plain)
        engine, progress = checkpointer.resume(Countdown(config))
        for step in steps:
            progress.step = progress.cursor = step
            progress.metric_lines.append({"step": step})
            if member.info.rank == block:
                name = checkpoints.name_of(step, config.lease_n)
                note = b'{"files": {}, "rng": "of another attempt"}'
                Storage(config.out_url).create(checkpoints.done_path(name, block), note)
            checkpointer.save(engine, progress)
        checkpointer.drain()
        return checkpointer, progress

    return Threads(world_size).run(work)


def resume(config: RankConfig, world_size: int = 2) -> list[Any]:
    return save(config, world_size=world_size)


def test_what_was_saved_is_taken_up_again(tmp_path: Path) -> None:
    save(rank_config(tmp_path), 4, 8)
    for checkpointer, progress in resume(rank_config(tmp_path, lease_n=2)):
        assert checkpointer.resumed_from == "step-00000008-a0001"
        assert (progress.step, progress.cursor) == (8, 8)
        assert [s.lease_n for s in progress.history] == [1, 2]
        assert len(progress.metrics) == 2
        assert progress.metric_lines == []


@pytest.mark.parametrize("block", [0, 1])
def test_every_rank_learns_that_one_cannot_publish(tmp_path: Path, block: int) -> None:
    ends = save(rank_config(tmp_path), 4, block=block)
    assert [type(end) for end in ends] == [RunFailedError, RunFailedError]
    for end in ends:
        assert end.cause is Cause.ERROR, "what is in the way is no fault of the store"
        assert f"rank {block} could not publish its checkpoint (AlreadyExistsError" in str(end)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full"), "OSError: [Errno 28] full"),
        (ConnectionResetError("reset"), "ConnectionResetError: reset"),
        (TimeoutError("rank 1 never published"), "TimeoutError: rank 1 never published"),
        (PermissionError("refused"), "PermissionError: refused"),
    ],
)
def test_a_store_that_fails_is_the_cause(tmp_path: Path, error: OSError, words: str) -> None:
    def work(member: Member) -> None:
        checkpointer = Checkpointer(rank_config(tmp_path), member, build=build_plain)
        checkpointer.uploader.error = error if member.info.rank else None
        checkpointer.drain()

    for end in Threads(2).run(work):
        assert end.cause is Cause.STORAGE
        assert f"({words}); look at the store, training goes on" in str(end)


def test_every_rank_learns_that_rank_0_could_not_commit(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    Storage(config.out_url).create(checkpoints.segment_path(4, 1), b"another's lines")
    ends = save(config, 4)
    assert [type(end) for end in ends] == [RunFailedError, RunFailedError]
    assert all("rank 0 could not publish" in str(end) for end in ends)


def test_every_rank_learns_that_the_lease_was_lost(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    for _ in range(2):
        leases.acquire(Storage(config.out_url), holder="later", timeout_s=0.0).release()
    assert [type(end) for end in save(config, 4)] == [LeaseHeldError, LeaseHeldError]


def test_a_checkpoint_that_one_rank_finds_broken_is_refused_by_all(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    save(config, 4, 8)
    newest = checkpoints.committed(Storage(config.out_url))[-1]
    checkpoints.folder_of(Storage(config.out_url), newest).replace("1.pt", b"spoilt")
    for checkpointer, progress in resume(rank_config(tmp_path, lease_n=2)):
        assert progress.step == 4
        assert checkpointer.resumed_from == "step-00000004-a0001"
        (refused,) = checkpointer.refused
        assert "1.pt" in refused


def test_a_training_does_not_begin_anew_when_all_its_checkpoints_are_broken(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    save(config, 4)
    (only,) = checkpoints.committed(Storage(config.out_url))
    checkpoints.folder_of(Storage(config.out_url), only).delete("0.pt")
    for end in resume(rank_config(tmp_path, lease_n=2)):
        assert isinstance(end, RunFailedError)
        assert end.cause is Cause.STORAGE
        assert "none of 1 checkpoints verifies" in str(end)
        assert "0.pt: missing" in str(end)


def test_metric_lines_are_part_of_what_is_verified(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    save(config, 4, 8)
    Storage(config.out_url).replace(checkpoints.segment_path(8, 1), b"{}")
    for _, progress in resume(rank_config(tmp_path, lease_n=2)):
        assert progress.step == 4


def test_another_zero_stage_is_refused(tmp_path: Path) -> None:
    save(rank_config(tmp_path), 4)
    config = rank_config(tmp_path, lease_n=2)
    other = config.execution.model_copy(update={"zero_stage": 1})
    for end in resume(config.model_copy(update={"execution": other})):
        assert isinstance(end, RequestError)
        assert "train.execution.zero_stage: step-00000004-a0001 was written with stage 0" in str(
            end
        )


def test_skips_behind_the_cursor_stay_as_they_were(tmp_path: Path) -> None:
    config = rank_config(tmp_path)
    checkpoints.note_skips(Storage(config.out_url), [1])
    save(config, 4)
    checkpoints.note_skips(Storage(config.out_url), [2, 9])
    for checkpointer, _ in resume(rank_config(tmp_path, lease_n=2)):
        assert checkpointer.skips == {1, 9}, "2 was used before it was noted"


def test_what_earlier_attempts_staged_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "scratch" / "a0001" / "rank-00000"
    left.mkdir(parents=True)
    (inputs := tmp_path / "scratch" / "audio").mkdir()
    resume(rank_config(tmp_path, lease_n=2))
    assert not left.exists()
    assert inputs.exists(), "what a task keeps on the node serves every attempt"


def test_a_conversion_is_used_again_only_byte_for_byte(tmp_path: Path) -> None:
    save(rank_config(tmp_path), 4)
    (manifest,) = checkpoints.committed(Storage(rank_config(tmp_path).out_url))
    target = tmp_path / "universal"
    (target / "zero").mkdir(parents=True)
    (target / "zero" / "w.pt").write_bytes(b"w")
    assert not is_converted(target, manifest)
    digests = {p: sha256_of(target / p) for p in files_below(target)}
    made_of = manifest.model_dump(mode="json")["files"]
    Storage(str(target)).create_json(CONVERTED, {"of": made_of, "files": digests})
    assert is_converted(target, manifest)
    assert not is_converted(target, manifest.model_copy(update={"files": {}}))
    (target / "zero" / "w.pt").write_bytes(b"v")
    assert not is_converted(target, manifest)
    (target / "zero" / "w.pt").write_bytes(b"w")
    (target / "more").write_bytes(b"")
    assert not is_converted(target, manifest)


def test_random_state_comes_back() -> None:
    state = rng_state()
    drawn = torch.rand(3)
    restore_rng(state)
    assert torch.equal(torch.rand(3), drawn)
