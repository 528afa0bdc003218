"""Which jobs a plan becomes on Slurm, exactly as they are sent.

In: a run, its cluster, the stage instances that are left. Out: jobs in the order of submission, and
what each comes after. A data stage is a head, where its driver runs, and an array of workers that
join it; all else is one job. Pure: `plan --scripts` shows what `submit` sends.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.backends.base import Job, Shape, Start
from orchestrator.backends.slurm import JobOptions
from orchestrator.backends.slurm_allocation import REQUEUE_LINES, TERMS
from orchestrator.control.job import venv_python
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.submission import JobKind, Submissions
from orchestrator.plan.planner import Instance, Plan
from orchestrator.plan.stages import BY_NAME
from orchestrator.spec.cluster import Cluster, SlurmOptions, not_shared
from orchestrator.spec.loader import resolve_env

STAGE = "orchestrator.control.slurm.stage_job"
WORKER = "orchestrator.control.slurm.ray_worker"
SENTINEL = "orchestrator.control.slurm.sentinel"
SENTINEL_NAME = "sentinel"
_SENTINEL_SHAPE = Shape(cpus=1, mem_gb=2.0, walltime_min=60)


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """One submission to be."""

    job: Job
    name: str
    """Within its submission."""
    kind: JobKind
    instance: str
    after: tuple[str, ...]
    """Instances whose stage jobs it comes after."""

    @property
    def num_tasks(self) -> int:
        """How many of the queue's places it takes."""
        return max(self.job.shape.array, 1)


@dataclass(frozen=True, kw_only=True)
class SubmissionContext:
    """What all jobs of one submission have in common."""

    run: RunFolder
    store_url: str
    cluster: Cluster
    submission: int
    max_array: int = 1000
    """Most tasks of one array here; 0 where there are no arrays."""
    exclude: tuple[str, ...] = ()
    """Nodes that have failed alone."""

    def module(self, module: str, *words: str, gpus: int = 0) -> tuple[str, ...]:
        """The command that runs a module of the run's own code."""
        own = ("-u", "-m", module, "--store", self.store_url, "--run", self.run.name, *words)
        environment = self.cluster.environment
        inside = venv_python(environment)
        if not environment.container:
            return (inside or sys.executable, *own)
        command = (inside or "python3", *own)
        if environment.container_runtime == "pyxis":
            return command
        opened = ("apptainer", "exec", *(["--nv"] if gpus else []), "--bind", ",".join(self.mounts))
        return (*opened, self.image, *command)

    @property
    def image(self) -> str:
        """The container image; empty for none."""
        image = self.cluster.environment.container or ""
        return resolve_env(image, where="cluster: environment.container", is_place=False)

    @property
    def mounts(self) -> tuple[str, ...]:
        """Folders that a container must see."""
        roots = [self.store_url, *self.cluster.data_locations, *self.cluster.models.values()]
        scratch = [self.cluster.scratch] if self.cluster.scratch else []
        paths = (resolve_env(path, where="cluster") for path in [*roots, *scratch])
        return tuple(dict.fromkeys(path for path in paths if path.startswith("/")))

    @property
    def srun_options(self) -> tuple[str, ...]:
        """Options of srun for a container."""
        environment = self.cluster.environment
        if not environment.container or environment.container_runtime != "pyxis":
            return ()
        mounts = ",".join(f"{path}:{path}" for path in self.mounts)
        return (f"--container-image={self.image}", f"--container-mounts={mounts}")

    def tag(self, name: str) -> str:
        """What a job is recognised by, in the scheduler's comment field."""
        store = hashlib.sha256(self.run.storage.url.encode()).hexdigest()[:8]
        return f"orchestrator {store} {self.run.name} {self.submission} {name}"

    @property
    def folder(self) -> Path:
        """The run's folder. Raises RequestError when the store is no path."""
        if self.run.storage.local_root is None:
            raise RequestError(not_shared(self.store_url))
        return self.run.storage.local_root

    def log(self, name: str) -> Path:
        """A path in the folder of a job."""
        return self.folder / Submissions.folder(self.submission) / name / "log"


def jobs_of(
    context: SubmissionContext, plan: Plan, left: Sequence[Instance]
) -> tuple[PlannedJob, ...]:
    """The jobs of all instances that are left."""
    ids = {i.id for i in left}
    jobs: list[PlannedJob] = []
    for instance in left:
        jobs.append(_stage(context, plan, instance, ids))
        if BY_NAME[instance.stage].is_elastic:
            jobs += _workers(context, instance)
    if context.cluster.slurm.max_resumes and jobs:
        jobs.append(_sentinel(context, tuple(i.id for i in plan.instances if i.id in ids)))
    return tuple(jobs)


def _stage(
    context: SubmissionContext, plan: Plan, instance: Instance, ids: Collection[str]
) -> PlannedJob:
    shape = shape_of(context.cluster, instance.stage, instance.node)
    options = options_of(context, instance.stage, part_of(context.cluster, shape), instance.node)
    walltime_min = options.walltime_min or shape.walltime_min
    words = ("--instance", instance.id, "--walltime-min", str(walltime_min))
    needs = plan.upstream(instance.id)
    argv = context.module(STAGE, *words, gpus=shape.gpus)
    return PlannedJob(
        job=job_of(context, instance.id, argv, shape, options),
        name=instance.id,
        kind="stage",
        instance=instance.id,
        after=tuple(i.id for i in plan.instances if i.id in needs and i.id in ids),
    )


