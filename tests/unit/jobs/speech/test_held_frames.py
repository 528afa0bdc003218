"""Frames in memory or on disk are the same frames, and those on disk take no memory."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch

from jobs.speech.held_frames import HeldFrames, has_much_memory
from jobs.speech.lloyd import BlocksInMemory, fit

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


def group(folder: Path, most: str, used_gb: int, files_gb: int) -> Path:
    """What Linux says of a container."""
    for name, said in (
        ("memory.max", most),
        ("memory.current", str(used_gb * GB)),
        ("memory.stat", f"anon 5\nfile 7\ninactive_file {files_gb * GB}\nslab 1\n"),
    ):
        (folder / name).write_text(f"{said}\n")
    return folder


@pytest.mark.parametrize(("free_gb", "has_room"), [(8, True), (6, True), (5, False), (1, False)])
def test_a_quarter_of_the_machine_is_left_to_others(
    tmp_path: Path, free_gb: int, has_room: bool
) -> None:
    machine = meminfo(tmp_path, free_gb)
    assert has_much_memory(2 * GB, group=tmp_path / "no", meminfo=machine) is has_room


@pytest.mark.parametrize(
    ("most", "used_gb", "files_gb", "has_room"),
    [
        (str(8 * GB), 4, 0, True),
        (str(8 * GB), 5, 0, False),
        (str(8 * GB), 7, 3, True),
        (str(8 * GB), 7, 2, False),
        ("max", 15, 0, True),
    ],
)
def test_a_container_has_less_than_its_machine(
    tmp_path: Path, most: str, used_gb: int, files_gb: int, has_room: bool
) -> None:
    own, machine = group(tmp_path, most, used_gb, files_gb), meminfo(tmp_path, 16)
    assert has_much_memory(2 * GB, group=own, meminfo=machine) is has_room


def test_where_no_system_says_there_is_room(tmp_path: Path) -> None:
    assert has_much_memory(2 * GB, group=tmp_path / "no", meminfo=tmp_path / "nor")
