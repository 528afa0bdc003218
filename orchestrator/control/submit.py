"""From a recipe file to a run that is under way: plan, refuse what cannot be, create, start.

`prepare` looks things up and plans; `submit` sends exactly what was planned.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.control.executor import executor_of, observe, require_executor
from orchestrator.control.job import cpus_of
from orchestrator.errors import RequestError, SpecErrors
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import to_json
from orchestrator.ledger.store import Store
from orchestrator.plan.estimate import STATE_BYTES_PER_PARAMETER, parameters_in_name
from orchestrator.plan.execution import execution_of
from orchestrator.plan.planner import Plan, Variant, make_plan
from orchestrator.plan.stages import Facts
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import (
    load_cluster,
    load_recipe,
    resolve_env,
    sweep_points,
    variant_name,
    variant_recipe,
)
from orchestrator.spec.recipe import Recipe, Source

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


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that was understood."""

    recipe: Recipe
    cluster: Cluster
    cluster_file: Path
    variants: tuple[Variant, ...]
    store: Store
    plan: Plan


def prepare(
    recipe_file: Path, cluster_file: Path, overrides: Sequence[str] = (), name: str | None = None
) -> Prepared:
    """The plan of a recipe on a cluster.

    Raises RequestError or SpecErrors; BackendError when the store is out of reach.
    """
    recipe = load_recipe(recipe_file, overrides)
    cluster = load_cluster(cluster_file)
    store = open_store(cluster)
    variants = tuple(
        Variant(
            name=variant_name(point),
            overrides=point,
            recipe=variant_recipe(recipe, point, where=recipe_file.name),
        )
        for point in sweep_points(recipe)
    )
    plan = make_plan(
        variants, _facts(recipe, cluster), found=store.find, known_inputs=store.inputs_of, run=name
    )
    return Prepared(
        recipe=recipe,
        cluster=cluster,
        cluster_file=cluster_file,
        variants=variants,
        store=store,
        plan=plan,
    )


def submit(prepared: Prepared) -> tuple[RunFolder, str]:
    """Create the run, or attach to it, and see that somebody works on it.

    Returns the run, and what happened in words. Raises SpecErrors with everything that is missing.
    """
    problems = missing(prepared)
    if problems:
        raise SpecErrors(problems)
    require_executor(prepared.cluster)
    run = RunFolder(prepared.store.run_storage(prepared.plan.run))
    created = run.create(
        prepared.plan, prepared.recipe, prepared.cluster, code_snapshot(), code_origin()
    )
    return run, ("created" if created else "attached to what is there") + "; " + ensure(
        run, prepared.store
    )


def ensure(run: RunFolder, store: Store) -> str:
    """See that somebody works on the run; what was done, in words."""
    cluster = run.cluster()
    require_executor(cluster)
    if absent := [name for name in cluster.environment.export if name not in os.environ]:
        raise RequestError(
            f"cluster: environment.export: {', '.join(absent)} not set here; export and try again"
        )
    return executor_of(cluster).ensure(run, store)


def move(run: RunFolder, cluster_file: Path) -> bool:
    """Let a run go on where another cluster file says; False when that is where it is.

    Raises RequestError when the run cannot go on there, or is at work.
    """
    cluster = load_cluster(cluster_file)
    if cluster == run.cluster():
        return False
    if observe(run).is_alive:
        raise RequestError(
            f"{run.name}: is at work; `orchestrator cancel {run.name}` before it moves"
        )
    problems = impossible_splits(run.variants(), cluster, cluster_file.name)
    if problems:
        raise SpecErrors(problems)
    run.move(cluster)
    return True


def open_store(cluster: Cluster) -> Store:
    """The cluster's store.

    Raises BackendError when it cannot be used, RequestError when its URL needs a variable.
    """
    return Store.open(resolve_env(cluster.store, where="cluster: store"))


