"""``orchestrator status``: a run's stages and attempts, or all runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from rich.table import Table

from orchestrator.cli.arguments import add_run, add_watch, run_and_store, store_of
from orchestrator.cli.terminal import Terminal
from orchestrator.cli.watch import run_view, watch
from orchestrator.control.executor import observe, observe_all
from orchestrator.errors import BackendError, RequestError
from orchestrator.ledger.goodput import goodput_line
from orchestrator.ledger.openmetrics import openmetrics
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import RunState, RunStatus, run_progress, run_status
from orchestrator.ledger.store import Store
from orchestrator.quantities import format_duration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[RUN] [--watch] [--json | --openmetrics] [--cluster F]."""
    add_run(parser, optional=True)
    add_watch(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document on stdout")
    form.add_argument(
        "--openmetrics", action="store_true", help="RUN's figures in the format Prometheus reads"
    )


def run(options: argparse.Namespace) -> int:
    """Print the status of one run, or a line for each."""
    form = "--json" if options.json else "--openmetrics" if options.openmetrics else ""
    if options.watch and form:
        raise RequestError(f"--watch: not with {form}, which is one document; leave one out")
    if options.watch and options.run is None:
        raise RequestError("--watch: no RUN given; name one of `orchestrator status`")
    if options.run is None:
        if options.openmetrics:
            raise RequestError("--openmetrics: no RUN given; name one of `orchestrator status`")
        return _all(store_of(options), as_json=options.json)
    folder, store = run_and_store(options)
    if options.watch:
        return watch(folder, store)
    status = run_status(folder, store, observe(folder))
    _show(status, options)
    if status.problem:
        raise BackendError(f"{status.problem}; shown is what was last known")
    return 0


def _show(status: RunStatus, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(status.to_json(), indent=1))
    elif options.openmetrics:
        print(openmetrics(status), end="")
    else:
        console = Terminal()
        console.print(run_view(status), "", *_figures(status), sep="\n")


def _figures(status: RunStatus) -> Iterator[str]:
    """When checkpoints are written, and where the time went."""
    for stage in status.stages:
        if interval := stage.checkpoint_interval:
            facts = (f"{n.removesuffix('_s')} {format_duration(s)}" for n, s in interval.items())
            yield f"{stage.instance.id}: checkpoints by time: {', '.join(facts)}"
    yield goodput_line(status.goodput)


def _all(store: Store, *, as_json: bool) -> int:
    names = store.runs()
    if not names:
        print(f"no run in {store.storage.url}; --cluster names another store", file=sys.stderr)
    folders = [f for name in names if (f := RunFolder(store.run_storage(name))).exists()]
    observed = observe_all(folders)
    if as_json:
        rows = [run_status(f, store, observed[f.name]).to_json() for f in folders]
        print(json.dumps(rows, indent=1))
    else:
        table = Table("run", "state", "backend", "stages done", box=None, pad_edge=False)
        for status in (run_progress(f, store, observed[f.name]) for f in folders):
            done = sum(s.state is RunState.SUCCEEDED for s in status.stages)
            table.add_row(status.run, status.state, status.backend, f"{done}/{len(status.stages)}")
        Terminal().print(table)
    if problem := next((o.problem for o in observed.values() if o.problem), ""):
        raise BackendError(f"{problem}; shown is what was last known")
    return 0
