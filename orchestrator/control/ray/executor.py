"""A run on a Ray cluster that is there: its supervisor is a job on the head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count
from pathlib import Path

from orchestrator.backends.base import Backend, Job, JobRef
from orchestrator.backends.ray_jobs import NAME, RayJobs
from orchestrator.control.cluster_choice import open_store
from orchestrator.control.executor import Check, LaunchedCluster, Request
from orchestrator.control.job import venv_python, with_setup
from orchestrator.control.ray.head import address_of, reached, token_here
from orchestrator.control.ray.head_processes import kill_head, require_here
from orchestrator.control.ray.idle_nodes import idle_nodes, in_words, least_of
from orchestrator.control.ray.launched import LaunchedRay
from orchestrator.control.ray.node_types import too_large
from orchestrator.control.ray.nodes import nodes_of
from orchestrator.control.ray.supervisor import MODULE
from orchestrator.control.requirements import version_of
from orchestrator.control.supervised import CANCEL_SLACK_S, SupervisedExecutor, last_line
from orchestrator.errors import BackendError, OrchestratorError, RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Plan
from orchestrator.spec.cluster import Cluster

START_TIMEOUT_S = 120.0
_LOOK_EVERY_S = 0.5


class RayExecutor(SupervisedExecutor):
    """Its supervisor is a Ray job; the store tells how it goes, whether the head lives or not."""

    supervises_elsewhere = True

    def __init__(
        self, start_timeout_s: float = START_TIMEOUT_S, cancel_slack_s: float = CANCEL_SLACK_S
    ) -> None:
        super().__init__(start_timeout_s, cancel_slack_s, look_every_s=_LOOK_EVERY_S)

    def jobs_of(self, cluster: Cluster) -> AbstractContextManager[RayJobs]:
        """The Jobs API of the cluster's head."""
        return reached(cluster)

    def supervisor_job(self, run: RunFolder, store: Store) -> Job:
        """The command on the head, which is called the same until a supervisor announces itself."""
        environment = run.cluster().environment
        python = venv_python(environment) or "python"
        names = ("--store", store.storage.url, "--run", run.name)
        return Job(
            name=run.name,
            argv=with_setup(environment, (python, "-m", MODULE, *names)),
            log=Path("of the head"),
            detached=True,
            tag=f"{run.name}-s{len(run.supervisors()) + 1:04d}",
        )

    def handed_over(self, backend: Backend, job: Job) -> JobRef:
        """Submit it, or find what another shell has submitted; past those that ended in vain."""
        names = (f"{job.tag}.{n}" if n > 1 else job.tag for n in count(1))
        refs = (JobRef(backend=NAME, id=name) for name in names)
        tag = next(ref.id for ref in refs if not backend.poll([ref])[ref].state.is_final)
        return backend.submit(replace(job, tag=tag))

    def last_words(self, backend: Backend, ref: JobRef, job: Job) -> tuple[str, str]:  # noqa: ARG002 (the head has them)
        """Of the job, as the head remembers them."""
        assert isinstance(backend, RayJobs)
        return last_line(backend.log(ref)), f"`ray job logs {ref.id}`"

    def require_head(self, run: RunFolder) -> None:
        """Whether this machine is the head."""
        if supervisor := run.live_supervisor():
            require_here(run.name, supervisor.process)

    def kill_head(self, run: RunFolder) -> None:
        """End all of its processes on this machine, the run's included."""
        self.require_head(run)
        if supervisor := run.live_supervisor():
            kill_head(supervisor.process)

    def launched(self, cluster: Cluster, where: str) -> LaunchedCluster:
        """The cluster of its launcher file."""
        return LaunchedRay(cluster, where)

    def problems(self, request: Request) -> Iterator[str]:
        """Whether anything says where the cluster is, and the token can be read."""
        try:
            address_of(request.cluster)
            token_here()
        except RequestError as error:
            yield str(error)

    def too_large(self, plan: Plan, cluster: Cluster, where: str) -> Iterator[str]:
        """Stages that none of the cluster's node types could ever hold."""
        yield from too_large(plan, cluster, where)

    def checks(self, cluster: Cluster) -> Iterator[Check]:
        """Whether the head answers, with which Ray, and whether it lets everybody in."""
        try:
            with reached(cluster) as jobs:
                theirs, is_open = jobs.version(), jobs.is_open()
                orphans, idle = _orphans(jobs, cluster), _idle(jobs, cluster)
        except OrchestratorError as error:
            yield Check("ray", False, str(error))
            return
        yield Check("ray", True, f"{jobs.url} answers, Ray {theirs}")
        if ours := version_of("ray"):
            remedy = "" if ours == theirs else f"; install {ours} there, or {theirs} here"
            yield Check("ray version", ours == theirs, f"{theirs} there, {ours} here{remedy}")
        detail = "the head lets everybody in; start it with RAY_AUTH_MODE=token"
        yield Check("ray token", not is_open, detail if is_open else "asked for")
        if orphans:  # they may be of another store
            words = ", ".join(f"`ray job stop {tag}`" for tag in orphans)
            detail = f"of no run of this store that is at work: {words}"
            yield Check("ray jobs", False, detail, is_optional=True)
        if idle:
            yield Check("ray nodes", False, idle, is_optional=True)


def _orphans(jobs: RayJobs, cluster: Cluster) -> list[str]:
    """Jobs of supervisors whose run nobody supervises; a store that is away has its own check."""
    try:
        store = open_store(cluster)
        known = set(store.runs())
    except (OrchestratorError, OSError):
        return []
    return [
        tag
        for tag, name in jobs.running().items()
        if tag.startswith(f"{name}-s")
        if name not in known or not RunFolder(store.run_storage(name)).live_supervisor()
    ]


def _idle(jobs: RayJobs, cluster: Cluster) -> str:
    """What to say of nodes with accelerators that do nothing, and that no run at work gives back.

    Empty where there are none, or the cluster file names no types.
    """
    least = least_of(cluster.ray)
    if not least or any(tag.startswith(f"{run}-s") for tag, run in jobs.running().items()):
        return ""
    try:
        nodes = nodes_of(jobs, cluster).there
    except BackendError as error:
        return str(error)
    found = idle_nodes(nodes, 60 * cluster.ray.idle_release_min, least)
    words = ", ".join(in_words(node) for node in found)
    remedy = "end them, or submit a run, which gives them back"
    return f"no run is at work, and {words}; {remedy}" if found else ""
