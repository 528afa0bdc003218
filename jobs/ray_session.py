"""How a process of ours joins the run's Ray session, or starts a private one."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jobs.ray_nodes import ANOTHER_HEAD, is_another_head
from jobs.training.rank import last_line
from orchestrator.errors import Cause, ExitCode, RunFailedError
from orchestrator.ledger.run import CODE, RAY_CODE

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0
_ANSWER_TIMEOUT_S = 3.0


@contextmanager
def session(address: str, num_cpus: int, *, log_to_driver: bool = True) -> Iterator[None]:
    """A connection to the run's Ray session at ``address``; a private one here when that is empty.

    Where the process is in a session already, that one goes on. Left again at once: Ray ends a
    process that is still connected when its cluster goes away. Raises RunFailedError with cause
    ``ray_lost`` when nobody answers at the address, or its token is gone.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    # Unix socket paths are limited to 107 bytes, so the folder's name is short.
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        private: dict[str, Any] = {
            "num_cpus": num_cpus,
            "_temp_dir": folder,
            "include_dashboard": False,
        }
        with _joining(address):
            ray.init(
                address=address or "local",
                log_to_driver=log_to_driver,
                logging_level=logging.WARNING,
                runtime_env=_code(),
                **({} if address else private),
            )
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)  # ray.init puts its own in place of the stage's
        try:
            with _watched_head(address) if address else nullcontext():
                yield
        finally:
            ray.shutdown()


@contextmanager
def _watched_head(address: str) -> Iterator[None]:
    """Ends this process when its head is replaced, as Ray ends one whose head stays away."""
    is_left = threading.Event()
    watch = threading.Thread(target=_watch_head, args=(address, is_left), daemon=True)
    watch.start()
    try:
        yield
    finally:
        is_left.set()
        watch.join()


def _watch_head(address: str, is_left: threading.Event) -> None:
    while not is_left.wait(_LOOK_EVERY_S):
        if is_another_head(_ANSWER_TIMEOUT_S):
            # The policy knows the cause by the word; what this thread raises nobody would see.
            log.error("ray: the head at %s was started anew (%s)", address, ANOTHER_HEAD)
            os._exit(ExitCode.FAILED)


def _code() -> dict[str, list[str]]:
    """What takes our code to nodes that do not have it."""
    folder = os.environ.get(RAY_CODE, "")
    return {"py_modules": [str(Path(folder, name)) for name in CODE]} if folder else {}


@contextmanager
def _joining(address: str) -> Iterator[None]:
    """Joins the run's session, which was up when this process was started.

    Ray puts a session that has gone away since in many words: no token, no connection, no node.
    """
    try:
        yield
    except Exception as error:
        if not address:
            raise
        raise RunFailedError(
            f"ray: the session at {address} went away ({last_line(error)}); it is started anew",
            cause=Cause.RAY_LOST,
        ) from error
