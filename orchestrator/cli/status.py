"""``orchestrator status``: a run's stages and attempts, or all runs."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.table import Table

from orchestrator.cli.arguments import add_run, run_and_store, store_of
from orchestrator.cli.watch import stage_table, watch
from orchestrator.control.status import run_status
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[RUN] [--watch] [--json] [--cluster F]."""
    add_run(parser, optional=True)
    parser.add_argument(
        "--watch", action="store_true", help="go on until the run ends; Ctrl-C leaves it running"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(options: argparse.Namespace) -> int:
    """Print the status of one run, or a line for each."""
    if options.run is None:
        return _all(store_of(options), as_json=options.json)
    folder, store = run_and_store(options)
    if options.watch:
        return watch(folder, store)
    status = run_status(folder, store)
    if options.json:
        print(json.dumps(status, indent=1))
    else:
        Console().print(stage_table(status))
    return 0


def _all(store: Store, *, as_json: bool) -> int:
    folders = [f for name in store.runs() if (f := RunFolder(store.run_storage(name))).exists()]
    rows = [run_status(f, store) for f in folders]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table("run", "state", "backend", "stages done", box=None, pad_edge=False)
    for row in rows:
        done = sum(s["state"] == "succeeded" for s in row["stages"])
        table.add_row(row["run"], row["state"], row["backend"], f"{done}/{len(row['stages'])}")
    Console().print(table)
    return 0
