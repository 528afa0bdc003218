"""``orchestrator plan``: what would be done, and nothing done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from orchestrator.cli.arguments import add_recipe, prepared
from orchestrator.cli.terminal import Terminal
from orchestrator.control.executor import JobPreview, Request, executor_of
from orchestrator.control.models import text_model_config
from orchestrator.control.requirements import missing
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.spending import Spending, spending, spending_figures
from orchestrator.ledger.storage import to_json
from orchestrator.plan.device_memory import Shape, device_memory, device_of, shape_of
from orchestrator.plan.estimate import (
    Estimate,
    SourceEstimate,
    checkpoint_storage,
    estimate,
    estimate_sources,
    gpu_hours,
    walltimes,
)
from orchestrator.plan.execution import execution_of
from orchestrator.plan.planner import Instance, Variant
from orchestrator.plan.sharing import Sharing, sharing
from orchestrator.plan.stages import BY_NAME
from orchestrator.quantities import format_bytes, format_count, format_duration, format_several
from orchestrator.spec.cluster import Prices
from orchestrator.spec.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE [--cluster F] [--set k=v]... [--until STAGE] [--json | --scripts]."""
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
        where = {"cluster": str(request.cluster_file), "store": request.store.storage.url}
        sources = [asdict(source) for source in _sources(request)]
        more = {
            "device_memory": _device_memory(request, _costliest(request)),
            "sharing": asdict(_sharing(request)),
        }
        document = {**request.plan.to_json(), **where, **more, "sources": sources}
        sys.stdout.write(to_json(document).decode())
        return 0
    if options.scripts:
        print(scripts(request), end="")
        if all(i.decision == "reuse" for i in request.plan.instances):
            print("everything is reused; a scheduler would be given nothing", file=sys.stderr)
        return 0
    show(request, Terminal())
    for problem in missing(request):
        print(f"submit would refuse: {problem}", file=sys.stderr)
    for remark in executor_of(request.cluster).remarks(request.plan, request.cluster):
        print(f"note: {remark}", file=sys.stderr)
    return 0


def scripts(request: Request) -> str:
    """Every job's script, each after a line with its name."""
    jobs = executor_of(request.cluster).preview(request)
    if not jobs and any(i.decision != "reuse" for i in request.plan.instances):
        raise RequestError(
            f"--scripts: {request.cluster_file.name} is for {request.cluster.backend}, which is "
            "given no scripts; use the cluster file of a scheduler"
        )
    return "\n".join(f"# ==> {job.name} <==\n{job.script}" for job in jobs)


def show(request: Request, console: Console) -> None:
    """The plan as a table, and what it costs."""
    root = request.store.storage.local_root
    store = f"{request.store.storage.url}{' (to be created)' if root and not root.exists() else ''}"
    console.print(Text.assemble("run ", (request.plan.run, "bold"), f" in {store}"))
    names, decisions = Column("instance", no_wrap=True), Column("decision", no_wrap=True)
    table = Table(names, "variants", decisions, "why", box=None, pad_edge=False)
    for instance in request.plan.instances:
        is_for_all = len(instance.variants) == len(request.variants)
        variants = "all" if is_for_all else ", ".join(instance.variants)
        shared = f" (with {instance.leader})" if instance.leader != instance.id else ""
        table.add_row(instance.id, variants, instance.decision, instance.reason + shared)
    console.print(table)
    if len(request.variants) > 1:
        console.print(sharing_line(_sharing(request)))
    if jobs := executor_of(request.cluster).preview(request):
        console.print(jobs_table(request, jobs))
    _show_estimate(request, console)
    if sources := _sources(request):
        console.print(sources_table(sources))
    if line := _limits_line(request):
        console.print(line)


def sharing_line(shared: Sharing) -> str:
    """What the variants have in common, and what that saves."""
    line = (
        f"shared: {shared.num_variants} variants are {shared.num_instances} pieces of work, "
        f"{shared.num_nodes} if each were a run of its own"
    )
    if not shared.num_encodings:
        return line
    times = f"audio is encoded {format_several(shared.num_passes, 'time')}"
    hours = ""
    if shared.hours_encoded is not None and shared.hours_wanted is not None:
        hours = f": {shared.hours_encoded:,.2f} h in place of {shared.hours_wanted:,.2f} h"
    return f"{line}; {times} in place of {shared.num_encodings}{hours}"


def jobs_table(request: Request, jobs: Sequence[JobPreview]) -> Table:
    """One row a job: what it asks for, and what it will take as far as that is known."""
    names = Column("job", no_wrap=True)
    table = Table(names, "nodes", "of each", "time", "queue", "GPU hours", box=None, pad_edge=False)
    for job in jobs:
        shape = job.shape
        gpus = f"{format_several(shape.gpus, 'GPU')}, " if shape.gpus else ""
        table.add_row(
            job.name,
            f"<={shape.array}" if shape.array else shape.nodes,
            f"{gpus}{format_several(shape.cpus, 'CPU')}, {shape.mem_gb:g} GB",
            format_duration(60 * shape.walltime_min),
            job.queue,
            _hours(request, job),
        )
    return table


