"""``orchestrator export``: a run's models for others to use, or its units for other trainers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orchestrator.cli.arguments import add_run, run_and_store
from orchestrator.control.executor import observe
from orchestrator.control.export import FORMATS, export_units
from orchestrator.control.export_model import export_models
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import BROKEN, Observed
from orchestrator.ledger.store import Store
from orchestrator.quantities import SAMPLE_RATE_HZ


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN (--to DIR [--variant V] | --units DIR [--format F]) [--cluster F]."""
    add_run(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--to",
        metavar="DIR",
        type=Path,
        help="folder to be made for the trained model, in Hugging Face format with its codebook, "
        "lineage and model card; for several models, one in it for each",
    )
    what.add_argument(
        "--units",
        metavar="DIR",
        type=Path,
        help="folder to be made for the units; for several codebooks, one in it for each",
    )
    parser.add_argument("--variant", metavar="V", help="of --to: the model of this variant alone")
    parser.add_argument("--format", choices=FORMATS, help=f"of --units: {FORMATS[0]} when absent")


def run(options: argparse.Namespace) -> int:
    """Export, and print where to. Raises RequestError for options that do not go together."""
    folder, store = run_and_store(options)
    if options.to is not None:
        if options.format:
            raise RequestError("--format: is of --units; a model is in Hugging Face format")
        _models(folder, store, options.to, options.variant)
    else:
        if options.variant:
            raise RequestError("--variant: is of --to; units are those of a codebook")
        _units(folder, store, options.units, options.format or FORMATS[0])
    return 0


def _models(folder: RunFolder, store: Store, to: Path, variant: str | None) -> None:
    try:
        observed = observe(folder)
    except BROKEN as error:  # what is finished can be had all the same
        observed = Observed(is_alive=False, problem=f"Who is at work cannot be told ({error}).")
    exported = set[str]()
    for made, whose in export_models(folder, store, observed, to, variant):
        exported.add(whose)
        print(f"model of {whose}", file=sys.stderr)
        print(made)
    trained = {v["instances"].get("train"): v["name"] for v in reversed(folder.plan().variants)}
    for whose in () if variant else sorted(set(trained.values()) - exported):
        print(f"model of {whose}: not finished; export again when it is", file=sys.stderr)


def _units(folder: RunFolder, store: Store, to: Path, form: str) -> None:
    for made, about in export_units(folder, store, to, form):
        for split in ("train", "valid", "test"):
            counts = about["splits"][split]
            hours = counts["num_samples"] / SAMPLE_RATE_HZ / 3600
            held = f"{counts['num_utterances']:,} utterances, {counts['num_tokens']:,} units"
            print(f"{split}: {held}, {hours:.2f} h", file=sys.stderr)
        print(made)
