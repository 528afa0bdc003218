"""Whether a Slurm cluster can do what a run will ask of it: its limits, and a job that tries.

The probe goes the way that every job goes: submit's script, the store's code, the nodes' Python.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator.backends.base import Job, JobRef
from orchestrator.backends.slurm import NO_ROOM, SlurmBackend, job_options, max_array, script
from orchestrator.control.cluster_choice import open_store
from orchestrator.control.code_snapshot import code_snapshot
from orchestrator.control.executor import Check
from orchestrator.control.slurm.jobs import (
    PlannedJob,
    SubmissionContext,
    job_of,
    jobs_of,
    options_of,
    shape_of,
)
from orchestrator.control.slurm.partitions import (
    NodeKind,
    absent_partitions,
    names_of,
    node_kinds,
    oversized_jobs,
    partitions_of,
)
from orchestrator.control.slurm.probe import FOUND, HEARD
from orchestrator.control.slurm.reservations import blocked_jobs, reservations
from orchestrator.errors import BackendError, OrchestratorError, os_words
from orchestrator.ledger.run import RunFolder
from orchestrator.plan.planner import Instance, Plan
from orchestrator.plan.stages import STAGES
from orchestrator.quantities import format_several
from orchestrator.spec.cluster import Cluster, MemoryForm

MIN_VERSION = (21, 8)
PROBE = "orchestrator.control.slurm.probe"
Part = Literal["head", "training"]
PARTS: tuple[Part, ...] = get_args(Part)
PROBE_TIMEOUT_S = 180.0
MEMORY_FORMS: tuple[MemoryForm, ...] = ("per_node", "per_cpu", "none", "whole_node")
"""In the order in which they are tried: all of a node is taken almost everywhere, but costs it."""
_POLL_S = 1.0


def examine_slurm(cluster: Cluster, backend: SlurmBackend) -> Iterator[Check]:
    """Every check, from the cheapest on; the rest makes no sense without the first."""
    try:
        config = backend.config()
    except BackendError as error:
        yield Check("slurm", False, str(error))
        return
    yield from _site_checks(cluster, config)
    parts = every_job(cluster, max_array(config))
    kinds, nodes = node_kinds(), {part.instance: part.instance for part in parts}
    yield from _partition_checks(parts, kinds, nodes)
    for line in blocked_jobs(parts, kinds, reservations(), nodes):
        name, _, what = line.partition(" from ")
        yield Check(name, False, f"from {what}", is_optional=True)
    yield from _acceptance(parts, backend)
    for part in PARTS:
        yield from _probed(cluster, backend, part)


def _site_checks(cluster: Cluster, config: Mapping[str, str]) -> Iterator[Check]:
    """What the site's configuration says, and what it means for runs."""
    version = config.get("SLURM_VERSION", "")
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    needed = ".".join(f"{part:02d}" for part in MIN_VERSION)
    yield Check("slurm", found >= MIN_VERSION, f"{version}; {needed} or later is needed")
    how = "jobs are requeued" if cluster.slurm.requeue else "the sentinel submits anew"
    is_possible = config.get("JobRequeue") == "1" or not cluster.slurm.requeue
    remedy = "JobRequeue=0 at this site; set slurm.requeue: false in the cluster file"
    yield Check("requeue", is_possible, how if is_possible else remedy)
    becomes = "a job whose node cannot start it waits for another"
    is_held = "nohold_on_prolog_fail" not in config.get("SchedulerParameters", "")
    if is_held:
        becomes = "a job whose node cannot start it is held; `orchestrator resume` replaces it"
    yield Check("failed launches", not is_held, becomes, is_optional=True)
    books = "no slurmdbd: what became of a job is forgotten after MinJobAge"
    has_books = "slurmdbd" in config.get("AccountingStorageType", "")
    if has_books:
        books = "slurmdbd keeps the books"
    yield Check("accounting", has_books, books, is_optional=True)
    size = max_array(config)
    arrays = f"{size} tasks; larger arrays are split"
    if not size:
        arrays = "this site has no arrays; every worker is a job of its own"
    yield Check("array size", True, arrays)