def _hours(request: Request, job: JobPreview) -> str:
    """Accelerator hours, their price, and over how many walltimes they stretch."""
    prices, shape = request.cluster.prices, job.shape
    if not shape.gpus or not job.instance:
        return ""
    instance = request.plan.instance(job.instance)
    hours = _gpu_hours(request, instance)
    if hours is None:
        return _hours_by_audio(instance, _estimate_of(request, instance), prices)
    price = f", {hours * prices.gpu_hour:,.0f} {prices.currency}" if prices.gpu_hour else ""
    num_gpus = shape.gpus * (shape.array or shape.num_nodes)
    chain = walltimes(hours, num_gpus, shape.walltime_min)
    return f"{hours:,.1f}{price}" + (f", {chain} walltimes" if chain > 1 else "")


def _estimate_of(request: Request, instance: Instance) -> Estimate:
    """The estimate of the first variant that an instance is of, whose model and corpus it has."""
    recipe = _recipe_of(request, instance)
    corpora = [request.plan.instance(i) for role, i in instance.needs.items() if role == "corpus"]
    facts = _facts(request, corpora)[0] if corpora else _corpus_facts(request)
    return estimate(recipe, facts, _shape_of(request, recipe))


def _shape_of(request: Request, recipe: Recipe) -> Shape | None:
    return shape_of(recipe, text_model_config(recipe, request.cluster))


def _recipe_of(request: Request, instance: Instance) -> Recipe:
    return next(v.recipe for v in request.variants if v.name in instance.variants)


def _gpu_hours(request: Request, instance: Instance) -> float | None:
    """What a stage takes on accelerators, in hours; None where that is not known."""
    prices, stage = request.cluster.prices, BY_NAME[instance.stage]
    cost = _estimate_of(request, instance)
    if stage.has_ranks:  # the estimate is of the language model's training
        return gpu_hours(cost.train_flop, prices) if "train" in instance.inputs["fields"] else None
    fit_hours = _recipe_of(request, instance).codebook_hours if stage.is_elastic else None
    audio_hours = cost.audio_hours if stage.counts else fit_hours
    return audio_hours / prices.encode_speed if audio_hours and prices.encode_speed else None


def _hours_by_audio(instance: Instance, cost: Estimate, prices: Prices) -> str:
    stage = BY_NAME[instance.stage]
    if stage.has_ranks or not stage.counts or cost.audio_hours is not None:
        return ""
    per_hour = 1000 / prices.encode_speed if prices.encode_speed else None
    return f"{per_hour:.2f} for 1,000 h of audio" if per_hour else ""


def _limits_line(request: Request) -> str:
    """What the rest is estimated to take beside what the run may spend; empty without limits."""
    cluster, run = request.cluster, RunFolder(request.store.run_storage(request.plan.run))
    if not cluster.limits.has_any:
        return ""
    left = [i for i in request.plan.leaders if i.decision != "reuse"]
    on_gpus = [i for i in left if cluster.resources_of(i.stage, i.node).gpus_per_node]
    hours = [_gpu_hours(request, i) for i in on_gpus]
    known = sum(h for h in hours if h is not None)
    nothing = Spending(gpu_hours=0.0, price=0.0)
    spent = spending(run, run.plan(), is_alive=False) if run.exists() else nothing
    total = Spending(
        gpu_hours=spent.gpu_hours + known,
        price=spent.price + known * cluster.prices.gpu_hour,
    )
    least = "at least " if None in hours or len(on_gpus) < len(left) else ""
    return f"limits: {least}{', '.join(spending_figures(total.to_json(cluster)))}, by the estimate"


def _estimate(request: Request, recipe: Recipe) -> Estimate:
    return estimate(recipe, _corpus_facts(request), _shape_of(request, recipe))


def _costliest(request: Request) -> Variant:
    """The variant whose training is the most work, by tokens alone where sizes are not known."""

    def work(variant: Variant) -> tuple[float, int]:
        cost = estimate(variant.recipe, {}, _shape_of(request, variant.recipe))
        return cost.train_flop or 0.0, cost.train_tokens

    return max(request.variants, key=work)


def _corpus_facts(request: Request) -> Mapping[str, Any]:
    """Of what the first variant's filter has left of its corpus, or of all of it; none yet."""
    facts = _facts(request, request.plan.corpora)
    return next((found for found in reversed(facts) if found), {})


def _facts(request: Request, instances: Sequence[Instance]) -> list[Mapping[str, Any]]:
    wanted = {i.id: f"{i.stage}/{i.key}" for i in instances}
    return [found.facts for found in request.store.find(wanted).values()]


def _sharing(request: Request) -> Sharing:
    """What the variants share; hours once every corpus of theirs is there."""
    encoded = {i.needs["corpus"] for i in request.plan.units}
    corpora = [i for i in request.plan.instances if i.id in encoded]
    found = zip(corpora, _facts(request, corpora), strict=True)
    return sharing(request.plan, {i.id: facts.get("kept_hours") for i, facts in found})


