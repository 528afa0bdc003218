"""``orchestrator cluster``: start, look at or end the Ray cluster of a cluster file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.table import Table

from orchestrator.cli.terminal import Terminal, interruptible
from orchestrator.control.cluster_choice import open_store
from orchestrator.control.executor import ClusterState, LaunchedCluster, executor_of, observe_all
from orchestrator.errors import BackendError, OrchestratorError, RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.quantities import format_several
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import load_cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """up|status|down FILE [--yes] [--force]."""
    parser.add_argument(
        "act",
        metavar="up|status|down",
        choices=ACTS,
        help="up: start it, after saying what it costs an hour; status: its nodes and live runs; "
        "down: end all of its nodes",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="cluster file with ray.launcher")
    parser.add_argument("--yes", action="store_true", help="up: start it without asking")
    parser.add_argument(
        "--force",
        action="store_true",
        help="up, down: although runs are live on it; they save where they can, and `orchestrator "
        "resume` goes on with them",
    )


def run(options: argparse.Namespace) -> int:
    """Act on the cluster that the file's launcher describes."""
    if not options.file.is_file():
        raise RequestError(f"{options.file}: no such cluster file; check the path")
    cluster = load_cluster(options.file)
    launched = executor_of(cluster).launched(cluster, options.file.name)
    ACTS[options.act](options, cluster, launched)
    return 0


def _up(options: argparse.Namespace, cluster: Cluster, launched: LaunchedCluster) -> None:
    if launched.up_ends_runs and not options.force:
        _require_idle(cluster, launched, "starting it anew ends them")
    _say(f"{options.file}: {launched.price()}")
    if not options.yes:
        _require_consent()
    command = f"orchestrator cluster down {options.file}"
    with interruptible(lambda: f"the same command goes on; `{command}` ends what was started"):
        launched.up(_say)
    _say(f"{options.file}: is up until `{command}`; its workers come and go with the work")


def _down(options: argparse.Namespace, cluster: Cluster, launched: LaunchedCluster) -> None:
    if not options.force:
        _require_idle(cluster, launched, "this ends them")
    with interruptible(lambda: "some of its nodes may be left; the same command goes on"):
        launched.down(_say)
    _say(
        f"{options.file}: is down; {cluster.store} and all that is in it are still there, and so "
        "is what they cost"
    )


def _status(_: argparse.Namespace, cluster: Cluster, launched: LaunchedCluster) -> None:
    terminal, problem = Terminal(), ""
    try:
        state = launched.state()
        terminal.print(f"head: {state.head}", _table(state, cluster), sep="\n")
        for count in state.nodes:
            for words in count.problems:
                terminal.print(f"{count.type}: did not come: {words}", soft_wrap=True)
    except BackendError as error:
        problem = str(error)
    runs = _live_runs(cluster)
    terminal.print(f"live runs: {', '.join(runs) or 'none'}", soft_wrap=True)
    if problem:
        raise BackendError(problem)


ACTS: dict[str, Callable[[argparse.Namespace, Cluster, LaunchedCluster], None]] = {
    "up": _up,
    "status": _status,
    "down": _down,
}


def _table(state: ClusterState, cluster: Cluster) -> Table:
    table = Table("nodes", "alive", "pending", "most", "an hour", box=None, pad_edge=False)
    currency = cluster.prices.currency
    for count in state.nodes:
        kind = cluster.ray.node_types.get(count.type)
        price = kind.price_hour if kind else None
        table.add_row(
            count.type,
            str(count.alive),
            str(count.pending),
            str(kind.max_nodes) if kind else "",
            "" if price is None else f"{price * count.alive:,.2f} {currency}",
        )
    return table


def _live_runs(cluster: Cluster) -> list[str]:
    """Runs of the cluster's store that are alive on a backend of its kind. Raises BackendError."""
    store = open_store(cluster)
    folders = (RunFolder(store.run_storage(name)) for name in store.runs())
    here = [run for run in folders if run.exists() and not run.moved]
    same = [run for run in here if run.cluster().backend == cluster.backend]
    return [name for name, observed in observe_all(same).items() if observed.is_alive]


def _require_idle(cluster: Cluster, launched: LaunchedCluster, why: str) -> None:
    """Raise RequestError where runs are live on it, by its store or by its head."""
    runs = _live_runs(cluster)
    with suppress(OrchestratorError):  # it is not there, or not any more
        runs = [*dict.fromkeys((*runs, *launched.runs()))]
    if runs:
        raise RequestError(
            f"{format_several(len(runs), 'live run')} on it ({', '.join(runs)}), and {why}; "
            "`orchestrator cancel` them first, or give --force"
        )


def _require_consent() -> None:
    """Raise RequestError unless somebody says yes."""
    if not sys.stdin.isatty():
        raise RequestError("--yes: missing, and nobody is there to be asked; give it")
    try:
        answer = input("start it? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise RequestError("nothing was started; --yes starts it without asking")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
