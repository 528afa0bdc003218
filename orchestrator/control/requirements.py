"""Everything that keeps a cluster from running a recipe, one line each.

What only one backend asks for, its executor knows.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.control.executor import Request, executor_of
from orchestrator.control.fingerprint import LISTS, WITHOUT_LISTS
from orchestrator.control.hooks import address_of
from orchestrator.control.models import models_of, text_model_config, unfit_models
from orchestrator.errors import RequestError
from orchestrator.ledger.bucket_path import BucketPath
from orchestrator.ledger.source_files import root_at
from orchestrator.plan.execution import splits_of
from orchestrator.plan.planner import Plan, Variant
from orchestrator.plan.stages import BY_NAME
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import resolve_env
from orchestrator.spec.model import variable_in
from orchestrator.spec.recipe import Recipe

JOB_PACKAGES = (
    "torch",
    "torchaudio",
    "transformers",
    "deepspeed",
    "ray",
    "submitit",
    "pyarrow",
    "soundfile",
)


_ADDRESSES = {
    "wandb.base_url": (re.compile(r"https?://."), "no address of http:// or https://"),
    "mlflow.uri": (
        re.compile(r"(?!sqlite:///[^/])[\w+-]+://|(file:)?/|(databricks|databricks-uc|uc)$"),
        "no URL and no absolute path, so that each attempt would write somewhere else",
    ),
}
"""By tracker's field: how its variable's value begins, and what any other is."""
_NO_ADDRESS = re.compile("."), "nothing"


def missing(request: Request) -> list[str]:
    """Everything that keeps the request's cluster from running its recipe."""
    cluster, where = request.cluster, request.cluster_file.name
    return [
        *unmapped_sources(request.recipes, cluster, where, request.chosen),
        *unfit_containers(request.recipes, cluster, where),
        *_missing_models(request, where),
        *_missing_accelerators(request, where),
        *impossible_splits(request.variants, request.plan, cluster, where),
        *impossible_workers(request.plan, cluster, where),
        *executor_of(cluster).problems(request),
        *executor_of(cluster).too_large(request.plan, cluster, where),
        *unfit_models(request),
        *unfit_variables(request.recipe, cluster, request.recipe_file.name, where),
        *missing_hook(cluster, where),
    ]


def unfit_variables(
    recipe: Recipe, cluster: Cluster, recipe_name: str = "recipe", cluster_name: str = "cluster"
) -> Iterator[str]:
    """Variables that jobs, hooks and trackers look up, and that are not set here, or to no use.

    None where they are looked up elsewhere: the supervisor asks for them there.
    """
    if not executor_of(cluster).supervises_elsewhere:
        missing = "not set here; export and try again"
        yield from unfit_in_this_process(recipe, cluster, missing, recipe_name, cluster_name)


def unfit_in_this_process(
    recipe: Recipe,
    cluster: Cluster,
    missing: str,
    recipe_name: str = "recipe",
    cluster_name: str = "cluster",
) -> Iterator[str]:
    """The same of this process's environment; ``missing`` is said of those that are not set."""
    absent: dict[str, list[str]] = {}
    asked = ((cluster_name, cluster.variables), (recipe_name, recipe.tracking.variables))
    for where, named in asked:
        for name in (name for name in named if name not in os.environ):
            absent.setdefault(f"{where}: {named[name]}", []).append(name)
    for field, names in absent.items():
        yield f"{field}: {', '.join(names)} {missing}"
    yield from _useless_addresses(recipe, cluster, recipe_name, cluster_name)


def _useless_addresses(
    recipe: Recipe, cluster: Cluster, recipe_name: str, cluster_name: str
) -> Iterator[str]:
    """Variables that are set, but not to what they are looked up for; never with their values."""
    webhook = cluster.notify.webhook
    if webhook and variable_in(webhook) in os.environ:
        try:
            address_of(cluster.notify, f"{cluster_name}: notify.webhook")
        except RequestError as error:
            yield f"{error}; export one"
    for place, reference in recipe.tracking.references.items():
        value = os.environ.get(variable_in(reference))
        pattern, other = _ADDRESSES.get(place, _NO_ADDRESS)
        if value is not None and not pattern.match(value):
            yield f"{recipe_name}: tracking.{place}: {reference} holds {other}; export one"


def missing_hook(cluster: Cluster, where: str) -> Iterator[str]:
    """A hook's program that is not here; in a container there may be others."""
    program = cluster.notify.command[0] if cluster.notify.command else ""
    is_path = program.startswith("/") and not cluster.environment.container
    if is_path and not shutil.which(program):
        yield (
            f"{where}: notify.command: {program} is no file that can be executed; "
            "check the path, or chmod +x it"
        )


