"""Several readers give what one does, in its order, and hold no more than they may."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.audio.corpus_tables import Part
from jobs.audio.decode import BLOCK_S, Wave
from jobs.audio.place import Place
from jobs.audio.roots import Root
from jobs.speech.reading_ahead import ReadersAhead, _ClosedError, _Lane, num_readers
from jobs.speech.utterances import ShardAudio, WaveReader
from orchestrator.errors import BackendError
from orchestrator.spec.recipe import Windows
from tests.corpora import row_of, write_wave

WINDOWS = Windows(min_s=0.2, max_s=1.0)
SECOND = 16_000


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    """Short recordings, one of many windows that is there in two parts, and a broken one."""
    for number in range(5):
        write_wave(tmp_path / f"{number}.wav", 3_000 + 5_000 * number, seed=number)
    write_wave(tmp_path / "long.wav", 9 * SECOND, seed=9)
    (tmp_path / "broken.wav").write_bytes(b"no")
    long = row_of("long.wav", header_samples=9 * SECOND)
    short = [Part(row_of(f"{number}.wav"), 0, None) for number in range(5)]
    return [
        *short[:2], Part(long, 0, 4), Part(long, 4, None), Part(row_of("broken.wav"), 0, None),
        *short[2:],
    ]  # fmt: skip


def roots(folder: Path) -> dict[str, Root]:
    return {"s": Root(folder)}


@pytest.mark.parametrize(("count", "most_samples"), [(1, 1), (2, 1), (3, 2 * SECOND), (9, 1 << 30)])
def test_waves_are_those_of_one_reader(
    tmp_path: Path, parts: list[Part], count: int, most_samples: int
) -> None:
    one, expected = WaveReader(roots(tmp_path)), ShardAudio(parts, WINDOWS)
    waves = list(expected.waves(one))
    assert len(waves) > 10
    assert list(expected.unreadable) == ["broken.wav"]
    readers = ReadersAhead(roots(tmp_path), count, most_samples=most_samples)
    for shard in (1, 2):
        audio = ShardAudio(parts, WINDOWS)
        with readers.ahead(parts, WINDOWS) as source:
            found = list(audio.waves(source))
        assert (audio.heard, audio.unreadable) == (expected.heard, expected.unreadable)
        assert all(np.array_equal(a, b) for a, b in zip(found, waves, strict=True))
        assert readers.decoded_samples == shard * one.decoded_samples
    assert readers.passed_over_samples == one.passed_over_samples == 0


def test_readers_wait_for_who_takes_and_end_with_them(tmp_path: Path) -> None:
    for number in range(30):
        write_wave(tmp_path / f"{number:02d}.wav", SECOND, seed=number)
    parts = [Part(row_of(f"{number:02d}.wav"), 0, None) for number in range(30)]
    readers = ReadersAhead(roots(tmp_path), 2, most_samples=1)
    with readers.ahead(parts, WINDOWS) as source:
        next(ShardAudio(parts, WINDOWS).waves(source))
    # Each has given one, has one ahead, and at most one in hand.
    assert 0 < readers.decoded_samples <= 6 * SECOND


def crowded(where: Place, *, first: int, **_: object) -> Iterator[Wave]:
    """A long recording, and a short one that cannot be decoded while the long one is."""
    folder = Path(str(where)).parent
    if where.name == "long.wav":
        (folder / "busy").write_text(str(os.getpid()))
        for block in range(first, 2):
            if block == 1 and first == 0:
                time.sleep(10)
            yield np.random.default_rng(block).normal(0, 0.1, BLOCK_S * SECOND).astype(np.float32)
        (folder / "busy").unlink()
        return
    (folder / f"trial-{num_trials(folder)}").touch()
    if num_trials(folder) == 1:
        wait_for((folder / "busy").exists)
    if (folder / "busy").exists() and Path("/proc", (folder / "busy").read_text()).exists():
        raise RuntimeError("there is no room for two")
    yield np.random.default_rng(9).normal(0, 0.1, SECOND).astype(np.float32)


def num_trials(folder: Path) -> int:
    return len(list(folder.glob("trial-*")))


def wait_for(comes: Callable[[], bool], most_s: float = 30) -> None:
    until = time.monotonic() + most_s
    while not comes() and time.monotonic() < until:
        time.sleep(0.05)


def test_who_waits_when_the_readers_end_waits_no_longer(tmp_path: Path) -> None:
    """Nothing is decoded any more, so that nothing would ever come."""
    lane = _Lane(WaveReader(roots(tmp_path)), 1)
    threads = ThreadPoolExecutor(1)
    waiting = threads.submit(next, lane.taken())
    lane.close()
    assert isinstance(waiting.exception(timeout=10), _ClosedError)
    threads.shutdown()


def test_what_fails_beside_others_is_tried_again_alone(tmp_path: Path) -> None:
    """No fault of load is a verdict on a recording: here, of a decoder that is not by itself."""
    for name in ("long.wav", "crowded.wav"):
        (tmp_path / name).write_bytes(b"")
    parts = [Part(row_of(name), 0, None) for name in ("long.wav", "crowded.wav")]
    audio = ShardAudio(parts, WINDOWS)
    readers = ReadersAhead(roots(tmp_path), 2, most_samples=1, decode=crowded)
    with closing(readers), readers.ahead(parts, WINDOWS) as source:
        wait_for(lambda: num_trials(tmp_path) == 2)
        num_waves = len(list(audio.waves(source)))
    assert audio.unreadable == {}
    assert num_waves == 2 * BLOCK_S + 1


def test_what_is_no_fault_of_a_recording_ends_all(tmp_path: Path, parts: list[Part]) -> None:
    """As one reader would: a file that went away."""
    missing = [*parts[:3], Part(row_of("gone.wav"), 0, None), *parts[3:]]
    said = []
    for count in (1, 3):
        with (
            pytest.raises(BackendError) as error,
            ReadersAhead(roots(tmp_path), count).ahead(missing, WINDOWS) as source,
        ):
            list(ShardAudio(missing, WINDOWS).waves(source))
        said.append(str(error.value))
    assert said[0] == said[1]


def test_a_cpu_computes_with_the_cores_that_it_has() -> None:
    assert num_readers(torch.device("cpu")) == 1
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert num_readers(torch.device("cuda")) == count
    finally:
        torch.set_num_threads(before)
