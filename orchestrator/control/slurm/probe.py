"""A job of `orchestrator doctor`: says what a node has, then that it heard a signal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.backends.slurm_allocation import Allocation
from orchestrator.control.job import run_parser
from orchestrator.control.requirements import JOB_PACKAGES, num_gpus, version_of
from orchestrator.errors import OrchestratorError, os_words
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.spec.loader import resolve_env

FOUND = "found.json"
HEARD = "heard.json"
TIMEOUT_S = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Write what is found into the probe's folder of the store."""
    options = _parse(argv)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    folder = Storage(options.store).at("doctor", options.run)
    found = {
        "node": Allocation.current().node,
        "python": f"{sys.version.split()[0]} at {sys.executable}",
        "packages": {name: version_of(name) for name in JOB_PACKAGES},
        "gpus": given_gpus(),
        "scratch": unwritable(options.scratch),
        "unseen": [folder for folder in options.folder if not _is_seen(folder)],
    }
    folder.replace(FOUND, to_json(found))
    heard = signal.sigtimedwait({signal.SIGUSR2}, TIMEOUT_S)
    if heard is None:
        return 1
    folder.replace(HEARD, to_json({"signal": signal.Signals(heard.si_signo).name}))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = run_parser(__doc__)
    parser.add_argument("--scratch", default="", help="where checkpoints are to be written")
    parser.add_argument("--folder", action="append", default=[], help="what nodes are to see")
    return parser.parse_args(argv)


def unwritable(scratch: str) -> str:
    """Why a cluster file's ``scratch`` takes nothing on this node; empty where it does."""
    if not scratch:
        return ""
    try:
        folder = Path(resolve_env(scratch, where="cluster: scratch"))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"probe")
    except OSError as error:
        return os_words(error)
    except OrchestratorError as error:
        return str(error)
    return ""


def _is_seen(folder: str) -> bool:
    with suppress(OrchestratorError):
        return Path(resolve_env(folder, where="cluster")).is_dir()
    return False


def given_gpus() -> int:
    """Accelerators that Slurm lets this job use; all of the node's where it restricts nothing."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return num_gpus() if visible is None else len([word for word in visible.split(",") if word])


if __name__ == "__main__":
    sys.exit(main())
