"""``orchestrator plan``: what would be done, and nothing done."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from orchestrator.cli.arguments import add_recipe, prepared
from orchestrator.control.submit import Prepared, missing, plan_document
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.plan.estimate import estimate
from orchestrator.units import format_bytes, format_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE [--cluster F] [--set k=v]... [--json | --scripts]."""
    add_recipe(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document on stdout")
    form.add_argument(
        "--scripts", action="store_true", help="exactly what a scheduler would be given, on stdout"
    )


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    request = prepared(options)
    if options.json:
        sys.stdout.write(plan_document(request).decode())
        return 0
    if options.scripts:
        print(scripts(request), end="")
        return 0
    show(request, Console())
    for problem in missing(request):
        print(f"submit would refuse: {problem}", file=sys.stderr)
    return 0


def scripts(request: Prepared) -> str:
    """Every job's script, each after a line with its name and how many of it there are."""
    if request.cluster.backend != "slurm":
        raise RequestError(
            f"--scripts: {request.cluster_file.name} is for {request.cluster.backend}, which is "
            "given no scripts; use a cluster file with backend: slurm"
        )
    from orchestrator.control.on_slurm import previewed

    run = RunFolder(request.store.run_storage(request.plan.run))
    parts = previewed(run, request.store, request.cluster, request.plan)
    return "\n".join(f"# ==> {name} <==\n{text}" for name, text in parts)


def show(request: Prepared, console: Console) -> None:
    """The plan as a table, and what it costs."""
    console.print(
        f"run [bold]{request.plan.run}[/bold] in {request.store.storage.url}", highlight=False
    )
    table = Table("instance", "variants", "decision", "why", box=None, pad_edge=False)
    for instance in request.plan.instances:
        variants = (
            "all"
            if len(instance.variants) == len(request.variants)
            else ", ".join(instance.variants)
        )
        shared = f" (with {instance.leader})" if instance.leader != instance.id else ""
        table.add_row(instance.id, variants, instance.decision, instance.reason + shared)
    console.print(table, highlight=False)
    _show_estimate(request, console)


def _show_estimate(request: Prepared, console: Console) -> None:
    corpus = next(i for i in request.plan.instances if i.stage == "corpus")
    facts = request.store.find({corpus.id: f"corpus/{corpus.key}"})[corpus.id].facts
    cost = estimate(request.variants[0].recipe, facts)
    parts = [f"training: {format_count(cost.train_tokens)} tokens"]
    if cost.train_flop and cost.checkpoint_bytes and cost.num_parameters:
        parts.append(f"{format_count(cost.num_parameters)} parameters (by the model's name)")
        parts.append(f"{cost.train_flop:.2g} FLOP")
        parts.append(f"{format_bytes(cost.checkpoint_bytes)} of state a checkpoint")
    if cost.audio_hours is not None:
        parts.append(f"audio: {cost.audio_hours:.2f} h kept")
    console.print("a variant: " + ", ".join(parts), highlight=False)
