"""What a file does to its decoder is a verdict on it; what is done to a decoder is none."""

from __future__ import annotations

import gc
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from jobs.audio.decode import Notice, UnreadableAudioError, Wave, blocks
from jobs.audio.decoders import Decoders, Limits
from orchestrator.errors import BackendError, Cause, RunFailedError

NO_TIME = Limits(cpu_s=0.5, cpu_s_per_mb=0.0)


def acted(path: Path, *, lowpass_hz: float | None, first: int, **_: Any) -> Iterator[Wave]:
    """Two blocks that tell what was asked for, and between them what the file says."""
    with path.with_suffix(".log").open("a") as log:
        log.write(f"{os.getpid()} {first}\n")
    for block in range(first, 2):
        if block == 1:
            _act(path, path.read_text())
        yield np.full(3, 10 * block + (lowpass_hz or 0), np.float32)


def _act(path: Path, what: str) -> None:
    if what.endswith("once"):
        path.write_text("fine")
    for word, act in ACTS.items():
        if what.startswith(word):
            act(path)


def _spin(_: Path) -> None:
    while True:
        pass


def _raise(error: Callable[[Path], Exception]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        raise error(path)

    return act


ACTS: dict[str, Callable[[Path], object]] = {
    "crash": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "abort": lambda _: os.kill(os.getpid(), signal.SIGABRT),
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "spin": _spin,
    "memory": lambda _: np.ones(1 << 40),
    "torch memory": _raise(lambda _: RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    "unreadable": _raise(lambda path: UnreadableAudioError(path, "of no use")),
    "away": _raise(lambda path: BackendError(f"{path}: away")),
    "no library": _raise(lambda _: ModuleNotFoundError("No module named 'av'")),
    "key": _raise(lambda _: KeyError("no")),
    "struct": _raise(lambda _: struct.error("unpack requires a buffer of 4 bytes")),
    "text": _raise(lambda _: UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "unexpected end of data")),
    "overflow": _raise(lambda _: OverflowError("int too large\nto convert to float")),
    "library": _raise(lambda _: RuntimeError("shape '[2, 0]' is invalid")),
    "dumb": _raise(lambda _: RecursionError()),
}


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    made = Decoders(2, limits=NO_TIME, decode=acted)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def written(what: str) -> Path:
        path = tmp_path / f"{what}.wav"
        path.write_text(what)
        return path

    return written


def trials(path: Path) -> list[list[int]]:
    """Process and first block of each."""
    lines = path.with_suffix(".log").read_text().splitlines()
    return [[int(word) for word in line.split()] for line in lines]


def test_blocks_come_as_from_the_decoder_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.flac", rng.uniform(-0.5, 0.5, 70 * 8000), 8000)
    decoders = Decoders(1)
    for how in ({}, {"first": 1}, {"lowpass_hz": 1000.0}):
        options: dict[str, Any] = dict(how)
        expected = list(blocks(tmp_path / "a.flac", **options))
        found = list(decoders.blocks(tmp_path / "a.flac", **options))
        assert [block.tobytes() for block in found] == [block.tobytes() for block in expected]
    decoders.close()


LONG_TMPDIR = """
import sys, tempfile
from pathlib import Path
from jobs.audio.decoders import Decoders

if __name__ == "__main__":
    decoders = Decoders(1)
    print(sum(len(block) for block in decoders.blocks(Path(sys.argv[1]))))
    decoders.close()
    print(tempfile.gettempdir())
"""


def test_a_temporary_folder_may_have_a_long_path(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 16_000)
    (tmp_path / "decode.py").write_text(LONG_TMPDIR)
    far = tmp_path / ("far" * 40)
    far.mkdir()
    argv = [sys.executable, str(tmp_path / "decode.py"), str(tmp_path / "a.wav")]
    env = {**os.environ, "TMPDIR": str(far), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["800", str(far)], done.stderr
    assert not list(far.iterdir())


def test_channels_are_chosen_in_the_process_and_cancelling_mixes_told(tmp_path: Path) -> None:
    left = np.random.default_rng(0).uniform(-0.5, 0.5, 70 * 8000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, -0.9 * left], axis=1), 8000)
    decoders = Decoders(1)
    told: list[Notice] = []
    mix = list(decoders.blocks(tmp_path / "a.wav", on_notice=told.append))
    assert told == [("cancels", block) for block in range(3)]
    first = list(decoders.blocks(tmp_path / "a.wav", channels="first"))
    assert [block.tobytes() for block in mix] == [block.tobytes() for block in first]
    second = list(decoders.blocks(tmp_path / "a.wav", channels=1))
    assert np.abs(second[0] + 0.9 * first[0]).max() < 1e-3
    decoders.close()