def every_job(cluster: Cluster, max_tasks: int = 1000) -> tuple[PlannedJob, ...]:
    """All jobs that a run of any recipe would submit here, those that ask for the same once.

    There is one for each stage, for each node that the cluster file names, and the sentinel.
    ``max_tasks``: most of one array here.
    """
    context = _context(cluster, RunFolder(open_store(cluster).storage))
    context = replace(context, max_array=max_tasks)
    names = dict.fromkeys((*(s.name for s in STAGES), *cluster.resources, *cluster.slurm.stages))
    instances = tuple(_instance(name) for name in names)
    plan = Plan(recipe="doctor", run="doctor", variants=(), instances=instances)
    by_request: dict[tuple[str, ...], PlannedJob] = {}
    for part in jobs_of(context, plan, instances):
        by_request.setdefault(_request_of(part), part)
    return tuple(by_request.values())


def _instance(node: str) -> Instance:
    """A node of no recipe, made of nothing."""
    of_none: dict[str, Any] = {"key": "", "inputs": {}, "needs": {}, "variants": ()}
    return Instance(id=node, stage=node.partition(".")[0], node=node, leader=node, **of_none)


def _request_of(part: PlannedJob) -> tuple[str, ...]:
    """What a job asks for, as its script says it, without what names it."""
    options = (line for line in script(part.job).splitlines() if line.startswith("#SBATCH"))
    names = ("comment", "job-name", "output", "error")
    named = tuple(f"#SBATCH --{name}=" for name in names)
    return (part.kind, *(line for line in options if not line.startswith(named)))


def _partition_checks(
    parts: Sequence[PlannedJob], kinds: Sequence[NodeKind], nodes: Mapping[str, str]
) -> Iterator[Check]:
    """The partitions that jobs name, and which jobs none of them could ever start."""
    if not kinds:
        yield Check("partitions", False, "sinfo does not answer; only sbatch judges", True)
    used = {k.partition: None for part in parts for own in partitions_of(part, kinds) for k in own}
    for name in used:
        yield _partition([kind for kind in kinds if kind.partition == name])
    for name in absent_partitions(parts, kinds) if kinds else ():
        there = f"does not exist; this cluster has {names_of(kinds)}"
        yield Check(f"partition {name}", False, there)
    for problem in dict.fromkeys(oversized_jobs(parts, kinds, nodes)):
        where, _, what = problem.partition(": ")
        yield Check(f"asked in {where}", False, what)


def _partition(kinds: Sequence[NodeKind]) -> Check:
    first, num_nodes = kinds[0], sum(kind.num_nodes for kind in kinds)
    shown = "; ".join(dict.fromkeys(kind.shown for kind in kinds))
    facts = f"{format_several(num_nodes, 'node')} ({shown}), preemption {first.preemption}"
    if first.is_exclusive:
        facts += (
            "; every job gets whole nodes, one of one core too: name a shared partition in "
            "slurm.head, and say memory: whole_node for jobs that should have all of it"
        )
    return Check(f"partition {first.partition}", first.is_up, facts if first.is_up else "not up")


def _acceptance(parts: Sequence[PlannedJob], backend: SlurmBackend) -> Iterator[Check]:
    """Whether sbatch would take each job, and in which form it wants to be asked for memory."""
    refused = {part.name: (part, why) for part in parts if (why := backend.refusal(part.job))}
    for name, (part, why) in refused.items():
        if re.search(NO_ROOM, why):
            detail = f"fewer at a time, the others as room appears ({why})"
            yield Check(f"job {name}", False, detail, is_optional=True)
            continue
        forms = (form for form in MEMORY_FORMS if not backend.refusal(_with_memory(part.job, form)))
        remedy = "look at slurm and resources in the cluster file"
        if form := next(forms, ""):
            remedy = f"the site takes it with memory: {form} in the cluster file's slurm"
        yield Check(f"job {name}", False, f"{why}; {remedy}")
    if not refused:
        yield Check("jobs", True, f"sbatch takes all {len(parts)} kinds, the sentinel's too")


def _with_memory(job: Job, form: MemoryForm) -> Job:
    """The same job, asking for its memory in another form."""
    ours = job_options(job)
    sbatch = ours.sbatch.model_copy(update={"memory": form})
    return replace(job, options=replace(ours, sbatch=sbatch))


