"""``orchestrator cancel``: stop a run, or one stage of it."""

from __future__ import annotations

import argparse
import sys
import time

from orchestrator.cli.arguments import add_run, run_and_store
from orchestrator.errors import RequestError, RunFailedError
from orchestrator.ledger.run import RunFolder

SLACK_S = 60.0
"""Added to the time that jobs get to save."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN [STAGE] [--cluster F]."""
    add_run(parser)
    parser.add_argument(
        "stage",
        metavar="STAGE",
        nargs="?",
        help="stage name or instance id; the whole run when absent",
    )


def run(options: argparse.Namespace) -> int:
    """Ask the supervisor to stop, and wait until it has."""
    folder, _ = run_and_store(options)
    known = {name for i in folder.plan().instances for name in (i.id, i.stage)}
    if options.stage and options.stage not in known:
        raise RequestError(
            f"{options.stage}: no such stage in {folder.name}; it has {', '.join(sorted(known))}"
        )
    if not folder.live_supervisor():
        print(f"run {folder.name}: not running; nothing to cancel", file=sys.stderr)
        return 0
    folder.request_cancel(options.stage)
    _wait(folder, options.stage)
    print(f"run {folder.name}: {options.stage or 'everything'} cancelled", file=sys.stderr)
    return 0


def _wait(folder: RunFolder, stage: str | None) -> None:
    timeout_s = folder.cluster().retry.notice_s + SLACK_S
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not folder.live_supervisor() or (stage and _has_stopped(folder, stage)):
            return
        time.sleep(0.2)
    raise RunFailedError(
        f"{folder.name}: still not stopped after {timeout_s:.0f} s; see `orchestrator status`"
    )


def _has_stopped(folder: RunFolder, stage: str) -> bool:
    chosen = [i for i in folder.plan().instances if stage in (i.id, i.stage)]
    return all(a.end is not None for i in chosen for a in folder.attempts(i.leader))
