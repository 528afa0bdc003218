"""A stretch of bytes as a file."""

from __future__ import annotations

import io
import os

import pytest

from orchestrator.ledger.stretches import Stretch

DATA = bytes(range(100))


class Known(Stretch):
    """Bytes that are given three at a time."""

    def read_at(self, at: int, length: int) -> bytes:
        return DATA[at : at + min(length, 3)]


@pytest.mark.parametrize("buffering", [1, 7, 1000])
def test_it_reads_as_the_bytes_do(buffering: int) -> None:
    file, same = io.BufferedReader(Known(len(DATA)), buffering), io.BytesIO(DATA)
    for offset, whence in (
        (0, os.SEEK_SET),
        (-5, os.SEEK_END),
        (40, os.SEEK_SET),
        (200, os.SEEK_SET),
    ):
        assert file.seek(offset, whence) == same.seek(offset, whence)
        assert file.read(10) == same.read(10)
        assert file.tell() == same.tell()
    assert file.seek(-10, os.SEEK_END) == 90
    assert file.seek(-3, os.SEEK_CUR) == 87
    assert file.read() == DATA[87:]


def test_it_is_only_read() -> None:
    raw = Known(1)
    assert (raw.readable(), raw.seekable(), raw.writable()) == (True, True, False)
