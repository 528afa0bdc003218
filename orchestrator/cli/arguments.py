"""Arguments that several verbs share, and what they name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orchestrator.control.cluster_choice import choose_cluster, open_store
from orchestrator.control.executor import Request, Started
from orchestrator.control.request import prepare
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.ledger.stuck_files import require_answer
from orchestrator.quantities import format_several
from orchestrator.spec.loader import load_cluster, require_name


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """``--cluster``."""
    parser.add_argument("--cluster", metavar="FILE", help="cluster file; found out when absent")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """``RECIPE --cluster --set --until``."""
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="recipe file")
    add_cluster(parser)
    parser.add_argument(
        "--set",
        metavar="K=V",
        action="append",
        default=[],
        dest="overrides",
        help="override one value: train.steps=100",
    )
    parser.add_argument(
        "--until",
        metavar="STAGE",
        help="only this stage and what it needs: tokenize, where units are all that is wanted",
    )


def add_run(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """``RUN --cluster``."""
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?" if optional else None,
        help="a run's name, or its folder's path or URL",
    )
    add_cluster(parser)


def add_watch(parser: argparse.ArgumentParser) -> None:
    """``--watch``."""
    parser.add_argument(
        "--watch", action="store_true", help="go on until the run ends; Ctrl-C leaves it running"
    )


def prepared(options: argparse.Namespace) -> Request:
    """The plan that a recipe's arguments ask for; says on stderr which cluster was chosen."""
    if not options.recipe.is_file():
        what = "is no file" if options.recipe.exists() else "no such recipe"
        raise RequestError(f"{options.recipe}: {what}; check the path")
    name = getattr(options, "name", None)
    if name is not None:
        require_name(name, where="--name")
    cluster_file, why = choose_cluster(options.cluster, options.recipe)
    print(f"cluster: {cluster_file} ({why})", file=sys.stderr)
    return prepare(
        options.recipe, cluster_file, options.overrides, name, until=options.until, why=why
    )


def store_of(options: argparse.Namespace) -> Store:
    """The store of the cluster that ``--cluster`` or the environment names."""
    cluster_file, _ = choose_cluster(options.cluster, None)
    return open_store(load_cluster(cluster_file))


def run_and_store(options: argparse.Namespace) -> tuple[RunFolder, Store]:
    """The run that ``RUN`` names, and the store it lies in. Raises RequestError for none."""
    return named_run(options, options.run)


def named_run(options: argparse.Namespace, name: str) -> tuple[RunFolder, Store]:
    """As `run_and_store`, of one of several names."""
    if not name.strip():
        raise RequestError("RUN: empty; `orchestrator status` lists the runs")
    if is_folder(name):
        run = RunFolder(Storage(_url_of(name)))
        store = Store.open(run.storage.url.rsplit("/", 2)[0])
    else:
        store = store_of(options)
        run = RunFolder(store.run_storage(name))
    run.plan()
    return run, store


def say_if_moved(run: RunFolder) -> None:
    """Say on stderr that what is read here is what a run has left behind."""
    if moved := run.moved:
        print(f"run {run.name}: {moved.words}; this is what it left here", file=sys.stderr)


def is_folder(run: str) -> bool:
    """Whether ``RUN`` is a folder's path or URL, and no name."""
    return "/" in run or run in (".", "..")


def _url_of(run: str) -> str:
    """The URL of a run's folder, without links where that is a path. Raises BackendError."""
    if "://" in run:
        return run
    require_answer(path := Path(run).absolute())
    return str(path.resolve())


def started_line(started: Started) -> str:
    """What starting a run came to, in words."""
    if started.outcome == "started":
        jobs = format_several(started.num_jobs, "job")
        begun = f"{jobs} submitted" if started.num_jobs else "supervisor started"
    else:
        begun = {
            "done": "everything is done",
            "running": "already running",
            "hopeless": "nothing is left that could be resumed",
        }[started.outcome]
    return "; ".join((begun, *started.remarks))