def choose_cluster(explicit: str | None, recipe_file: Path | None) -> tuple[Path, str]:
    """The cluster file and why it was chosen. Raises RequestError when there is none."""
    if explicit:
        return _existing(Path(explicit)), "given by --cluster"
    if named := os.environ.get("ORCHESTRATOR_CLUSTER"):
        return _existing(Path(named)), "named by $ORCHESTRATOR_CLUSTER"
    if os.environ.get("RAY_ADDRESS"):
        file, why = "ray.yaml", "RAY_ADDRESS is set"
    elif shutil.which("sbatch"):
        file, why = "slurm.yaml", "sbatch is on PATH"
    else:
        file, why = "local.yaml", "no RAY_ADDRESS and no sbatch here"
    beside = [recipe_file.resolve().parent.parent] if recipe_file else []
    places = [folder / "cluster_configs" / file for folder in (*beside, Path.cwd())]
    for place in places:
        if place.is_file():
            return place, why
    looked = ", ".join(str(p) for p in dict.fromkeys(places))
    raise RequestError(
        f"cluster: no {file} found ({why}; looked for {looked}); give --cluster FILE"
    )


def missing(prepared: Prepared) -> list[str]:
    """Everything that keeps this cluster from running this recipe, one line each."""
    cluster, recipe = prepared.cluster, prepared.recipe
    where = prepared.cluster_file.name
    return [
        *_missing_data(recipe, cluster, where),
        *_missing_models(prepared.variants, cluster, where),
        *_missing_hardware(prepared.variants, cluster, where),
        *impossible_splits(prepared.variants, cluster, where),
        *_missing_packages(cluster),
        *_missing_store(prepared.store, cluster, where),
    ]


def _missing_data(recipe: Recipe, cluster: Cluster, where: str) -> Iterator[str]:
    for source in recipe.corpus.sources:
        if source.name not in cluster.data:
            yield f"{where}: data.{source.name}: missing; map the source to its folder here"
        elif cluster.backend == "local" and not _root(cluster, source).is_dir():
            root = _root(cluster, source)
            yield f"{where}: data.{source.name}: {root} is not a folder; check the path"


def _missing_models(variants: Sequence[Variant], cluster: Cluster, where: str) -> Iterator[str]:
    wanted = {v.recipe.model.text_model for v in variants} | {
        v.recipe.encoder.model for v in variants
    }
    for name in sorted(w for w in wanted if w):
        if name not in cluster.models and "/" not in name:
            yield f"{where}: models.{name}: missing; map it to a folder in Hugging Face format"
        elif name in cluster.models and cluster.backend == "local":
            folder = Path(resolve_env(cluster.models[name], where=f"{where}: models.{name}"))
            if not (folder / "config.json").is_file():
                yield f"{where}: models.{name}: {folder} has no config.json; check the path"


def _missing_hardware(variants: Sequence[Variant], cluster: Cluster, where: str) -> Iterator[str]:
    train = cluster.resources_of("train")
    if train.gpus_per_node == 0:
        yield from dict.fromkeys(p for v in variants for p in _needs_gpus(v.recipe, where))
    if cluster.backend != "local":
        return
    gpus = num_gpus()
    if train.gpus_per_node > gpus:
        asked = f"{where}: resources.train.gpus_per_node: {train.gpus_per_node} asked"
        yield f"{asked}, this machine has {gpus}; use a cluster that has them"
    if train.gpus_per_node == 0:
        for variant in variants:
            yield from _too_much_for_memory(variant.recipe, where)
    cpus, have = cpus_of("train", train), cluster.cpus or os.cpu_count() or 1
    if cpus > have:
        asked = f"{where}: resources.train: {cpus} CPU cores asked"
        yield f"{asked}, {have} here; ask for fewer ranks"


