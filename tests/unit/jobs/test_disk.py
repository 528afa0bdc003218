"""What is said of a disk that is full: in the words of every library that writes."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file as save_tensors

from jobs.disk import disk_sentence, room, writing
from orchestrator.errors import Cause, DataError, RunFailedError

VALUES = np.zeros(100_000)


def save_to_file(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(torch.from_numpy(VALUES), file)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "python": lambda path: path.write_bytes(bytes(1_000_000)),
    "numpy": lambda path: np.save(path, VALUES),
    "pyarrow": lambda path: pq.write_table(pa.table({"a": np.random.rand(100_000)}), path),
    "safetensors": lambda path: save_tensors({"a": torch.from_numpy(VALUES)}, path),
    "torch": lambda path: torch.save(torch.from_numpy(VALUES), path),
    "torch, open file": save_to_file,
    "torch, older format": lambda path: torch.save(
        torch.from_numpy(VALUES), path, _use_new_zipfile_serialization=False
    ),
}


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files may not grow beyond 64 KiB: writes fail there as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_takes_no_more_is_named_whoever_writes(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(RunFailedError, match=r"^cluster: scratch: .*: cannot be written") as raised,
        writing(tmp_path / "not" / "yet", "cluster: scratch"),
    ):
        WRITERS[name](tmp_path / "x.npy")
    assert raised.value.cause is Cause.STORAGE
    assert f"are free on {tmp_path}: free space there" in str(raised.value)


@pytest.mark.parametrize("error", [KeyError("x"), DataError("x"), FileNotFoundError("x")])
def test_other_errors_are_let_through(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)), writing(tmp_path, "x"):
        raise error


def test_the_room_of_a_disk(tmp_path: Path) -> None:
    assert room(tmp_path).endswith(f"files are free on {tmp_path}")
    assert room(Path("/proc/nowhere")).startswith("0 B of 0 B")


def test_an_error_is_told_with_the_room_where_a_disk_failed(tmp_path: Path) -> None:
    free = f"are free on {tmp_path}"
    name, other = str(tmp_path / "a"), str(tmp_path / "b")
    full = (errno.ENOSPC, "No space left on device")
    assert disk_sentence(OSError(*full, name)).endswith(free)
    assert disk_sentence(OSError(*full, "/nowhere/a", None, other)).endswith(free)
    assert disk_sentence(OSError(*full)).endswith("No space left on device")
    assert not disk_sentence(OSError(errno.ENOENT, "no", name)).endswith(free)
    assert disk_sentence(KeyError("x")) == "KeyError: 'x'"
