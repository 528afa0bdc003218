"""A run on this machine: one detached supervisor executes it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from orchestrator.backends.base import Backend, Job, JobRef
from orchestrator.backends.local import LocalBackend
from orchestrator.control.cluster_choice import existing
from orchestrator.control.code_snapshot import code_env
from orchestrator.control.executor import Check, Request
from orchestrator.control.job import cpus_of, python_of
from orchestrator.control.models import WEIGHTS, models_of
from orchestrator.control.requirements import JOB_PACKAGES, num_gpus, root_of, version_of
from orchestrator.control.run_logs import RunLogs
from orchestrator.control.supervised import CANCEL_SLACK_S, SupervisedExecutor, last_line
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.plan.estimate import STATE_BYTES_PER_PARAMETER, parameters_in_name
from orchestrator.plan.planner import Plan, Variant
from orchestrator.plan.stages import BY_NAME, STAGES
from orchestrator.quantities import format_bytes
from orchestrator.spec.cluster import Cluster, Resources
from orchestrator.spec.loader import resolve_env
from orchestrator.spec.recipe import Recipe, Tracking

SUPERVISOR_MODULE = "orchestrator.control.local.supervisor"
SUPERVISOR_LOG = "supervisor.log"
START_TIMEOUT_S = 60.0
MIN_FREE_BYTES = 5 * 10**9
MIN_OPEN_FILES = 4096


class LocalExecutor(SupervisedExecutor):
    """Its supervisor is a detached process."""

    def __init__(
        self, start_timeout_s: float = START_TIMEOUT_S, cancel_slack_s: float = CANCEL_SLACK_S
    ) -> None:
        super().__init__(start_timeout_s, cancel_slack_s)

    def jobs_of(self, cluster: Cluster) -> AbstractContextManager[Backend]:  # noqa: ARG002 (any)
        """Processes of this machine."""
        return nullcontext(LocalBackend())

    def supervisor_job(self, run: RunFolder, store: Store) -> Job:
        """The process of a run's supervisor."""
        names = ("--store", store.storage.url, "--run", run.name)
        return Job(
            name=run.name,
            argv=(python_of(run.cluster()), "-m", SUPERVISOR_MODULE, *names),
            log=RunLogs(run).continued(run.storage, SUPERVISOR_LOG),
            env=code_env(run),
            detached=True,
        )

    def last_words(self, backend: Backend, ref: JobRef, job: Job) -> tuple[str, str]:  # noqa: ARG002 (in its log)
        """Of its log."""
        log = job.log.read_text(errors="replace") if job.log.exists() else ""
        return last_line(log), str(job.log)

    def problems(self, request: Request) -> Iterator[str]:
        """Folders, accelerators, cores, memory and packages that this machine lacks."""
        cluster, where = request.cluster, request.cluster_file.name
        for name in dict.fromkeys(n for r in request.recipes for n in r.data_names):
            root = root_of(cluster, name) if name in cluster.data else None
            if isinstance(root, Path) and not root.is_dir():
                yield f"{where}: data.{name}: {root} is not a folder; check the path"
        for model in models_of(request.variants, request.plan):
            if (folder := model.folder(cluster)) is None:
                continue
            for name in [n for n in model.needed if not (folder / n).is_file()][:1]:
                remedy = "check the path"
                if name == WEIGHTS and any(folder.glob(f"{name}.index.json")):
                    remedy = f"{model.section}.sha256 pins one file; merge its parts into one"
                yield f"{where}: models.{model.name}: {folder} has no {name}; {remedy}"
        if request.plan.scope.trains and not cluster.resources_of("train").gpus_per_node:
            for variant in request.variants:
                yield from _too_much_for_memory(variant.recipe, where)
        yield from _unfit_surroundings(cluster, where)
        if not cluster.environment.venv:
            yield from _absent_packages(request.variants)

    def too_large(self, plan: Plan, cluster: Cluster, where: str) -> Iterator[str]:
        """Stages that ask for more accelerators, cores or memory than this machine has."""
        left = {i.leader for i in plan.instances if i.decision != "reuse"}
        nodes = {(i.stage, i.node): None for i in plan.leaders if i.id in left}
        for stage, node in nodes:
            resources, named = cluster.resources_of(stage, node), f"{where}: resources.{node}"
            yield from _too_many_gpus(stage, resources, named)
            yield from _too_many_cpus(stage, resources, named, cluster.cpus)
            yield from _too_much_memory(resources, named)

    def checks(self, cluster: Cluster) -> Iterator[Check]:
        """Packages and resources of this machine."""
        for name in JOB_PACKAGES:
            found = version_of(name)
            yield Check(f"package {name}", bool(found), found or "missing; pip install '.[jobs]'")
        yield from _processor_checks(cluster)
        for problem in _unfit_surroundings(cluster, "cluster"):
            name, _, what = problem.removeprefix("cluster: ").partition(": ")
            yield Check(name, False, what)
        folder = _disk_of_store(cluster)
        free = shutil.disk_usage(folder).free
        yield Check("disk", free > MIN_FREE_BYTES, f"{format_bytes(free)} free at {folder}")
        files = os.sysconf("SC_OPEN_MAX")
        remedy = f"{files}; ulimit -n {MIN_OPEN_FILES} or more"
        yield Check("open files", files >= MIN_OPEN_FILES, remedy)


