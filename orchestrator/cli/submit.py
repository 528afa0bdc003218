"""``orchestrator submit``: start a recipe's run, or attach to it."""

from __future__ import annotations

import argparse
import sys

from orchestrator.cli.arguments import add_recipe, add_watch, prepared, started_line
from orchestrator.cli.terminal import interruptible, what_stands
from orchestrator.cli.watch import watch
from orchestrator.control.request import ClusterUsed, submit
from orchestrator.ledger.run import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE [--cluster F] [--set k=v]... [--until STAGE] [--name N] [--watch]."""
    add_recipe(parser)
    parser.add_argument("--name", help="name of the run; the recipe's name and keys when absent")
    add_watch(parser)


def run(options: argparse.Namespace) -> int:
    """Submit, and watch if asked."""
    with interruptible(lambda: "nothing was started"):
        request = prepared(options)
    run_folder = RunFolder(request.store.run_storage(request.plan.run))
    with interruptible(lambda: what_stands(run_folder)):
        submitted = submit(request)
    name = submitted.run.name
    origin = "created" if submitted.is_new else "attached to what is there"
    if submitted.cluster is ClusterUsed.GIVEN:
        print(f"run {name}: moves to {request.cluster_file}", file=sys.stderr)
    print(f"run {name}: {origin}; {started_line(submitted.started)}", file=sys.stderr)
    if submitted.cluster is ClusterUsed.OWN:
        print(
            f"run {name}: is at work with the cluster file that it has; "
            f"`orchestrator cancel {name}`, then submit again to go on with {request.cluster_file}",
            file=sys.stderr,
        )
    if options.watch:
        return watch(submitted.run, request.store)
    print(name)
    return 0
