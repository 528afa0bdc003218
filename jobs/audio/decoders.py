"""Decoding in processes of its own: a damaged file may crash its decoder, or never let it end.

In: a path. Out: what `decode.blocks` gives. What a file does to a decoding process by itself, and
again with nothing else being decoded, is a verdict on the file; what happens to such a process from
outside never is.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from jobs.audio.channels import Channels
from jobs.audio.decode import Notice, UnreadableAudioError, Wave, blocks
from jobs.audio.place import Place
from orchestrator.errors import BackendError, Cause, OrchestratorError, RunFailedError

Decode = Callable[..., Iterator[Wave]]

_BY_ITSELF = {
    signal.SIGSEGV: "crashes",
    signal.SIGABRT: "crashes",
    signal.SIGBUS: "crashes",
    signal.SIGILL: "crashes",
    signal.SIGFPE: "crashes",
    signal.SIGXCPU: "takes more CPU time than a sound file of its size could",
}
"""Signals that a process owes to what it does, in words."""
_TOO_MUCH_MEMORY = "takes more memory than a sound file could"
_MAX_WORDS = 300
"""Characters of what an exception says."""
_MAX_KILLED = 3
_MAX_TEMPORARY = 107 - len("/pymp-12345678/listener-12345678")
"""Characters of a folder where a Unix socket's path still fits."""
_SAYS_SO_WITHIN_S = 0.01
"""Less than it takes to end a process and to start another."""
_STARTING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What decoding one file may take."""

    cpu_s: float = 60.0
    """Whatever its size."""
    cpu_s_per_mb: float = 60.0
    """For each 10^6 bytes more: ten times what the densest codecs take on a slow core."""
    memory_bytes: int = 2 << 30
    """Beyond what the process has at its beginning; a block takes some megabytes."""

    def cpu_s_of(self, where: Path | Place) -> float:
        """Seconds of CPU time for a file."""
        place, size = where if isinstance(where, Place) else Place.of(where), 0
        with suppress(OSError):  # whoever reads it says so
            size = place.num_bytes()
        return self.cpu_s + self.cpu_s_per_mb * size / 1e6


class _Order(NamedTuple):
    """A file to be decoded."""

    where: Path | Place
    lowpass_hz: float | None
    channels: Channels | int
    first: int
    cpu_s: float


class _EndedByItselfError(Exception):
    """The process of a decoder ended by what it did; the words say how."""


class _KilledError(Exception):
    """The process of a decoder was ended by somebody else."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _SetAsideError(Exception):
    """The process of a decoder was ended for another to be alone."""