def _probed(cluster: Cluster, backend: SlurmBackend, part: Part) -> Iterator[Check]:
    """What a job of one node finds there: the store, accelerators, Python, and signals."""
    store = open_store(cluster).storage
    storage = store.at("doctor", secrets.token_hex(4))
    if store.local_root is None or storage.local_root is None:
        yield Check(f"{part} node", False, f"{storage.url}: no path; nodes cannot share it")
        return
    folder, ref, is_new = RunFolder(storage), None, not store.local_root.exists()
    try:
        for path, data in code_snapshot().items():
            storage.replace(f"code/{path}", data)
        job = _probe_job(cluster, folder, part)
        ref = backend.submit(job)
        found = _await(folder, FOUND, backend, ref)
        yield from _findings(part, job.shape.gpus, found)
        backend.warn([ref])
        heard = _await(folder, HEARD, backend, ref)
        yield Check(f"{part} node: signals", True, f"{heard['signal']} arrives")
    except (OrchestratorError, OSError) as error:
        said = os_words(error) if isinstance(error, OSError) else str(error)
        yield Check(f"{part} node", False, said)
    finally:
        with suppress(BackendError):  # it ends by itself within minutes
            backend.cancel([ref] if ref else [])
        shutil.rmtree(storage.local_root, ignore_errors=True)  # its log may still be written to
        with suppress(OSError):  # another probe is there, or by now a run
            storage.local_root.parent.rmdir()
            if is_new:
                store.local_root.rmdir()


def _probe_job(cluster: Cluster, folder: RunFolder, part: Part) -> Job:
    context = _context(cluster, folder)
    kinds = [s.name for s in STAGES if (s.has_ranks if part == "training" else s.is_elastic)]
    stage = max(kinds, key=lambda name: cluster.resources_of(name).gpus_per_node)
    shape = replace(shape_of(cluster, stage), num_nodes=1, min_nodes=None, walltime_min=5)
    part_options = cluster.slurm.head if part == "head" else None
    options = options_of(context, stage, part_options)
    options = options.model_copy(update={"walltime_min": None})
    folders = (*cluster.data_locations, *cluster.models.values())
    words = [word for folder in folders if "://" not in folder for word in ("--folder", folder)]
    words += ["--scratch", cluster.scratch] if cluster.scratch else []
    argv = context.module(PROBE, *words, gpus=shape.gpus)
    job = job_of(context, "probe", argv, shape, options)
    return replace(job, options=replace(job_options(job), requeue=False))


def _context(cluster: Cluster, folder: RunFolder) -> SubmissionContext:
    store = open_store(cluster).storage.url
    return SubmissionContext(run=folder, store_url=store, cluster=cluster, submission=1)


def _findings(part: Part, gpus: int, found: dict[str, Any]) -> Iterator[Check]:
    yield Check(f"{part} node: store", True, f"{found['node']} sees it")
    absent = [name for name, version in found["packages"].items() if version is None]
    packages = " with all packages"
    if absent:
        packages = f"; {', '.join(absent)} missing: pip install '.[jobs]' there"
    yield Check(f"{part} node: python", not absent, found["python"] + packages)
    yield Check(f"{part} node: GPUs", found["gpus"] >= gpus, f"{found['gpus']} given, {gpus} asked")
    if problem := found["scratch"]:
        yield Check(f"{part} node: scratch", False, f"{problem}; name a folder on each node's disk")
    for folder in found["unseen"]:  # matters only to the recipes that name it
        unseen = f"does not see {folder}; mount it there, or name another folder"
        yield Check(f"{part} node: folders", False, unseen, is_optional=True)


def _await(folder: RunFolder, name: str, backend: SlurmBackend, ref: JobRef) -> dict[str, Any]:
    """What the probe has written; raises BackendError with the reason when nothing comes."""
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    while not folder.storage.exists(name):
        status = backend.poll([ref])[ref]
        if status.state.is_final:
            if folder.storage.exists(name):  # written since the look before, just before its end
                break
            raise BackendError(
                f"the probe ended as {status.detail}; its log ends: {_last_words(folder)}"
            )
        if time.monotonic() > deadline:
            raise BackendError(
                f"the probe (job {ref.id}) is {status.detail or 'unknown'} after "
                f"{PROBE_TIMEOUT_S:.0f} s; try again when the partition is less busy"
            )
        time.sleep(_POLL_S)
    return dict(folder.storage.read_json(name))


def _last_words(folder: RunFolder) -> str:
    logs = (folder.storage.local_root or Path()).rglob("*_log.out")
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
    return lines[-1] if lines else "nothing"
