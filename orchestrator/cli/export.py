"""``orchestrator export``: a run's units as files for other trainers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orchestrator.cli.arguments import add_run, run_and_store
from orchestrator.control.export import FORMATS, export_units
from orchestrator.quantities import SAMPLE_RATE_HZ


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN --units DIR --format F [--cluster F]."""
    add_run(parser)
    parser.add_argument(
        "--units",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder to be made for the units; for several codebooks, one in it for each",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0], help=f"{FORMATS[0]} when absent"
    )


def run(options: argparse.Namespace) -> int:
    """Export, and print where to."""
    folder, store = run_and_store(options)
    for made, about in export_units(folder, store, options.units, options.format):
        for split in ("train", "valid", "test"):
            counts = about["splits"][split]
            hours = counts["num_samples"] / SAMPLE_RATE_HZ / 3600
            held = f"{counts['num_utterances']:,} utterances, {counts['num_tokens']:,} units"
            print(f"{split}: {held}, {hours:.2f} h", file=sys.stderr)
        print(made)
    return 0