def impossible_splits(variants: Sequence[Variant], cluster: Cluster, where: str) -> tuple[str, ...]:
    """Why this cluster's ranks cannot share the variants' batches, and which sizes would do."""
    world_size = cluster.resources_of("train").world_size
    problems = []
    for variant in variants:
        try:
            execution_of(variant.recipe.train, world_size)
        except RequestError as error:
            problems.append(f"{where}: resources.train: {world_size} ranks: {error}")
    return tuple(dict.fromkeys(problems))


def _needs_gpus(recipe: Recipe, where: str) -> Iterator[str]:
    if recipe.train.precision != "fp32":
        yield (
            f"{where}: resources.train.gpus_per_node: 0, "
            f"but train.precision is {recipe.train.precision}, which needs accelerators; "
            "use a cluster with GPUs, or --set train.precision=fp32"
        )


def _too_much_for_memory(recipe: Recipe, where: str) -> Iterator[str]:
    size = parameters_in_name(recipe.model.text_model)
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size and recipe.model.num_layers is None and STATE_BYTES_PER_PARAMETER * size > have:
        need_gb = STATE_BYTES_PER_PARAMETER * size / 1e9
        need = f"{where}: {recipe.model.text_model} needs {need_gb:.0f} GB of training state"
        yield f"{need}, this machine has {have / 1e9:.0f} GB; use a cluster with accelerators"


def _missing_packages(cluster: Cluster) -> Iterator[str]:
    if cluster.backend != "local" or cluster.environment.venv:
        return
    absent = [name for name in JOB_PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        yield f"this Python: {', '.join(absent)} not installed; pip install '.[jobs]'"


def _missing_store(store: Store, cluster: Cluster, where: str) -> Iterator[str]:
    if cluster.backend == "slurm" and store.storage.local_root is None:
        yield (
            f"{where}: store: {store.storage.url} is no path; jobs on Slurm need a folder that all "
            "nodes share"
        )


def num_gpus() -> int:
    """Accelerators of this machine, counted without a driver library."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def _facts(recipe: Recipe, cluster: Cluster) -> Facts:
    """A fingerprint of each visible source's listing; a snapshot label stands for all of them."""
    if recipe.corpus.snapshot:
        return Facts()
    sources = [s for s in recipe.corpus.sources if s.name in cluster.data]
    return Facts(
        listings={
            s.name: listing_digest(root) for s in sources if (root := _root(cluster, s)).is_dir()
        }
    )


def listing_digest(root: Path) -> str:
    """SHA-256 of all relative paths and sizes below a folder, hidden files left out."""
    digest = hashlib.sha256()
    rows = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        rows += [Path(folder, name) for name in names if not name.startswith(".")]
    for path in sorted(rows):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _root(cluster: Cluster, source: Source) -> Path:
    return Path(resolve_env(cluster.data[source.name], where=f"cluster: data.{source.name}"))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise RequestError(
            f"{path}: no such cluster file; check --cluster and $ORCHESTRATOR_CLUSTER"
        )
    return path


def code_snapshot() -> dict[str, bytes]:
    """Relative path to bytes of everything the jobs execute."""
    snapshot = {}
    for package in ("orchestrator", "jobs"):
        root = _package_folder(package)
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".html") and path.is_file():
                snapshot[f"{package}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return snapshot


def code_origin() -> dict[str, Any]:
    """Commit and uncommitted patch of the checkout, if it is one, and installed versions."""
    checkout = _package_folder("orchestrator").parent
    versions = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {
        "commit": _git(checkout, "rev-parse", "HEAD"),
        "patch": _git(checkout, "diff", "HEAD", "--", "orchestrator", "jobs"),
        "python": sys.version.split()[0],
        "packages": dict(sorted(versions.items())),
    }


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RequestError(
            f"package {package}: not found beside orchestrator; reinstall the project"
        )
    return Path(spec.origin).parent


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def plan_document(prepared: Prepared) -> bytes:
    """``plan --json``."""
    return to_json(
        {
            **prepared.plan.to_json(),
            "cluster": str(prepared.cluster_file),
            "store": prepared.store.storage.url,
        }
    )
