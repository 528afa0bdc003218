"""``orchestrator resume``: continue a run that stopped."""

from __future__ import annotations

import argparse
import sys

from orchestrator.cli.arguments import add_run, run_and_store
from orchestrator.cli.watch import watch
from orchestrator.control.submit import ensure_supervised


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN [--cluster F] [--watch]."""
    add_run(parser)
    parser.add_argument(
        "--watch",
        action="store_true",
        help="show progress until the run ends; Ctrl-C leaves it running",
    )


def run(options: argparse.Namespace) -> int:
    """Start a supervisor where none is at work."""
    folder, store = run_and_store(options)
    print(f"run {folder.name}: {ensure_supervised(folder, store)}", file=sys.stderr)
    return watch(folder, store) if options.watch else 0