def part_of(cluster: Cluster, shape: Shape) -> SlurmOptions | None:
    """The options of heads, for what needs no more than they do."""
    return cluster.slurm.head if not shape.gpus and shape.num_nodes == 1 else None


def shape_of(cluster: Cluster, stage: str, node: str = "") -> Shape:
    """What a stage's own job asks for; a data stage's is its head."""
    resources, has_ranks = cluster.resources_of(stage, node), BY_NAME[stage].has_ranks
    ranks = resources.local_world_size if has_ranks else 1
    return Shape(
        num_nodes=resources.max_nodes if has_ranks else 1,
        min_nodes=resources.min_nodes if has_ranks else None,
        cpus=resources.cpus_per_worker * ranks,
        gpus=0 if BY_NAME[stage].is_elastic else resources.gpus_per_node,
        mem_gb=resources.mem_gb,
        walltime_min=resources.walltime_min,
        warn_s=round(cluster.retry.notice_s),
    )


def _workers(context: SubmissionContext, instance: Instance) -> Iterator[PlannedJob]:
    """The array of workers, in as many parts as the site's limit makes of it."""
    resources = context.cluster.resources_of(instance.stage, instance.node)
    options = options_of(context, instance.stage, context.cluster.slurm.workers, instance.node)
    argv = context.module(WORKER, "--instance", instance.id, gpus=resources.gpus_per_node)
    shape = replace(
        shape_of(context.cluster, instance.stage, instance.node),
        cpus=resources.workers_per_node * resources.cpus_per_worker,
        gpus=resources.gpus_per_node,
    )
    most = max(context.max_array, 1)
    for first in range(0, resources.max_nodes, most):
        name = f"{instance.id}-workers" + (f"-{first // most + 1}" if first else "")
        size = min(most, resources.max_nodes - first) if context.max_array else 0
        part = replace(shape, array=size)
        yield PlannedJob(
            job=job_of(context, name, argv, part, options, start="started"),
            name=name,
            kind="workers",
            instance=instance.id,
            after=(instance.id,),
        )


def resized(context: SubmissionContext, part: PlannedJob, name: str, size: int) -> PlannedJob:
    """The same workers under another name, and another number of them."""
    shape = part.job.shape
    job = replace(
        part.job,
        name=f"{context.run.name}/{name}",
        log=context.log(name),
        tag=context.tag(name),
        shape=replace(shape, array=size if shape.array else 0),
    )
    return replace(part, name=name, job=job)


def _sentinel(context: SubmissionContext, watched: tuple[str, ...]) -> PlannedJob:
    """Runs outside any container: all it needs is the control plane and Slurm's commands."""
    argv = (sys.executable, "-u", "-m", SENTINEL, "--store", context.store_url)
    slurm, setup = context.cluster.slurm, context.cluster.environment.setup
    options = _sentinel_options(context)
    words = ("--run", context.run.name, "--submission", str(context.submission))
    minutes = ("--walltime-min", str(options.walltime_min))
    job = job_of(
        context, SENTINEL_NAME, (*argv, *words, *minutes), _SENTINEL_SHAPE, options, start="failed"
    )
    return PlannedJob(
        job=replace(job, options=JobOptions(sbatch=options, requeue=slurm.requeue, setup=setup)),
        name=SENTINEL_NAME,
        kind="sentinel",
        instance="",
        after=watched,
    )


def _sentinel_options(context: SubmissionContext) -> SlurmOptions:
    """Those of heads, with no more memory and time than a sentinel needs."""
    own = context.cluster.slurm.sentinel
    head, shape = options_of(context, None, context.cluster.slurm.head), _SENTINEL_SHAPE
    least = {
        "cpus": own.cpus,
        "mem_gb": own.mem_gb or min(head.mem_gb or shape.mem_gb, shape.mem_gb),
        "walltime_min": own.walltime_min
        or min(head.walltime_min or shape.walltime_min, shape.walltime_min),
    }
    return head.under(own).model_copy(update=least)


def job_of(
    context: SubmissionContext,
    name: str,
    argv: tuple[str, ...],
    shape: Shape,
    options: SlurmOptions,
    start: Start = "succeeded",
) -> Job:
    """A job with all that jobs here have in common."""
    environment, log = context.cluster.environment, context.log(name)
    terms = {TERMS: str(log.parent / "terms")} if environment.container else {}
    return Job(
        name=f"{context.run.name}/{name}",
        argv=argv,
        log=log,
        env={"PYTHONPATH": str(context.folder / "code"), "PYTHONSAFEPATH": "1", **terms},
        shape=shape,
        options=JobOptions(
            sbatch=options,
            requeue=context.cluster.slurm.requeue,
            setup=environment.setup,
            teardown=REQUEUE_LINES if environment.container else (),
            srun=context.srun_options,
        ),
        tag=context.tag(name),
        start=start,
    )


def options_of(
    context: SubmissionContext, stage: str | None, part: SlurmOptions | None, node: str = ""
) -> SlurmOptions:
    """What all jobs get, then this part of a stage, then stage and node; the last word wins."""
    slurm = context.cluster.slurm
    options = slurm.under(part)
    for name in dict.fromkeys((stage or "", node)):
        options = options.under(slurm.stages.get(name))
    return options.under(SlurmOptions(exclude=context.exclude))