class Decoders:
    """Some decoding processes, each started when it is first needed; use it from any thread.

    Whoever leaves blocks half taken closes them: their process is ended then.
    """

    def __init__(
        self, count: int, *, limits: Limits | None = None, decode: Decode = blocks
    ) -> None:
        self._limits, self._decode = limits or Limits(), decode
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["jobs.audio.decode"])
        self._slots = threading.Semaphore(count)
        self._turns = _Turns()
        self._idle: list[_Process] = []
        self._in_use: list[_Process] = []

    def blocks(
        self,
        where: Path | Place,
        *,
        lowpass_hz: float | None = None,
        channels: Channels | int = "mix",
        first: int = 0,
        on_notice: Callable[[Notice], object] = bool,
    ) -> Generator[Wave]:
        """What `decode.blocks` gives, and its errors; ``on_notice`` may be told a thing twice.

        Raises UnreadableAudioError, too, for a file that crashes its decoder or goes over a limit;
        RunFailedError when decoding processes are killed again and again.
        """
        num_ended = num_killed = 0
        while True:
            try:
                order = _Order(where, lowpass_hz, channels, first, self._limits.cpu_s_of(where))
                with (
                    self._process() as process,
                    closing(process.decode(order, on_notice)) as found,
                ):
                    while (block := self._next(process, found, alone=num_ended > 0)) is not None:
                        yield block
                        first += 1
                return
            except _SetAsideError:
                continue
            except _EndedByItselfError as end:
                num_ended += 1
                if num_ended > 1:
                    raise UnreadableAudioError(where, f"its decoder {end}") from None
            except _KilledError as end:
                num_killed += 1
                if num_killed == _MAX_KILLED:
                    raise _given_up(where, end) from None

    def close(self) -> None:
        """End all processes that nobody uses."""
        while self._idle:
            self._idle.pop().end()

    def _next(self, process: _Process, found: Iterator[Wave], *, alone: bool) -> Wave | None:
        """A process' next block. One that is to be alone ends those that decode ahead."""
        if not alone:
            with self._turns.beside_others():
                return next(found, None)
        with self._turns.alone():
            for other in tuple(self._in_use):
                if other is not process and not other.is_idle:
                    other.set_aside()
            return next(found, None)

    @contextmanager
    def _process(self) -> Iterator[_Process]:
        """A process; one with which nothing happened is used again."""
        with self._slots:
            try:
                process = self._idle.pop()
            except IndexError:
                _run_forkserver()
                process = _Process(self._context, self._decode, self._limits.memory_bytes)
            self._in_use.append(process)
            try:
                yield process
            finally:
                self._in_use.remove(process)
                if process.is_idle:
                    self._idle.append(process)
                else:
                    process.end()


class _Turns:
    """Whose turn it is to wait for a block: any number beside each other, or one alone.

    Nobody keeps it between two blocks, so that whoever takes them may take as long as they like.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_beside, self._is_one_alone = 0, False

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """A turn beside those of others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_one_alone)
            self._num_beside += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_beside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A turn while nobody else has one."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_one_alone)
            self._is_one_alone = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._num_beside)
            yield
        finally:
            with self._changed:
                self._is_one_alone = False
                self._changed.notify_all()


def _run_forkserver(short: str = "/tmp") -> None:
    """Start what forks the processes; its socket lies in ``short`` where TMPDIR is too long.

    Python does so itself from 3.14 on.
    """
    with _STARTING:
        usual = tempfile.gettempdir()
        if len(os.fsencode(usual)) > _MAX_TEMPORARY:
            tempfile.tempdir = short
        try:
            forkserver.ensure_running()
        finally:
            tempfile.tempdir = usual


def _given_up(where: Path | Place, end: _KilledError) -> RunFailedError:
    is_oom = end.code == -signal.SIGKILL
    how = "was killed; give the job more memory" if is_oom else f"ended with code {end.code}"
    return RunFailedError(
        f"{where}: the process that decodes it {how} ({_MAX_KILLED} times)",
        cause=Cause.HOST_OOM if is_oom else Cause.ERROR,
    )