def unmapped_sources(
    recipes: Sequence[Recipe], cluster: Cluster, where: str, chosen: str
) -> Iterator[str]:
    """What recipes read and the cluster names no folder of; ``chosen``: which file, why."""
    for name in dict.fromkeys(name for recipe in recipes for name in recipe.data_names):
        if name not in cluster.data:
            yield (
                f"{where}: data.{name}: missing; map the source to its folder in {chosen}, "
                "or give another file by --cluster"
            )


def unfit_containers(recipes: Sequence[Recipe], cluster: Cluster, where: str) -> Iterator[str]:
    """Sources in a container in which their adapter finds nothing."""
    roots = cluster.data_roots
    sources = dict.fromkeys(s for recipe in recipes for s in recipe.corpus.sources)
    for source in (source for source in sources if source.name in roots):
        container, adapter = roots[source.name].container, source.adapter
        named = f"{where}: data.{source.name}.container: {container}, but {adapter}"
        if adapter == "hf_parquet" and container != "parquet":
            yield f"{named} has a recording in each row; say parquet"
        elif container == "parquet" and adapter in LISTS and adapter not in WITHOUT_LISTS:
            yield f"{named} finds its lists in files; say folder or tar"


def _missing_models(request: Request, where: str) -> Iterator[str]:
    for name in dict.fromkeys(model.name for model in models_of(request.variants, request.plan)):
        if name not in request.cluster.models and "/" not in name:
            yield f"{where}: models.{name}: missing; map it to a folder in Hugging Face format"


def _missing_accelerators(request: Request, where: str) -> Iterator[str]:
    if not request.plan.scope.trains or request.cluster.resources_of("train").gpus_per_node:
        return
    variants = request.variants
    asked = f"{where}: resources.train.gpus_per_node: 0, but"
    precisions = dict.fromkeys(v.recipe.train.precision for v in variants)
    for precision in (p for p in precisions if p != "fp32"):
        yield (
            f"{asked} train.precision is {precision}, which needs accelerators; "
            "use a cluster with GPUs, or --set train.precision=fp32"
        )
    executions = (v.recipe.train.execution for v in variants)
    if any(e and e.attention == "flash_attention_2" for e in executions):
        yield (
            f"{asked} train.execution.attention is flash_attention_2, which needs accelerators; "
            "use a cluster with GPUs, or sdpa"
        )


def impossible_splits(
    variants: Sequence[Variant], plan: Plan, cluster: Cluster, where: str
) -> tuple[str, ...]:
    """Why this cluster's ranks cannot share the variants' batches, and which sizes would do."""
    problems = []
    for variant in variants:
        config = text_model_config(variant.recipe, cluster)
        splits = splits_of(variant.recipe, cluster.resources_of("train"), config)
        for stage, split in ((s, split) for s, split in splits.items() if s in plan.scope.stages):
            refused = {}
            for size in (sizes := cluster.resources_of(stage).sizes):
                try:
                    split(size.world_size)
                except RequestError as error:
                    refused[size.world_size] = str(error)
            # What a queue gives it has to start with; elsewhere it waits for more.
            is_fit = cluster.nodes_come_and_go or sizes[-1].world_size not in refused
            if len(refused) < len(sizes) and is_fit:
                continue
            world_size = (sizes[-1] if len(refused) < len(sizes) else sizes[0]).world_size
            ranks = f"{where}: resources.{stage}: {world_size} ranks"
            problems.append(f"{ranks}: {refused[world_size]}")
    return tuple(dict.fromkeys(problems))


def impossible_workers(plan: Plan, cluster: Cluster, where: str) -> Iterator[str]:
    """Data stages whose workers ask for accelerators in a way that no node can give."""
    nodes = {(i.stage, i.node): None for i in plan.leaders if BY_NAME[i.stage].is_elastic}
    for stage, node in nodes:
        resources = cluster.resources_of(stage, node)
        share, named = resources.gpus_per_worker, f"{where}: resources.{node}.gpus_per_worker"
        if resources.gpus_per_node and share > resources.gpus_per_node:
            yield (
                f"{named}: {share:g} of the {resources.gpus_per_node} GPUs of a node; "
                "lower it, or raise gpus_per_node"
            )
        elif resources.gpus_per_node and share > 1 and share % 1:
            yield f"{named}: {share:g} is neither a part of one GPU nor whole GPUs; round it"


def version_of(package: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def num_gpus() -> int:
    """Accelerators of this machine, counted without a driver library."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def root_of(cluster: Cluster, name: str) -> Path | BucketPath:
    """Where a source lies on the cluster. Raises RequestError when that is no place."""
    where = f"cluster: data.{name}"
    return root_at(resolve_env(cluster.data_roots[name].root, where=where), where=where)
