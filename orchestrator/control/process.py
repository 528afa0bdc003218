"""What every process that controls a run begins with: its arguments and its log."""

from __future__ import annotations

import argparse
import logging

from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store


def run_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that name a run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--store", required=True, help="URL of the store")
    parser.add_argument("--run", required=True, help="name of the run")
    return parser


def store_and_run(options: argparse.Namespace) -> tuple[Store, RunFolder]:
    """The store and the run that the arguments name."""
    store = Store.open(options.store)
    return store, RunFolder(store.run_storage(options.run))


def log_to_stderr() -> None:
    """Write our own lines to stderr with the time, and of libraries only warnings."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for name in ("orchestrator", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)
