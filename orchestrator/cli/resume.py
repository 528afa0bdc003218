"""``orchestrator resume``: continue a run that stopped, here or where another cluster says."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path

from orchestrator.cli.arguments import (
    add_run,
    add_watch,
    is_folder,
    run_and_store,
    started_line,
    store_of,
)
from orchestrator.cli.terminal import interruptible, what_stands
from orchestrator.cli.watch import watch
from orchestrator.control.cluster_choice import choose_cluster, open_store
from orchestrator.control.move import Listener, Place, bring, where_it_lies
from orchestrator.control.request import interrupted, move, start
from orchestrator.errors import OrchestratorError, RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.quantities import format_bytes
from orchestrator.spec.loader import load_cluster

_LINE_EVERY_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN [--cluster F] [--watch] | --interrupted [--cluster F]."""
    add_run(parser, optional=True)
    parser.add_argument(
        "--interrupted",
        action="store_true",
        help="in place of RUN: all runs that went away with their machine or with Ray; the last "
        "line of a head's start-up commands",
    )
    parser.epilog = (
        "with --cluster the run goes on there: where that names another store, the run moves with "
        "all it has; a name is looked up there first, then in the store of the usual cluster file"
    )
    add_watch(parser)


def run(options: argparse.Namespace) -> int:
    """See to it that what is left is worked on."""
    if options.interrupted == bool(options.run):
        raise RequestError("RUN: give the name of a run, or --interrupted for all that went away")
    if options.interrupted and options.watch:
        raise RequestError("--watch: follows one run; leave it out where --interrupted starts many")
    if options.interrupted:
        return _resume_interrupted(options)
    with interruptible(lambda: "nothing was done"):
        place = _named(options)
    if options.cluster:
        with interruptible(lambda: "the same command goes on from here"):
            place = bring(where_it_lies(place), Path(options.cluster), _listener())
    folder, store = place.run, place.store
    with interruptible(lambda: what_stands(folder)):
        if options.cluster and move(folder, Path(options.cluster)):
            print(f"run {folder.name}: moves to {options.cluster}", file=sys.stderr)
        print(f"run {folder.name}: {started_line(start(folder, store))}", file=sys.stderr)
    return watch(folder, store) if options.watch else 0


def _resume_interrupted(options: argparse.Namespace) -> int:
    """Start each that went away; one that cannot be is said, and keeps no other from it."""
    cluster_file, _ = choose_cluster(options.cluster, None)
    cluster = load_cluster(cluster_file)
    store, worst = open_store(cluster), 0
    with interruptible(lambda: "the same command goes on from here"):
        if not (runs := interrupted(store, cluster)):
            print(f"no run in {store.storage.url} was interrupted", file=sys.stderr)
        for folder in runs:
            try:
                words = started_line(start(folder, store))
            except OrchestratorError as error:
                words, worst = str(error), max(worst, error.exit_code)
            print(f"run {folder.name}: {words}", file=sys.stderr)
    return worst


def _named(options: argparse.Namespace) -> Place:
    """Where the run was last seen: in the cluster's store, else in the usual cluster file's."""
    if is_folder(options.run) or not options.cluster:
        return Place(*run_and_store(options))
    there = store_of(options)
    found = Place(RunFolder(there.run_storage(options.run)), there)
    if not options.run.strip() or found.run.exists():
        return Place(*run_and_store(options))
    try:
        usual, _ = choose_cluster(None, None)
        here = open_store(load_cluster(usual))
    except RequestError:
        looked = there.storage.url
    else:
        looked = f"{there.storage.url} and {here.storage.url}"
        found = Place(RunFolder(here.run_storage(options.run)), here)
    if not found.run.exists():
        raise RequestError(
            f"{options.run}: no such run in {looked}; give the path or URL of its folder"
        )
    return found


def _listener() -> Listener:
    """Lines on stderr; of what is copied one now and then."""
    lock, shown_at = threading.Lock(), time.monotonic()

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown_at
        with lock:
            if time.monotonic() - shown_at >= _LINE_EVERY_S:
                shown_at = time.monotonic()
                say(f"{what}: {format_bytes(done)} of {format_bytes(total)} copied")

    return Listener(say=say, show=show)
