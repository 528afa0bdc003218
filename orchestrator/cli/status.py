"""``orchestrator status``: a run's stages and attempts, or all runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.table import Table

from orchestrator.cli.arguments import add_run, add_watch, run_and_store, store_of
from orchestrator.cli.terminal import Terminal
from orchestrator.cli.watch import run_view, watch
from orchestrator.control.executor import observe, observe_all
from orchestrator.errors import BackendError, ExitCode, RequestError, last_sentence
from orchestrator.ledger.goodput import goodput_line
from orchestrator.ledger.openmetrics import openmetrics
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.spending import spending_figures
from orchestrator.ledger.status import (
    BROKEN,
    Observed,
    RunState,
    RunStatus,
    run_progress,
    run_status,
)
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
    """Print the status of one run, or a line for each; 1 for a run that has ended in vain."""
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
    return ExitCode.FAILED if status.has_ended_in_vain else ExitCode.DONE


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
    if figures := spending_figures(status.spending):
        yield f"spent: {', '.join(figures)}"


def _all(store: Store, *, as_json: bool) -> int:
    names = store.runs()
    if not names:
        print(f"no run in {store.storage.url}; --cluster names another store", file=sys.stderr)
    folders = [RunFolder(store.run_storage(name)) for name in names]
    observed, unreadable = _observed(folders)
    read = run_status if as_json else run_progress
    rows: dict[str, RunStatus | None] = {}
    for folder in folders:
        try:
            if folder.name not in unreadable and folder.exists():
                rows[folder.name] = read(folder, store, observed[folder.name])
        except BROKEN as error:
            unreadable[folder.name] = last_sentence(error)
    rows |= dict.fromkeys(unreadable)
    if as_json:
        found = [
            s.to_json() if s else _no_status(n, unreadable[n]) for n, s in sorted(rows.items())
        ]
        print(json.dumps(found, indent=1))
    else:
        terminal = Terminal()
        terminal.print(_table([status for _, status in sorted(rows.items()) if status]))
        for status in (s for _, s in sorted(rows.items()) if s):
            if status.moved:
                terminal.print(f"{status.run}: {status.moved.words}", soft_wrap=True)
        for name, why in sorted(unreadable.items()):
            terminal.print(f"{name}: unreadable: {why}", soft_wrap=True)
    if problem := next((o.problem for o in observed.values() if o.problem), ""):
        raise BackendError(f"{problem}; shown is what was last known")
    return 0


def _observed(folders: Sequence[RunFolder]) -> tuple[dict[str, Observed], dict[str, str]]:
    """How the runs stand, and why some cannot be read: one that is damaged hides no other."""
    unreadable: dict[str, str] = {}
    readable: list[RunFolder] = []
    for folder in folders:
        try:
            if folder.exists():
                folder.cluster()
                readable.append(folder)
        except BROKEN as error:
            unreadable[folder.name] = last_sentence(error)
    try:
        return observe_all(readable), unreadable
    except BROKEN:
        return _observed_alone(readable, unreadable), unreadable


def _observed_alone(
    folders: Sequence[RunFolder], unreadable: dict[str, str]
) -> dict[str, Observed]:
    observed = {}
    for folder in folders:
        try:
            observed[folder.name] = observe(folder)
        except BROKEN as error:
            unreadable[folder.name] = last_sentence(error)
    return observed


def _no_status(name: str, why: str) -> dict[str, Any]:
    """The row of a run that cannot be read in ``status --json``."""
    return {"run": name, "state": "unreadable", "backend": "", "problem": why, "stages": []}


def _table(statuses: Iterable[RunStatus]) -> Table:
    table = Table("run", "state", "backend", "stages done", box=None, pad_edge=False)
    for status in statuses:
        done = sum(s.state is RunState.SUCCEEDED for s in status.stages)
        figures = f"{done}/{len(status.stages)}"
        table.add_row(status.run, status.shown_state, status.backend, figures)
    return table
