"""``orchestrator report``: write a run's report page, or one that compares several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.cli.arguments import add_cluster, named_run, say_if_moved
from orchestrator.control.executor import observe
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import BROKEN, Observed
from orchestrator.report.comparison import PAGE, write_comparison
from orchestrator.report.page import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN [RUN ...] [--cluster F] [-o FILE]."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="a run's name, or its folder's path or URL; several are compared with the first",
    )
    add_cluster(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help=f"where to; when absent the run's folder, of several runs {PAGE} here",
    )


def run(options: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    found = [named_run(options, name) for name in options.runs]
    for folder, _ in found:
        say_if_moved(folder)
    observed = [(folder, store, _observed(folder)) for folder, store in found]
    if len(observed) == 1:
        print(write_report(*observed[0], options.output))
    else:
        print(write_comparison(observed, options.output or PAGE))
    return 0


def _observed(folder: RunFolder) -> Observed:
    try:
        return observe(folder)
    except BROKEN as error:  # there is a page all the same
        return Observed(is_alive=False, problem=f"Who is at work cannot be told ({error}).")
