"""A process on each node that has imported what ranks need, and forks them when it is asked to.

Imports take a rank longer than all else before its first step; this way a node pays them once, for
all of its ranks in all attempts. Whoever stays on the node between attempts starts the standby and
names its address in the environment: the supervisor, or the job's task where a job has more nodes.
It ends with that process. Ranks that it cannot fork are started as processes of their own.

Nothing is done here that a fork would break: no store, no Ray, no operation of torch, no CUDA.

Who asks and is answered: `jobs.training.forked_rank`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import FrameType

from jobs.training.forked_rank import FORKED, Request, abstract
from jobs.training.process_ranks import train_child
from orchestrator.errors import ExitCode
from orchestrator.ledger.run import STANDBY

_FIRST = (
    "jobs.training.loop",
    "tensorboardX",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
)
"""What every rank imports. DeepSpeed needs to be told the device before."""
_WARNINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Standby:
    """Forks ranks and tells how they end."""

    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(abstract(address))
        self._listener.listen(64)
        self._parent = os.getppid()
        for number in _WARNINGS:
            signal.signal(number, self._warn)
        self._ranks: dict[int, socket.socket] = {}
        self._device = ""

    def import_first(self, modules: Sequence[str] = _FIRST) -> None:
        """Import what every rank needs, while requests may already be waiting."""
        # Or looking for devices would begin with CUDA, which forks could not go on with.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        for module in modules:
            import_module(module)
        gc.freeze()

    def serve(self) -> Request:
        """Fork a rank for each request; returns its request, in the rank's own process alone."""
        with selectors.PollSelector() as selector:  # of which a fork shares nothing
            woken, wakes = socket.socketpair()
            wakes.setblocking(False)
            signal.signal(signal.SIGCHLD, lambda *_: None)
            signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
            selector.register(self._listener, selectors.EVENT_READ, self._accept)
            selector.register(woken, selectors.EVENT_READ, partial(self._reap, woken))
            self._selector = selector
            while True:
                key, _ = selector.select()[0]  # one at a time: the next may concern what it closes
                request: Request | None = key.data()
                if request:
                    break
            for key in tuple(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]  # all are sockets
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_WARNINGS):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WARNINGS)
        return request

    def _warn(self, _number: int, _frame: FrameType | None) -> None:
        """Schedulers warn all processes of a job, and the ranks have to save; unless it is over."""
        if os.getppid() != self._parent:
            os._exit(ExitCode.ORPHANED)

    def _accept(self) -> Request | None:
        connection, _ = self._listener.accept()
        try:
            request = Request.read(connection)
            self._import_for(request)
            pid = _fork()
        except (OSError, ValueError, TypeError, ImportError) as error:
            sys.stderr.write(f"no rank is forked: {error}\n")
            connection.close()
            return None
        self._selector.register(
            connection, selectors.EVENT_READ, partial(self._pass_on, connection, pid)
        )
        if pid == 0:
            return request
        self._ranks[pid] = connection
        with suppress(OSError):
            connection.sendall(FORKED)
        return None

    def _import_for(self, request: Request) -> None:
        """Import what this rank needs beyond the others. Raises ImportError, ValueError."""
        config = json.loads(request.config)
        device, module = config["device"], config["task"].partition(":")[0]
        if self._device != device:
            if self._device:
                raise ValueError(f"its libraries are those of another device, {self._device}")
            if device == "cpu":
                os.environ["DS_ACCELERATOR"] = "cpu"
            import_module("deepspeed")
            if device == "cuda" and not cuda_survives_a_fork():
                raise ValueError("something here has begun with CUDA")
            self._device = device
        import_module(module)
        gc.freeze()

    def _pass_on(self, connection: socket.socket, pid: int) -> None:
        """Send a rank the signals that it is sent, the last when nobody is left to send any."""
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        for number in numbers or (signal.SIGKILL,):
            os.kill(pid, number)  # not reaped yet, so that it is no other process
        if not numbers:
            self._selector.unregister(connection)

    def _reap(self, woken: socket.socket) -> None:
        woken.recv(64)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                connection = self._ranks.pop(pid)
                with suppress(KeyError):
                    self._selector.unregister(connection)
                with suppress(OSError):
                    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                connection.close()


def _fork() -> int:
    """Fork, the child with warnings held back until it can obey: Python drops those on the way."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WARNINGS)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WARNINGS)
    return pid


def cuda_survives_a_fork() -> bool:
    """Whether a fork of this process can use CUDA: not when something here has begun with it.

    ``cuInit`` says so without taking any of a device's memory.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        with suppress(OSError):
            code = ctypes.CDLL("libcuda.so.1").cuInit(0) != 0
        os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def main() -> None:
    """Serve at the address in the environment; goes on as each of the ranks."""
    standby = Standby(os.environ[STANDBY])
    standby.import_first()
    request = standby.serve()
    request.become()
    train_child(request.config)


if __name__ == "__main__":
    main()
