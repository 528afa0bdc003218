"""A stretch of a file reads like a file of its own."""

from __future__ import annotations

import io
import random

from jobs.audio.slices import Slice

DATA = bytes(range(200))


def test_it_reads_and_seeks_as_the_bytes_alone_would() -> None:
    for offset, size in ((0, 200), (17, 60), (190, 10), (50, 0)):
        stretch = io.BufferedReader(Slice(io.BytesIO(DATA), offset, size), 16)
        alone = io.BytesIO(DATA[offset : offset + size])
        some = random.Random(offset)
        for _ in range(200):
            where, how = some.randint(0, size + 5), some.randint(0, 30)
            assert stretch.seek(where) == alone.seek(where)
            assert stretch.read(how) == alone.read(how)
        assert stretch.seek(0, io.SEEK_END) == size
        stretch.seek(0)
        assert stretch.read() == DATA[offset : offset + size]
