"""``orchestrator plan``: what would be done, and nothing done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

from orchestrator.cli.arguments import add_recipe, prepared
from orchestrator.control.slurm.jobs import PlannedJob
from orchestrator.control.submit import Prepared, missing, plan_document
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.plan.estimate import (
    Estimate,
    checkpoint_storage,
    estimate,
    gpu_hours,
    walltimes,
)
from orchestrator.quantities import format_bytes, format_count, format_duration


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
    """Every job's script, each after a line with its name."""
    parts = _planned(request)
    if parts is None:
        raise RequestError(
            f"--scripts: {request.cluster_file.name} is for {request.cluster.backend}, which is "
            "given no scripts; use a cluster file with backend: slurm"
        )
    from orchestrator.control.slurm.executor import preview

    return "\n".join(f"# ==> {part.name} <==\n{preview(part)}" for part in parts)


def _planned(request: Prepared) -> tuple[PlannedJob, ...] | None:
    """The jobs that a scheduler would be given; None where there is none."""
    if request.cluster.backend != "slurm":
        return None
    from orchestrator.control.slurm.executor import planned_jobs

    run = RunFolder(request.store.run_storage(request.plan.run))
    return planned_jobs(run, request.store, request.cluster, request.plan)


def show(request: Prepared, console: Console) -> None:
    """The plan as a table, and what it costs."""
    console.print(
        f"run [bold]{request.plan.run}[/bold] in {request.store.storage.url}", highlight=False
    )
    names, decisions = Column("instance", no_wrap=True), Column("decision", no_wrap=True)
    table = Table(names, "variants", decisions, "why", box=None, pad_edge=False)
    for instance in request.plan.instances:
        variants = (
            "all"
            if len(instance.variants) == len(request.variants)
            else ", ".join(instance.variants)
        )
        shared = f" (with {instance.leader})" if instance.leader != instance.id else ""
        table.add_row(instance.id, variants, instance.decision, instance.reason + shared)
    console.print(table, highlight=False)
    cost = _estimate(request)
    if parts := _planned(request):
        _show_jobs(request, parts, cost, console)
    _show_estimate(request, cost, console)


def _show_jobs(
    request: Prepared, parts: Sequence[PlannedJob], cost: Estimate, console: Console
) -> None:
    """One line a job: what it asks for, and what it will take as far as that is known."""
    names = Column("job", min_width=max(len(part.name) for part in parts))
    columns = ("nodes", "GPUs", "CPUs", "memory", "walltime", "partition", "GPU hours")
    table = Table(names, *columns, box=None, pad_edge=False)
    for part in parts:
        shape, options = part.job.shape, part.job.options
        table.add_row(
            part.name,
            f"up to {shape.array}" if shape.array else str(shape.num_nodes),
            str(shape.gpus * (shape.array or shape.num_nodes) or ""),
            str((options.cpus or shape.cpus) * (shape.array or shape.num_nodes)),
            f"{options.mem_gb or shape.mem_gb:g} GB",
            format_duration(60 * (options.walltime_min or shape.walltime_min)),
            options.partition or "",
            _hours(request, part, cost),
        )
    console.print(table, highlight=False)


def _hours(request: Prepared, part: PlannedJob, cost: Estimate) -> str:
    """Accelerator hours, their price, and over how many walltimes they stretch."""
    prices, shape, stage = request.cluster.prices, part.job.shape, part.instance.split("-")[0]
    if not shape.gpus:
        return ""
    if stage == "train":
        hours = gpu_hours(cost.train_flop, prices)
    elif stage == "tokenize" and cost.audio_hours is None:
        per_hour = 1000 / prices.encode_speed if prices.encode_speed else None
        return f"{per_hour:.2f} for 1,000 h of audio" if per_hour else ""
    else:
        fit_hours = request.variants[0].recipe.tokenizer.fit_hours
        audio_hours = {"tokenize": cost.audio_hours, "codebook": fit_hours}.get(stage)
        hours = audio_hours / prices.encode_speed if audio_hours and prices.encode_speed else None
    if hours is None:
        return ""
    price = f", {hours * prices.gpu_hour:,.0f} {prices.currency}" if prices.gpu_hour else ""
    walltime_min = part.job.options.walltime_min or shape.walltime_min
    chain = walltimes(hours, shape.gpus * (shape.array or shape.num_nodes), walltime_min)
    return f"{hours:,.1f}{price}" + (f", {chain} walltimes" if chain > 1 else "")


def _estimate(request: Prepared) -> Estimate:
    corpus = next(i for i in request.plan.instances if i.stage == "corpus")
    facts = request.store.find({corpus.id: f"corpus/{corpus.key}"})[corpus.id].facts
    return estimate(request.variants[0].recipe, facts)


def _show_estimate(request: Prepared, cost: Estimate, console: Console) -> None:
    parts = [f"training: {format_count(cost.train_tokens)} tokens"]
    if cost.train_flop and cost.checkpoint_bytes and cost.num_parameters:
        parts.append(f"{format_count(cost.num_parameters)} parameters (by the model's name)")
        parts.append(f"{cost.train_flop:.2g} FLOP")
        recipe = request.variants[0].recipe
        every = recipe.train.checkpoint.every_steps
        parts.append(f"{format_bytes(cost.checkpoint_bytes)} of state a checkpoint")
        parts.append(
            "one every sqrt(2 C M) s, as measured"
            if every == "auto"
            else f"one every {every} steps"
        )
        kept = format_bytes(checkpoint_storage(recipe, cost.checkpoint_bytes))
        parts.append(f"{kept} of checkpoints in the store")
    if cost.audio_hours is not None:
        parts.append(f"audio: {cost.audio_hours:.2f} h kept")
    console.print("a variant: " + ", ".join(parts), highlight=False)
