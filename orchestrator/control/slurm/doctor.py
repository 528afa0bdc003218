"""Whether a Slurm cluster can do what a run will ask of it: its limits, and a job that tries.

The probe goes the way that every job goes: submit's script, the store's code, the nodes' Python.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator.backends.base import Job, JobRef
from orchestrator.backends.slurm import SlurmBackend, ask, job_options, max_array
from orchestrator.control.cluster_choice import open_store
from orchestrator.control.code_snapshot import code_snapshot
from orchestrator.control.executor import Check
from orchestrator.control.slurm.jobs import SubmissionContext, job_of, options_of, part_of, shape_of
from orchestrator.control.slurm.partitions import minutes_of
from orchestrator.control.slurm.probe import FOUND, HEARD
from orchestrator.errors import BackendError, OrchestratorError
from orchestrator.ledger.run import RunFolder
from orchestrator.plan.stages import STAGES
from orchestrator.spec.cluster import Cluster

MIN_VERSION = (21, 8)
PROBE = "orchestrator.control.slurm.probe"
Part = Literal["head", "training"]
PARTS: tuple[Part, ...] = get_args(Part)
PROBE_TIMEOUT_S = 180.0
_POLL_S = 1.0


def examine_slurm(cluster: Cluster, backend: SlurmBackend) -> Iterator[Check]:
    """Every check, from the cheapest on; the rest makes no sense without the first."""
    try:
        config = backend.config()
    except BackendError as error:
        yield Check("slurm", False, str(error))
        return
    yield from _site_checks(cluster, config)
    partitions = _partitions()
    for name, wanted in _wanted(cluster).items():
        yield _partition(name, wanted, partitions)
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
    yield Check("array size", True, f"{max_array(config)} tasks; larger arrays are split")


def _wanted(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """For each partition that jobs name: the longest walltime in minutes, and most nodes."""
    wanted: dict[str, tuple[int, int]] = {}
    context = _context(cluster, RunFolder(open_store(cluster).storage))
    for stage in STAGES:
        shape = shape_of(cluster, stage.name)
        parts = [part_of(cluster, shape)]
        if stage.is_elastic:
            parts.append(cluster.slurm.workers)
        for part in parts:
            options = options_of(context, stage.name, part)
            minutes = options.walltime_min or shape.walltime_min
            for name in (options.partition or "").split(","):
                most = wanted.get(name, (0, 0))
                wanted[name] = (max(most[0], minutes), max(most[1], shape.num_nodes))
    return wanted


def _partitions() -> dict[str, dict[str, str]]:
    """What Slurm says of each partition by its name, and by "" of the default one."""
    found = {}
    for line in ask("scontrol", "show", "partition", "--oneliner").splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        found[fields["PartitionName"]] = fields
        if fields.get("Default") == "YES":
            found[""] = fields
    return found


def _partition(
    name: str, wanted: tuple[int, int], partitions: Mapping[str, Mapping[str, str]]
) -> Check:
    """Whether a partition can take the longest job, and the one of most nodes, that name it."""
    title = f"partition {name}" if name else "default partition"
    if name not in partitions:
        there = ", ".join(sorted(p for p in partitions if p))
        return Check(title, False, f"does not exist; this cluster has {there}")
    (minutes, nodes), fields = wanted, partitions[name]
    max_minutes, num_nodes = minutes_of(fields["MaxTime"]), int(fields["TotalNodes"])
    problems = []
    if fields["State"] != "UP":
        problems.append("it is not up")
    if minutes > max_minutes:
        problems.append(f"walltime_min {minutes} asked, {max_minutes:.0f} allowed")
    if nodes > num_nodes:
        problems.append(f"{nodes} nodes asked, {num_nodes} there")
    facts = f"{num_nodes} nodes, preemption {fields.get('PreemptMode', 'OFF')}"
    return Check(title, not problems, "; ".join(problems) or facts)


def _probed(cluster: Cluster, backend: SlurmBackend, part: Part) -> Iterator[Check]:
    """What a job of one node finds there: the store, accelerators, Python, and signals."""
    store = open_store(cluster).storage
    storage = store.at("doctor", secrets.token_hex(4))
    if store.local_root is None or storage.local_root is None:
        yield Check(f"{part} node", False, f"{storage.url}: no path; nodes cannot share it")
        return
    folder, ref, is_new = RunFolder(storage), None, not store.local_root.exists()
    for path, data in code_snapshot().items():
        storage.replace(f"code/{path}", data)
    try:
        job = _probe_job(cluster, folder, part)
        ref = backend.submit(job)
        found = _await(folder, FOUND, backend, ref)
        yield from _findings(part, job.shape.gpus, found)
        backend.warn([ref])
        heard = _await(folder, HEARD, backend, ref)
        yield Check(f"{part} node: signals", True, f"{heard['signal']} arrives")
    except OrchestratorError as error:
        yield Check(f"{part} node", False, str(error))
    finally:
        if ref:
            backend.cancel([ref])
        shutil.rmtree(storage.local_root)
        with suppress(OSError):  # another probe is there, or by now a run
            storage.local_root.parent.rmdir()
            if is_new:
                store.local_root.rmdir()


def _probe_job(cluster: Cluster, folder: RunFolder, part: Part) -> Job:
    context = _context(cluster, folder)
    kinds = [s.name for s in STAGES if (s.has_ranks if part == "training" else s.is_elastic)]
    stage = max(kinds, key=lambda name: cluster.resources_of(name).gpus_per_node)
    shape = replace(shape_of(cluster, stage), num_nodes=1, walltime_min=5)
    part_options = cluster.slurm.head if part == "head" else None
    options = options_of(context, stage, part_options)
    options = options.model_copy(update={"walltime_min": None})
    argv = context.module(PROBE, gpus=shape.gpus)
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


def _await(folder: RunFolder, name: str, backend: SlurmBackend, ref: JobRef) -> dict[str, Any]:
    """What the probe has written; raises BackendError with the reason when nothing comes."""
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    while not folder.storage.exists(name):
        status = backend.poll([ref])[ref]
        if status.state.is_final:
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