class _Process:
    """One decoding process, which decodes one file after the other."""

    def __init__(self, context: Any, decode: Decode, memory_bytes: int) -> None:
        self._connection, theirs = context.Pipe()
        self._child: BaseProcess = context.Process(
            target=_serve, args=(theirs, decode, memory_bytes), daemon=True
        )
        self._child.start()
        theirs.close()
        self.is_idle = True
        """Whether it can be given another file."""
        self._is_set_aside = False
        # Closed once, whoever comes first: of a cycle that is collected, the pipe would be closed
        # before the generator that uses it, whose number another file may have by then. At the
        # interpreter's end it comes before multiprocessing waits for its children, and a fork of
        # this process leaves it alone.
        about = (self._child, self._connection)
        self._ending = Finalize(self, _ended, about, exitpriority=1)

    def decode(self, order: _Order, on_notice: Callable[[Notice], object]) -> Generator[Wave]:
        """The blocks.

        Raises what `decode.blocks` does, _EndedByItselfError, _KilledError, _SetAsideError.
        """
        self.is_idle = False
        try:
            self._connection.send(order)
            while isinstance(said := self._received(), np.ndarray | Notice):
                if isinstance(said, Notice):
                    on_notice(said)
                else:
                    yield said
        except GeneratorExit:  # who has the last block need not ask for one more
            self.is_idle = self._has_no_more()
            raise
        except (EOFError, ConnectionError):
            raise self._end() from None
        if said is not None and said.is_to_be_tried_again:
            raise _EndedByItselfError(said.words)
        self.is_idle = True
        if said is not None:
            raise said.error(order.where)

    def end(self) -> None:
        """End it, whatever it does."""
        self._ending()

    def set_aside(self) -> None:
        """End it between two blocks; whoever wants the next one hears of it."""
        self._is_set_aside = True
        self.end()

    def _received(self) -> Any:
        if self._is_set_aside:
            raise _SetAsideError
        return self._connection.recv()

    def _has_no_more(self) -> bool:
        """Whether the file was decoded to its end, as a process says right after its last block."""
        try:
            return self._connection.poll(_SAYS_SO_WITHIN_S) and self._connection.recv() is None
        except (EOFError, OSError):
            return False

    def _end(self) -> Exception:
        self._child.join()
        code = self._child.exitcode or 0
        if code < 0 and -code in _BY_ITSELF:
            return _EndedByItselfError(_BY_ITSELF[signal.Signals(-code)])
        return _KilledError(code)


def _ended(child: BaseProcess, connection: Connection) -> None:
    child.kill()
    child.join()
    connection.close()


@dataclass(frozen=True)
class _Refusal:
    """Why a file was not decoded to its end, as the child says it."""

    words: str
    is_verdict: bool
    is_to_be_tried_again: bool = False
    """Whether it counts only when it is said again with nothing else being decoded."""
    kind: type[OrchestratorError] = BackendError
    """Of what is no verdict."""

    def error(self, where: Path | Place) -> Exception:
        if self.is_verdict:
            return UnreadableAudioError(where, self.words)
        return self.kind(self.words)


def _serve(connection: Connection, decode: Decode, memory_bytes: int) -> None:
    """The child: decode what is asked for until nobody asks any more."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # it ends with its parent
    os.environ["TOKIO_WORKER_THREADS"] = "1"  # else 66 MB a core, where its files are in a bucket
    _limit(resource.RLIMIT_AS, _address_space() + memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    with suppress(EOFError, ConnectionError):
        while True:
            order: _Order = connection.recv()
            used_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            _limit(resource.RLIMIT_CPU, ceil(used_s + order.cpu_s))
            connection.send(_answer(connection, decode, order))


def _answer(connection: Connection, decode: Decode, order: _Order) -> _Refusal | None:
    """Send a file's blocks; what ends them."""
    try:
        for block in decode(
            order.where,
            lowpass_hz=order.lowpass_hz,
            channels=order.channels,
            first=order.first,
            on_notice=connection.send,
        ):
            connection.send(block)
    except UnreadableAudioError as error:
        return _Refusal(error.reason, is_verdict=True)
    except OrchestratorError as error:
        return _Refusal(str(error), is_verdict=False, kind=type(error))
    except ImportError:  # which the machine lacks, not the file
        raise
    except Exception as error:  # noqa: BLE001 (whatever a library makes of a damaged file)
        return _Refusal(_words(error), is_verdict=True, is_to_be_tried_again=True)
    return None


def _words(error: Exception) -> str:
    """What a decoder does where it raises this."""
    words = " ".join(str(error).split())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "alloc" in words):
        return _TOO_MUCH_MEMORY
    kind = type(error).__name__
    return f"fails ({kind}: {words[:_MAX_WORDS]})" if words else f"fails ({kind})"


def _address_space() -> int:
    """Bytes of virtual memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _limit(which: int, value: int) -> None:
    """Lower or raise a soft limit, as far as the hard one lets it."""
    _, hard = resource.getrlimit(which)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (soft, hard))
