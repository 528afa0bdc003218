"""A run on this machine: one detached supervisor executes it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.backends.base import Job
from orchestrator.backends.local import LocalBackend
from orchestrator.control.cluster_choice import existing, open_store
from orchestrator.control.code_snapshot import code_env
from orchestrator.control.executor import Check, Executor, Request, Started
from orchestrator.control.job import cpus_of, python_of
from orchestrator.control.requirements import JOB_PACKAGES, models_of, num_gpus, root_of, version_of
from orchestrator.control.run_logs import RunLogs
from orchestrator.errors import BackendError, RunFailedError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import JobState
from orchestrator.ledger.store import Store
from orchestrator.plan.estimate import STATE_BYTES_PER_PARAMETER, parameters_in_name
from orchestrator.plan.stages import BY_NAME, STAGES
from orchestrator.quantities import format_bytes
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import resolve_env
from orchestrator.spec.recipe import Recipe

SUPERVISOR_MODULE = "orchestrator.control.local.supervisor"
SUPERVISOR_LOG = "supervisor.log"
START_TIMEOUT_S = 60.0
CANCEL_SLACK_S = 60.0
"""Added to the time that jobs get to save."""
MIN_FREE_BYTES = 5 * 10**9
MIN_OPEN_FILES = 4096


class LocalExecutor(Executor):
    """Starts the supervisor, and asks it to stop."""

    def __init__(
        self, start_timeout_s: float = START_TIMEOUT_S, cancel_slack_s: float = CANCEL_SLACK_S
    ) -> None:
        self._start_timeout_s, self._cancel_slack_s = start_timeout_s, cancel_slack_s

    def start(self, run: RunFolder, store: Store) -> Started:
        """Start a supervisor unless one is at work or all is done.

        Returns once it has announced itself, so that `status` is true from then on. Raises
        BackendError.
        """
        deadline = time.monotonic() + self._start_timeout_s
        before = len(run.supervisors())
        while run.supervising() and not run.live_supervisor():
            if time.monotonic() > deadline:  # one that begins or ends takes a moment
                break
            time.sleep(0.05)
        if run.live_supervisor():
            return Started(outcome="running")
        if before and store.has(*run.plan().instances):
            return Started(outcome="done")
        job, backend = supervisor_job(run, store), LocalBackend()
        ref = backend.submit(job)
        while True:
            has_ended = backend.poll([ref])[ref].state is not JobState.RUNNING
            if len(run.supervisors()) > before:
                break
            # One that another's lease sent away ends at once; that other announces itself, or ends.
            is_waiting = not has_ended or run.supervising()
            if not is_waiting or time.monotonic() > deadline:
                tail = job.log.read_text(errors="replace")[-500:] if job.log.exists() else ""
                raise BackendError(f"{run.name}: no supervisor started; see {job.log}\n{tail}")
            time.sleep(0.05)
        return Started(outcome="started")

    def cancel(self, run: RunFolder, stage: str | None) -> None:
        """Ask the supervisor, and wait until it has done so. Raises RunFailedError."""
        number = run.request_cancel(stage)
        timeout_s = run.cluster().retry.notice_s + self._cancel_slack_s
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not run.live_supervisor():
                return
            if stage and "obeyed_at" in run.cancel_requests()[number - 1]:
                return
            time.sleep(0.2)
        raise RunFailedError(
            f"{run.name}: still not stopped after {timeout_s:.0f} s; see `orchestrator status`"
        )

    def problems(self, request: Request) -> Iterator[str]:
        """Folders, accelerators, cores, memory and packages that this machine lacks."""
        cluster, where = request.cluster, request.cluster_file.name
        for source in request.recipe.corpus.sources:
            if source.name in cluster.data and not (root := root_of(cluster, source)).is_dir():
                yield f"{where}: data.{source.name}: {root} is not a folder; check the path"
        for name in models_of(request.variants):
            if name in cluster.models:
                folder = Path(resolve_env(cluster.models[name], where=f"{where}: models.{name}"))
                if not (folder / "config.json").is_file():
                    yield f"{where}: models.{name}: {folder} has no config.json; check the path"
        yield from _missing_hardware(request, where)
        absent = [name for name in JOB_PACKAGES if importlib.util.find_spec(name) is None]
        if absent and not cluster.environment.venv:
            yield f"this Python: {', '.join(absent)} not installed; pip install '.[jobs]'"

    def checks(self, cluster: Cluster) -> Iterator[Check]:
        """Packages and resources of this machine."""
        for name in JOB_PACKAGES:
            found = version_of(name)
            yield Check(f"package {name}", bool(found), found or "missing; pip install '.[jobs]'")
        cpus = os.cpu_count() or 1
        used = cluster.cpus or cpus
        yield Check("cpus", used <= cpus, f"{cpus} here, {used} used")
        gpus = max(cluster.resources_of(s.name).gpus_per_node for s in STAGES)
        yield Check("gpus", gpus <= num_gpus(), f"{num_gpus()} here, {gpus} used")
        folder = existing(open_store(cluster).storage.local_root or Path("/"))
        free = shutil.disk_usage(folder).free
        yield Check("disk", free > MIN_FREE_BYTES, f"{format_bytes(free)} free at {folder}")
        files = os.sysconf("SC_OPEN_MAX")
        remedy = f"{files}; ulimit -n {MIN_OPEN_FILES} or more"
        yield Check("open files", files >= MIN_OPEN_FILES, remedy)


def supervisor_job(run: RunFolder, store: Store) -> Job:
    """The job of a run's supervisor, which outlives whoever submits it."""
    names = ("--store", store.storage.url, "--run", run.name)
    return Job(
        name=run.name,
        argv=(python_of(run.cluster()), "-m", SUPERVISOR_MODULE, *names),
        log=RunLogs(run).continued(run.storage, SUPERVISOR_LOG),
        env=code_env(run),
        detached=True,
    )


def _missing_hardware(request: Request, where: str) -> Iterator[str]:
    cluster = request.cluster
    nodes = {(i.stage, i.node): None for i in request.plan.leaders if BY_NAME[i.stage].has_ranks}
    for stage, node in nodes:
        resources, gpus = cluster.resources_of(stage, node), num_gpus()
        if resources.gpus_per_node > gpus:
            asked = f"{where}: resources.{node}.gpus_per_node: {resources.gpus_per_node} asked"
            yield f"{asked}, this machine has {gpus}; use a cluster that has them"
        cpus, have = cpus_of(stage, resources), cluster.cpus or os.cpu_count() or 1
        if cpus > have:
            asked = f"{where}: resources.{node}: {cpus} CPU cores asked"
            yield f"{asked}, {have} here; ask for fewer ranks"
    if cluster.resources_of("train").gpus_per_node == 0:
        for variant in request.variants:
            yield from _too_much_for_memory(variant.recipe, where)


def _too_much_for_memory(recipe: Recipe, where: str) -> Iterator[str]:
    size = parameters_in_name(recipe.model.text_model)
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size and recipe.model.num_layers is None and STATE_BYTES_PER_PARAMETER * size > have:
        need_gb = STATE_BYTES_PER_PARAMETER * size / 1e9
        need = f"{where}: {recipe.model.text_model} needs {need_gb:.0f} GB of training state"
        yield f"{need}, this machine has {have / 1e9:.0f} GB; use a cluster with accelerators"