def _sources(request: Request) -> tuple[SourceEstimate, ...]:
    """What each source of the first variant gives, where its corpus is there."""
    units = [i for i in request.plan.units if not i.part]
    unit_facts = _facts(request, units)[0] if units else {}
    recipe, prices = request.variants[0].recipe, request.cluster.prices
    return estimate_sources(recipe, _corpus_facts(request), unit_facts, prices)


def sources_table(sources: Sequence[SourceEstimate]) -> Table:
    """One row a source."""
    is_mixed = any(source.epochs is not None for source in sources)
    numbers = ["recordings", "left out", "quarantined", "hours", "tokens", "GPU hours"]
    names = [*numbers, *(["epochs"] if is_mixed else [])]
    columns = [Column(name, justify="right") for name in names]
    table = Table(Column("source", no_wrap=True), *columns, box=None, pad_edge=False)
    for source in sources:
        table.add_row(*_source_cells(source)[: len(names) + 1])
    return table


def _source_cells(source: SourceEstimate) -> tuple[str, ...]:
    counts = (source.num_recordings, source.num_left_out, source.num_quarantined)
    tokens = "" if source.tokens is None else format_count(source.tokens)
    epochs = "" if source.epochs is None else f"{source.epochs:.3g}"
    is_counted = source.are_tokens_counted
    return (
        source.name,
        *("" if count is None else f"{count:,}" for count in counts),
        "" if source.hours is None else f"{source.hours:,.2f}",
        tokens if is_counted or not tokens else f"<={tokens}",
        "" if source.gpu_hours is None else f"{source.gpu_hours:,.1f}",
        epochs if is_counted or not epochs else f">={epochs}",
    )


def _show_estimate(request: Request, console: Console) -> None:
    variant = _costliest(request)
    cost = _estimate(request, variant.recipe)
    parts = _training_parts(variant.recipe, cost) if request.plan.scope.trains else []
    if cost.audio_hours is not None:
        parts.append(f"audio: {cost.audio_hours:.2f} h kept")
    if parts:
        is_alone = len(request.variants) == 1
        which = "a variant" if is_alone else f"variant {variant.name}, the costliest"
        console.print(f"{which}: " + ", ".join(parts))
    if memory := _device_memory(request, variant):
        console.print(_memory_line(memory))


def _device_memory(request: Request, variant: Variant) -> dict[str, Any] | None:
    """What a variant's training puts into a device's memory; None where nobody knows."""
    if not request.plan.scope.trains:
        return None
    recipe, cluster = variant.recipe, request.cluster
    config, resources = text_model_config(recipe, cluster), cluster.resources_of("train")
    shape, world_size = shape_of(recipe, config), resources.world_size
    try:
        device = device_of(recipe, resources, config)
        execution = execution_of(recipe.train, world_size, device=device)
    except RequestError:  # said by itself
        return None
    if shape is None:
        return None
    parts = device_memory(recipe.train, shape, execution, world_size)
    chosen = {"micro_batch", "zero_stage", "offload", "activation_checkpointing"}
    return {
        "world_size": world_size,
        **execution.model_dump(include=chosen),
        **{f"{name}_bytes": round(size) for name, size in parts._asdict().items()},
        "total_bytes": round(parts.total),
    }


def _memory_line(memory: Mapping[str, Any]) -> str:
    parts = ("weights", "gradients", "optimizer", "activations")
    said = ", ".join(f"{name} {format_bytes(memory[f'{name}_bytes'])}" for name in parts)
    ways = {
        "activation_checkpointing": ", activations recomputed",
        "offload": ", optimizer offloaded",
    }
    also = "".join(words for name, words in ways.items() if memory[name])
    return (
        f"memory of each of {memory['world_size']} ranks, about "
        f"{format_bytes(memory['total_bytes'])}: {said} (micro-batch {memory['micro_batch']}, ZeRO "
        f"{memory['zero_stage']}{also})"
    )


def _training_parts(recipe: Recipe, cost: Estimate) -> list[str]:
    parts = [f"training: {format_count(cost.train_tokens)} tokens"]
    if cost.train_flop and cost.checkpoint_bytes and cost.num_parameters:
        by = "its shape" if recipe.model.num_layers else "the model's name"
        parts.append(f"{format_count(cost.num_parameters)} parameters (by {by})")
        parts.append(f"{cost.train_flop:.2g} FLOP")
        every = recipe.train.checkpoint.every_steps
        interval = "sqrt(2 C M) s, as measured" if every == "auto" else f"{every} steps"
        parts.append(f"{format_bytes(cost.checkpoint_bytes)} of state a checkpoint")
        parts.append(f"one every {interval}")
        kept = format_bytes(checkpoint_storage(recipe, cost.checkpoint_bytes))
        parts.append(f"{kept} of checkpoints in the store")
    return parts
