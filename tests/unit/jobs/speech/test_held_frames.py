"""Frames in memory or on disk are the same frames, and those on disk take no memory."""

from __future__ import annotations

import errno
import logging
import re
import resource
from pathlib import Path

import pytest
import torch

from jobs.speech.held_frames import HeldFrames, has_much_memory, mapped
from jobs.speech.lloyd import BlocksInMemory, fit
from orchestrator.errors import Cause, cause_of

KB = 1024
GB = 2**30


def own_memory() -> int:
    """Bytes of this process that are in no file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * KB


def test_frames_stay_where_they_are_while_there_is_room() -> None:
    feats_ND = torch.randn(5, 3)
    assert HeldFrames(has_room=lambda size: size == 60)(feats_ND) is feats_ND


def test_frames_on_disk_are_the_same_and_give_the_same_codebook(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = [torch.randn(n, 8) for n in (300, 0, 200, 1)]
    held = HeldFrames(str(tmp_path / "frames"), has_room=lambda _: False)
    mapped = [held(feats_ND) for feats_ND in blocks]
    assert all(torch.equal(one, other) for one, other in zip(mapped, blocks, strict=True))
    assert mapped[0] is not blocks[0]
    assert not list((tmp_path / "frames").iterdir()), "nobody has to remove them"
    first, second = (fit(BlocksInMemory(some), 7, seed=0) for some in (blocks, mapped))
    assert torch.equal(first.centroids, second.centroids)
    assert first.inertia == second.inertia


def test_frames_on_disk_take_no_memory_of_their_own(tmp_path: Path) -> None:
    held, size = HeldFrames(str(tmp_path), has_room=lambda _: False), 64 * 2**20
    before = own_memory()
    kept = [held(torch.ones(size // 4 // 64, 64)) for _ in range(4)]
    assert sum(float(feats_ND.sum()) for feats_ND in kept) == 4 * size / 4
    assert own_memory() - before < size


def test_once_memory_was_short_all_goes_to_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    held = HeldFrames(str(tmp_path), has_room=lambda size: bool(asked.append(size)))
    feats_ND = torch.randn(5, 3)
    with caplog.at_level(logging.INFO):
        assert not any(held(feats_ND) is feats_ND for _ in range(3))
    assert asked == [60]
    assert caplog.messages == [
        f"memory is short: frames are mapped from files in {tmp_path} from now on"
    ]


def meminfo(folder: Path, free_gb: int) -> Path:
    """What Linux says of a machine of 16 GB."""
    text = f"MemTotal: {16 * GB // KB} kB\nMemAvailable: {free_gb * GB // KB} kB\nHugePages: 0\n"
    (path := folder / "meminfo").write_text(text)
    return path


def group(folder: Path, most: str, used_gb: int, files_gb: int, version: int = 2) -> None:
    """What Linux says of a control group."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "inactive_file 9\ntotal_"),
        2: ("memory.max", "memory.current", ""),
    }
    limit, usage, before = names[version]
    folder.mkdir(parents=True, exist_ok=True)
    for name, said in (
        (limit, most),
        (usage, str(used_gb * GB)),
        ("memory.stat", f"anon 5\nfile 7\n{before}inactive_file {files_gb * GB}\nslab 1\n"),
    ):
        (folder / name).write_text(f"{said}\n")


def has_room_in(folder: Path, own: str) -> bool:
    """For 2 GB, on a machine that is all free, in groups of which ``own`` is the process'."""
    (folder / "own").write_text(f"9:name=systemd:/\n{own}\n3:cpuset:/a\n")
    machine = meminfo(folder, 16)
    where = {"own_groups": folder / "own", "groups": folder / "groups"}
    return has_much_memory(2 * GB, meminfo=machine, **where)


@pytest.mark.parametrize(("free_gb", "has_room"), [(8, True), (6, True), (5, False), (1, False)])
def test_a_quarter_of_the_machine_is_left_to_others(
    tmp_path: Path, free_gb: int, has_room: bool
) -> None:
    machine, no = meminfo(tmp_path, free_gb), tmp_path / "no"
    found = has_much_memory(2 * GB, meminfo=machine, own_groups=no, groups=no)
    assert found is has_room


SIZES = pytest.mark.parametrize(
    ("most", "used_gb", "files_gb", "has_room"),
    [
        (8 * GB, 4, 0, True),
        (8 * GB, 5, 0, False),
        (8 * GB, 7, 3, True),
        (8 * GB, 7, 2, False),
        (None, 15, 0, True),
    ],
)


@SIZES
@pytest.mark.parametrize("limited", [".", "job", "job/step"])
def test_of_each_group_around_the_process_a_quarter_is_left(
    tmp_path: Path, limited: str, most: int | None, used_gb: int, files_gb: int, has_room: bool
) -> None:
    """Version 2, as Slurm and Kubernetes nest them; the outermost has no files of its own."""
    for name in ("job", "job/step"):
        group(tmp_path / "groups" / name, "max", 1, 0)
    group(tmp_path / "groups" / limited, str(most or "max"), used_gb, files_gb)
    assert has_room_in(tmp_path, "0::/job/step") is has_room


@SIZES
@pytest.mark.parametrize("limited", [".", "job", "job/step"])
def test_so_it_is_in_groups_of_version_1(
    tmp_path: Path, limited: str, most: int | None, used_gb: int, files_gb: int, has_room: bool
) -> None:
    none = str(2**63 - 4096)  # what has no limit
    for name in (".", "job", "job/step"):
        group(tmp_path / "groups" / "memory" / name, none, 1, 0, version=1)
    where = tmp_path / "groups" / "memory" / limited
    group(where, str(most or none), used_gb, files_gb, version=1)
    assert has_room_in(tmp_path, "4:memory,cpu:/job/step\n0::/") is has_room


@pytest.mark.parametrize("own", ["0::/kubepods/pod1/c2", "0::/../c2", "0::/"])
def test_a_container_sees_its_own_group_alone(tmp_path: Path, own: str) -> None:
    """Whatever it is called outside."""
    group(tmp_path / "groups", str(8 * GB), 5, 0)
    assert not has_room_in(tmp_path, own)
    group(tmp_path / "groups", str(8 * GB), 1, 0)
    assert has_room_in(tmp_path, own)


def test_the_limit_of_another_group_is_none_of_ours(tmp_path: Path) -> None:
    group(tmp_path / "groups" / "other", str(8 * GB), 8, 0)
    group(tmp_path / "groups" / "job", "max", 1, 0)
    assert has_room_in(tmp_path, "0::/job")


def test_where_no_system_says_there_is_room(tmp_path: Path) -> None:
    nor = tmp_path / "nor"
    assert has_much_memory(2 * GB, meminfo=nor, own_groups=nor, groups=nor)


def test_a_disk_that_does_not_take_all_frames_is_an_error(tmp_path: Path) -> None:
    """With its number, by which a full disk is told from what the frames may have wrong."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            mapped(torch.ones(50_000), str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cause_of(error.value) is Cause.STORAGE
    assert error.value.errno == errno.EFBIG
