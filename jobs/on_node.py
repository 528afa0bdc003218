"""A stage of one process on a node of the Ray cluster, which has what it asks for.

``python -m jobs.on_node STAGE ...`` is to its supervisor what ``python -m jobs.STAGE ...`` is: it
prints what that prints, passes a warning on to it, and ends as it does. The head runs nothing else.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jobs
import orchestrator
from jobs.attempt import PARENT, StopRequestedError, as_process, parse
from jobs.awaited import Awaited
from jobs.ray_nodes import dead_nodes
from jobs.ray_session import session
from orchestrator.errors import Cause, ExitCode, RunFailedError
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store

_LOOK_EVERY_S = 1.0
_MAX_BEGINNINGS = 4
_PIECE_BYTES = 1 << 20

log = logging.getLogger(__name__)


class Process:
    """The actor: a process of its node, which ends with it."""

    def __init__(self, module: str, words: Sequence[str]) -> None:
        packages = dict.fromkeys(str(Path(p.__path__[0]).parent) for p in (orchestrator, jobs))
        own = {
            "PYTHONPATH": os.pathsep.join([*packages, os.environ.get("PYTHONPATH", "")]),
            PARENT: str(os.getpid()),
        }
        # Nameless: whatever ends, nothing is left.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed once all is told)
        self._num_read = 0
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", module, *words],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **own},
        )

    def node(self) -> str:
        """The id of the node that it is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def look(self) -> tuple[bytes, int | None]:
        """What it has printed since, and its exit code once it has ended and said all."""
        code = self._process.poll()
        # The process writes at the file's own position, which this must not move.
        said = os.pread(self._output.fileno(), _PIECE_BYTES, self._num_read)
        self._num_read += len(said)
        if said:
            return said, None
        if code is not None:
            self._output.close()
        return b"", code

    def warn(self) -> None:
        """Ask it to end."""
        self._process.terminate()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one attempt of the stage that the first word names; its exit code."""
    stage, *words = sys.argv[1:] if argv is None else argv
    options = parse(stage, words)
    return as_process(options, lambda: _elsewhere(stage, words, options))


def _elsewhere(stage: str, words: Sequence[str], options: argparse.Namespace) -> int:
    import ray

    store = Store.open(options.store)
    run = RunFolder(store.run_storage(options.run))
    attempt = AttemptFolder.of(run.storage, options.instance, options.attempt)
    cluster = run.cluster()
    resources = cluster.resources_of(stage, run.plan().instance(options.instance).node)
    awaited = Awaited(stage, deadline_s=cluster.pending_deadline_s, note=attempt.note_waits)
    with session(os.environ.get("RAY_ADDRESS", ""), resources.cpus_per_worker):
        there: Any = ray.remote(Process).options(
            num_cpus=resources.cpus_per_worker,
            num_gpus=resources.gpus_per_node,
            max_restarts=0,
            label_selector=cluster.node_selector("data"),
        )
        return followed(lambda: there.remote(f"jobs.{stage}", list(words)), awaited)


class NeverAnsweredError(RunFailedError):
    """A `Process` that was lost before it could say where it is."""


def followed(begin: Callable[[], Any], awaited: Awaited) -> int:
    """`follow` what is begun; anew where a node took it along before it had answered.

    For some seconds Ray goes on to send actors to a node that has gone.
    """
    for left in reversed(range(_MAX_BEGINNINGS)):
        try:
            return follow(begin(), awaited)
        except NeverAnsweredError as error:
            if not left:
                raise
            log.warning("%s; begun anew", error)
            time.sleep(_LOOK_EVERY_S)
    raise AssertionError("the last time ends in one way or the other")


def follow(process: Any, awaited: Awaited) -> int:
    """Print what a `Process` prints until it ends; its exit code.

    Raises RunFailedError when no node comes for it, or its node goes, or a signal ends it;
    NeverAnsweredError when it was lost before it said on which node it is.
    """
    import ray
    from ray.exceptions import RayActorError

    started, node, is_warned = process.node.remote(), "", False
    while not ray.wait([started], timeout=_LOOK_EVERY_S)[0]:
        awaited.look(1, is_held_up=True)
    awaited.look(0, is_held_up=False)
    while True:
        try:
            node = node or ray.get(started)
            said, code = ray.get(process.look.remote())
            sys.stdout.buffer.write(said)
            sys.stdout.flush()
            if code is not None:
                return _ended(code)
            if not said:
                time.sleep(_LOOK_EVERY_S)
        except StopRequestedError:
            is_warned = True
            process.warn.remote()
        except RayActorError as error:
            if is_warned:
                return ExitCode.STOPPED
            gone = node in dead_nodes()
            raise (RunFailedError if node else NeverAnsweredError)(
                f"the process on its node was lost with {'it' if gone else 'its worker'} ({error})",
                cause=Cause.NODE_LOST if gone else Cause.WORKER_LOST,
            ) from None


def _ended(code: int) -> int:
    if code < 0:
        raise RunFailedError(f"signal {-code} ended the process on its node", cause=Cause.KILLED)
    return code


if __name__ == "__main__":
    sys.exit(main())
