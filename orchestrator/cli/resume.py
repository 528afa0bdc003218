"""``orchestrator resume``: continue a run that stopped, here or on another cluster."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orchestrator.cli.arguments import add_run, add_watch, run_and_store, started_line
from orchestrator.cli.terminal import interruptible, what_stands
from orchestrator.cli.watch import watch
from orchestrator.control.request import move, start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN [--cluster F] [--watch]."""
    add_run(parser)
    parser.epilog = (
        "--cluster names the cluster whose store holds RUN, and the run goes on there: what was "
        "submitted elsewhere does not go on"
    )
    add_watch(parser)


def run(options: argparse.Namespace) -> int:
    """See to it that what is left is worked on."""
    with interruptible(lambda: "nothing was done"):
        folder, store = run_and_store(options)
    with interruptible(lambda: what_stands(folder)):
        if options.cluster and move(folder, Path(options.cluster)):
            print(f"run {folder.name}: moves to {options.cluster}", file=sys.stderr)
        print(f"run {folder.name}: {started_line(start(folder, store))}", file=sys.stderr)
    return watch(folder, store) if options.watch else 0
