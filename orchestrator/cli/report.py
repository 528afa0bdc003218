"""``orchestrator report``: write a run's report page."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.cli.arguments import add_run, run_and_store, say_if_moved
from orchestrator.control.executor import observe
from orchestrator.ledger.status import BROKEN, Observed
from orchestrator.report.page import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN [--cluster F] [-o FILE]."""
    add_run(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="where to; the run's folder when absent"
    )


def run(options: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    folder, store = run_and_store(options)
    say_if_moved(folder)
    try:
        observed = observe(folder)
    except BROKEN as error:  # there is a page all the same
        observed = Observed(is_alive=False, problem=f"Who is at work cannot be told ({error}).")
    print(write_report(folder, store, observed, options.output))
    return 0