def test_one_process_decodes_file_after_file(
    decoders: Decoders, file: Callable[[str], Path]
) -> None:
    path = file("fine")
    for _ in range(3):
        list(decoders.blocks(path))
    assert len({pid for pid, _ in trials(path)}) == 1


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("crash", "its decoder crashes"),
        ("abort", "its decoder crashes"),
        ("spin", "its decoder takes more CPU time"),
        ("memory", "its decoder takes more memory"),
        ("torch memory", "its decoder takes more memory"),
        ("key", r"its decoder fails \(KeyError: 'no'\)"),
        ("struct", r"its decoder fails \(error: unpack requires a buffer of 4 bytes\)"),
        ("text", r"its decoder fails \(UnicodeDecodeError: 'utf-8' codec can't decode"),
        ("overflow", r"its decoder fails \(OverflowError: int too large to convert to float\)"),
        ("library", r"its decoder fails \(RuntimeError: shape '\[2, 0\]' is invalid\)"),
        ("dumb", r"its decoder fails \(RecursionError\)"),
    ],
)
def test_what_a_file_does_twice_is_a_verdict(
    decoders: Decoders, file: Callable[[str], Path], what: str, reason: str
) -> None:
    path = file(what)
    with pytest.raises(UnreadableAudioError, match=reason):
        list(decoders.blocks(path))
    (one, first), (other, again) = trials(path)
    assert (first, again) == (0, 1)
    assert one != other


@pytest.mark.parametrize("what", ["crash once", "killed once", "library once", "text once"])
def test_what_happens_once_changes_nothing(
    decoders: Decoders, file: Callable[[str], Path], what: str
) -> None:
    found = list(decoders.blocks(file(what), lowpass_hz=2.0))
    assert [block[0] for block in found] == [2.0, 12.0]


@pytest.mark.parametrize(
    ("what", "error", "cause"),
    [
        ("killed", RunFailedError, Cause.HOST_OOM),
        ("no library", RunFailedError, Cause.ERROR),
        ("away", BackendError, Cause.STORAGE),
    ],
)
def test_what_is_done_to_it_is_none(
    decoders: Decoders, file: Callable[[str], Path], what: str, error: type[Any], cause: Cause
) -> None:
    with pytest.raises(error, match=f"{what}.wav") as raised:
        list(decoders.blocks(file(what)))
    assert raised.value.cause == cause


def test_a_verdict_of_the_decoder_is_passed_on(
    decoders: Decoders, file: Callable[[str], Path]
) -> None:
    path = file("unreadable")
    with pytest.raises(UnreadableAudioError) as raised:
        list(decoders.blocks(path))
    assert raised.value.reason == "of no use"
    assert len(trials(path)) == 1


def test_who_stops_half_way_leaves_nothing_to_others(
    decoders: Decoders, file: Callable[[str], Path]
) -> None:
    for _ in range(5):
        half = decoders.blocks(file("fine"))
        assert next(half)[0] == 0.0
        half.close()  # type: ignore[attr-defined]
    assert [block[0] for block in decoders.blocks(file("fine"))] == [0.0, 10.0]


def test_who_leaves_after_the_last_block_keeps_the_process(
    decoders: Decoders, file: Callable[[str], Path]
) -> None:
    for _ in range(5):
        found = decoders.blocks(path := file("fine"))
        assert [next(found)[0], next(found)[0]] == [0, 10]
        time.sleep(0.2)  # as whoever hears the blocks does
        found.close()
    # On a busy machine one or the other may say too late that it has no more.
    assert len({pid for pid, _ in trials(path)}) < 5


_IDLE_AT_THE_END = """
import sys
from pathlib import Path
from jobs.audio.decoders import Decoders
if __name__ == "__main__":
    decoders = Decoders(1)
    sys.exit(len(list(decoders.blocks(Path(sys.argv[1])))))
"""


def test_an_idle_process_keeps_no_interpreter_from_ending(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 0.1), 16_000)
    (tmp_path / "program.py").write_text(_IDLE_AT_THE_END)
    words = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "a.wav")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(words, timeout=120, check=False, env=env).returncode == 1


def test_a_pass_that_the_collector_finds_ends_its_process_once(
    file: Callable[[str], Path],
) -> None:
    """In whatever order it takes the parts of a cycle: an error there fails this test."""
    made = Decoders(1, decode=acted)
    list(made.blocks(file("fine")))
    half = made.blocks(file("half"))
    next(half)
    (pid,) = {pid for name in ("fine", "half") for pid, _ in trials(file(name))}
    cycle: list[Any] = [made, half]
    cycle.append(cycle)
    del made, half, cycle
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_a_second_trial_is_alone(decoders: Decoders, file: Callable[[str], Path]) -> None:
    """Who decodes ahead is ended for it and goes on where it was, without a word."""
    other, others = decoders.blocks(file("fine")), file("fine")
    assert next(other)[0] == 0.0
    ((ahead, _),) = trials(others)
    with pytest.raises(UnreadableAudioError):
        list(decoders.blocks(file("crash")))
    assert not Path(f"/proc/{ahead}").exists()
    assert [block[0] for block in other] == [10.0]
    assert [first for _, first in trials(others)] == [0, 1]


def test_trials_of_many_kinds_wait_for_each_other_and_end(
    decoders: Decoders, file: Callable[[str], Path]
) -> None:
    fine, crashes = file("fine"), file("crash")

    def one(number: int) -> str:
        try:
            return str(len(list(decoders.blocks(fine if number % 3 else crashes))))
        except UnreadableAudioError:
            return "unreadable"

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(12))) == ["unreadable", "2", "2"] * 4