def _processor_checks(cluster: Cluster) -> Iterator[Check]:
    cpus = os.cpu_count() or 1
    used = cluster.cpus or cpus
    too_many = "" if used <= cpus else f"; lower cpus in the cluster file to {cpus}"
    yield Check("cpus", used <= cpus, f"{cpus} here, {used} used{too_many}")
    gpus = max(cluster.resources_of(s.name).gpus_per_node for s in STAGES)
    too_many = "" if gpus <= num_gpus() else "; lower gpus_per_node in resources"
    yield Check("gpus", gpus <= num_gpus(), f"{num_gpus()} here, {gpus} used{too_many}")


def _disk_of_store(cluster: Cluster) -> Path:
    """A folder on the disk that the store is on; of this machine where it is on none."""
    with suppress(OrchestratorError):  # what is wrong with the store was said
        url = resolve_env(cluster.store, where="cluster: store")
        return existing(Storage(url).local_root or Path("/"))
    return Path("/")


def _absent_packages(variants: Sequence[Variant]) -> Iterator[str]:
    """What the jobs need of this Python."""
    if absent := [name for name in JOB_PACKAGES if not _is_installed(name)]:
        yield f"this Python: {', '.join(absent)} not installed; pip install '.[jobs]'"
    if any(v.recipe.evaluate.unit_quality for v in variants) and not _is_installed("praatio"):
        yield (
            "this Python: praatio not installed, which evaluate.unit_quality needs; "
            "pip install '.[jobs]'"
        )
    executions = [v.recipe.train.execution for v in variants]
    # Transformers takes the same attention from either.
    has_flash = any(_is_installed(name) for name in ("flash_attn", "kernels"))
    if any(e and e.attention == "flash_attention_2" for e in executions) and not has_flash:
        yield (
            "this Python: flash_attn not installed, which train.execution.attention asks for; "
            "pip install flash-attn, or give sdpa"
        )
    yield from absent_trackers([v.recipe.tracking for v in variants], _is_installed)


def absent_trackers(
    asked: Iterable[Tracking], is_installed: Callable[[str], bool]
) -> Iterator[str]:
    """Trackers whose package this Python lacks."""
    for name in dict.fromkeys(name for tracking in asked for name in tracking.packages):
        if not is_installed(name):
            yield (
                f"this Python: {name} not installed, which tracking.{name} asks for; "
                "pip install '.[tracking]'"
            )


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _unfit_surroundings(cluster: Cluster, where: str) -> Iterator[str]:
    """What jobs would miss here: their Python, a container, a folder for what is on its way."""
    environment, python = cluster.environment, Path(python_of(cluster))
    if environment.venv and not os.access(python, os.X_OK):
        yield f"{where}: environment.venv: there is no {python} to run; check the path"
    if environment.container:
        yield (
            f"{where}: environment.container: jobs on this machine run in none; leave it out, or "
            "use a cluster with Slurm"
        )
    if cluster.scratch:
        scratch = Path(resolve_env(cluster.scratch, where="cluster: scratch"))
        there = existing(scratch)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            problem = "cannot be written" if there.is_dir() else "is no folder"
            yield f"{where}: scratch: {there} {problem}; name a folder on this machine's disk"


def _too_many_gpus(stage: str, resources: Resources, named: str) -> Iterator[str]:
    nodes = resources.max_nodes if BY_NAME[stage].has_ranks else 1
    asked, gpus = nodes * resources.gpus_per_node, num_gpus()
    if asked > gpus:
        on_each = f" on each of {nodes} nodes" if nodes > 1 else ""
        yield (
            f"{named}.gpus_per_node: {resources.gpus_per_node}{on_each} asked, this machine has "
            f"{gpus}; use a cluster that has them"
        )


def _too_many_cpus(
    stage: str, resources: Resources, named: str, allowed: int | None
) -> Iterator[str]:
    """Cores of what must be there at once: all ranks of a training, one worker of a data stage."""
    has_ranks, here = BY_NAME[stage].has_ranks, os.cpu_count() or 1
    cpus = cpus_of(stage, resources) if has_ranks else resources.cpus_per_worker
    if cpus <= (allowed or here):
        return
    of_ranks = "gpus_per_node" if resources.gpus_per_node else "ranks_per_node"
    less = f"lower {of_ranks}, nodes or cpus_per_worker" if has_ranks else "ask for less"
    have = f"this machine has {here}; {less}, or set cpus: {cpus} where its cores may be shared"
    if allowed:
        have = f"cpus is {allowed}; {less}, or raise cpus to {cpus}"
    yield f"{named}{'' if has_ranks else '.cpus_per_worker'}: {cpus} CPU cores asked, {have}"


def _too_much_memory(resources: Resources, named: str) -> Iterator[str]:
    """Where the file says how much; nothing here is held to the default."""
    asked, have = resources.mem_gb, _memory_bytes() / 1e9
    if "mem_gb" in resources.model_fields_set and asked > have:
        yield (
            f"{named}.mem_gb: {asked:g} asked, this machine has {have:.0f}; ask for less, or use a "
            "cluster that has it"
        )


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _too_much_for_memory(recipe: Recipe, where: str) -> Iterator[str]:
    size = parameters_in_name(recipe.model.text_model)
    have = _memory_bytes()
    if size and recipe.model.num_layers is None and STATE_BYTES_PER_PARAMETER * size > have:
        need_gb = STATE_BYTES_PER_PARAMETER * size / 1e9
        need = f"{where}: {recipe.model.text_model} needs {need_gb:.0f} GB of training state"
        yield f"{need}, this machine has {have / 1e9:.0f} GB; use a cluster with accelerators"
