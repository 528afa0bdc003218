"""``orchestrator cancel``: stop a run, or one stage of it."""

from __future__ import annotations

import argparse
import sys

from orchestrator.cli.arguments import add_run, run_and_store
from orchestrator.cli.terminal import interruptible
from orchestrator.control.executor import executor_of
from orchestrator.ledger.run import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN [STAGE] [--cluster F]."""
    add_run(parser)
    parser.add_argument(
        "stage",
        metavar="STAGE",
        nargs="?",
        help="name of a stage, a node or an instance; the whole run when absent",
    )


def run(options: argparse.Namespace) -> int:
    """Stop it, and return when that is done."""
    with interruptible(lambda: "nothing was cancelled"):
        folder, _ = run_and_store(options)
        folder.chosen(options.stage)
        executor = executor_of(folder.cluster())
        observed = executor.observe([folder])[folder.name]
    if not observed.is_alive and not observed.has_jobs_left:
        folder.require_here("cancel")
        print(f"run {folder.name}: not running; nothing to cancel", file=sys.stderr)
        return 0
    with interruptible(lambda: _asked(folder)):
        executor.cancel(folder, options.stage)
    print(f"run {folder.name}: {options.stage or 'everything'} cancelled", file=sys.stderr)
    return 0


def _asked(run: RunFolder) -> str:
    return f"it may stop all the same; `orchestrator status {run.name}` shows whether it has"
