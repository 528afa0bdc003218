"""A run on Slurm: chained jobs execute it, and no process of ours stays on the login node.

All state lies in the run's folder and with the scheduler, so any login node can go on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from orchestrator.backends.base import JobRef
from orchestrator.backends.slurm import (
    NAME,
    NoRoomError,
    SlurmBackend,
    job_options,
    max_array,
    script,
)
from orchestrator.backends.slurm_commands import taken_from_shell
from orchestrator.control.cluster_choice import open_store
from orchestrator.control.executor import Check, Executor, JobPreview, Request, Started
from orchestrator.control.slurm.doctor import examine_slurm
from orchestrator.control.slurm.job_states import (
    JobStates,
    cancelled,
    close_attempts,
    failing_nodes,
    note_cancelled,
    note_ends,
    observed_from,
    open_jobs,
    ref_of,
    refs_of,
    unfinished,
    work_left,
)
from orchestrator.control.slurm.jobs import (
    PlannedJob,
    SubmissionContext,
    jobs_of,
    resized,
)
from orchestrator.control.slurm.more_nodes import has_room
from orchestrator.control.slurm.partitions import impossible_jobs, node_kinds
from orchestrator.control.slurm.reservations import blocked_jobs, reservations
from orchestrator.errors import BackendError, LeaseHeldError, RequestError, RunFailedError
from orchestrator.ledger import lease as leases
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import JobState, JobStatus, Observed
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import SubmittedJob, Submitter
from orchestrator.plan.planner import Instance, Plan
from orchestrator.quantities import format_several
from orchestrator.spec.cluster import Cluster, not_shared

CLUSTER_NAME = "ClusterName"
"""Slurm's word for what a cluster is called, here and in the environment of its jobs."""
SUBMIT_WAIT_S = 300.0
"""How long to wait for somebody else who is submitting the same run."""
CANCEL_SLACK_S = 60.0
_CANCEL_POLL_S = 1.0

log = logging.getLogger(__name__)


class SlurmExecutor(Executor):
    """Submits what is missing, asks once about everything, cancels."""

    def __init__(self, backend: SlurmBackend | None = None) -> None:
        self._backend = backend or SlurmBackend()

    def start(
        self,
        run: RunFolder,
        store: Store,
        submitted_by: Submitter = "user",
        excluding: Collection[str] = (),
    ) -> Started:
        """Submit what is left and has no job, without ``excluding`` and what needs those instances.

        Their jobs are cancelled, as are jobs that wait for what will never come. Raises
        BackendError, RequestError.
        """
        timeout_s = run.cluster().retry.heartbeat_timeout_s
        lease, holder = run.storage.at("submission-lease"), f"submission of {run.name}"
        try:  # of two shells that submit at once the second waits, and finds it submitted
            with leases.held(
                lease, holder=holder, timeout_s=timeout_s, wait_s=SUBMIT_WAIT_S
            ) as beat:
                return self._submit_missing(run, store, submitted_by, excluding, beat)
        except LeaseHeldError as error:
            raise BackendError(f"{run.name}: {error}; try again") from None

    def _submit_missing(
        self,
        run: RunFolder,
        store: Store,
        submitted_by: Submitter,
        excluding: Collection[str],
        beat: Callable[[], None],
    ) -> Started:
        plan = run.plan()
        undone = unfinished(plan, store)
        if not undone:
            return Started(outcome="done")
        states = self._job_states(run, store)
        hopeless = _with_followers(plan, undone, excluding)
        left = [i for i in undone if i.id not in hopeless]
        _require_known(run, states, left)
        kept = _kept(plan, left, states.live_stages())
        fresh = {i.id for i in left} - kept.keys()
        number = run.submissions.next_number()
        context = self._context(run, store.storage.url, number)
        needed = _needed(jobs_of(context, plan, left), fresh, states)
        renewed = any(part.kind == "sentinel" for part in needed)
        stale = states.living(hopeless | fresh, and_sentinel=renewed)
        self._cancel(run, [ref_of(job) for job in stale], "in the way of what was submitted later")
        if not needed:
            remarks = tuple(f"{i.id}: {w}" for i in left if (w := states.waits(i.id)))
            return Started(outcome="running" if left else "hopeless", remarks=remarks)
        number = run.submissions.begin(submitted_by, work_left(plan, store))
        return self._submit(replace(context, submission=number), needed, kept, beat)

    def observe(self, runs: Sequence[RunFolder]) -> dict[str, Observed]:
        """How the runs stand, from one question about all of their jobs."""
        refs = [ref for run in runs for ref in open_jobs(run)]
        try:
            answers, problem = self._backend.poll(refs), ""
        except BackendError as error:
            answers, problem = {}, str(error)
        return {run.name: observed_from(run, answers, problem) for run in runs}

    def cancel(self, run: RunFolder, stage: str | None) -> None:
        """Let running attempts save and end; take the rest out of the queue at once.

        How all of them ended is written down.
        """
        number = run.request_cancel(stage)
        chosen = {i.leader for i in run.plan().chosen(stage)} | ({""} if stage is None else set())
        jobs = {ref: job for ref, job in open_jobs(run).items() if job.instance in chosen}
        states = {ref: status.state for ref, status in self._backend.poll(list(jobs)).items()}
        running = {ref: job for ref, job in jobs.items() if states[ref] is JobState.RUNNING}
        saving = {job.instance for job in running.values() if job.kind == "stage"}
        queued = [ref for ref in jobs if states[ref] in (JobState.QUEUED, JobState.UNKNOWN)]
        # What runs may save; a worker ends with its head, and at once where that does not run.
        headless = [ref for ref, job in running.items() if job.instance not in saving]
        self._backend.cancel([*queued, *headless])
        ends = self._await_end(run, list(jobs)).items()
        ours = cancelled("cancelled by the user")
        note_ends(run, {ref: status if status.state.is_final else ours for ref, status in ends})
        run.note_cancelled(number, run.cancel_requests()[number - 1])

    def _await_end(self, run: RunFolder, refs: Sequence[JobRef]) -> dict[JobRef, JobStatus]:
        """How they stand once none is queued or running. Raises RunFailedError for those killed."""
        deadline = time.monotonic() + run.cluster().retry.notice_s + CANCEL_SLACK_S
        while True:
            states = self._backend.poll(refs)
            queued = [ref for ref in refs if states[ref].state is JobState.QUEUED]
            self._backend.cancel(queued)  # of those that ran, some may have been put back
            running = [ref for ref in refs if states[ref].state is JobState.RUNNING]
            if not queued and not running:
                return states
            if time.monotonic() > deadline:
                self._backend.cancel(running)
                note_cancelled(run, running, "killed, as it did not stop by itself")
                raise RunFailedError(
                    f"{run.name}: jobs {', '.join(r.id for r in running)} did not stop by "
                    "themselves and were killed; see `orchestrator status`"
                )
            time.sleep(_CANCEL_POLL_S)

    def _cancel(self, run: RunFolder, refs: Sequence[JobRef], why: str) -> None:
        self._backend.cancel(refs)
        note_cancelled(run, refs, why)

    def problems(self, request: Request) -> Iterator[str]:
        """A store that nodes cannot share."""
        storage = request.store.storage
        if storage.local_root is None:
            yield f"{request.cluster_file.name}: {not_shared(storage.url)}"

    def too_large(self, plan: Plan, cluster: Cluster, where: str) -> Iterator[str]:
        """Jobs that no partition could ever start, as far as Slurm says now."""
        if not (kinds := node_kinds()):
            return
        parts = self._parts_left(plan, cluster)
        problems = impossible_jobs(parts, kinds, {i.id: i.node for i in plan.instances})
        yield from dict.fromkeys(f"{where}: {problem}" for problem in problems)

    def remarks(self, plan: Plan, cluster: Cluster) -> Iterator[str]:
        """What sbatch takes from this shell, and reservations that jobs would run into."""
        reserved = reservations()
        if not reserved and not taken_from_shell([""], os.environ):
            return
        parts = self._parts_left(plan, cluster)
        yield from _from_shell(parts)
        if reserved:
            nodes = {i.id: i.node for i in plan.instances}
            yield from blocked_jobs(parts, node_kinds(), reserved, nodes)

    def _parts_left(self, plan: Plan, cluster: Cluster) -> tuple[PlannedJob, ...]:
        """The jobs of what a plan does not reuse; none where the store is no path."""
        store = open_store(cluster)
        run = RunFolder(store.run_storage(plan.run))
        if run.storage.local_root is None:
            return ()
        left = {i.leader for i in plan.instances if i.decision != "reuse"}
        context = SubmissionContext(
            run=run,
            store_url=store.storage.url,
            cluster=cluster,
            submission=1,
            max_array=max_array(self._config()),
        )
        return jobs_of(context, plan, [i for i in plan.leaders if i.id in left])

    def checks(self, cluster: Cluster) -> Iterator[Check]:
        """Limits, partitions, and what a job finds on a node."""
        yield from examine_slurm(cluster, self._backend)

    def preview(self, request: Request) -> Sequence[JobPreview]:
        """Every job that a submission would hand over now."""
        run = RunFolder(request.store.run_storage(request.plan.run))
        number, config = run.submissions.next_number(), self._config()
        context = SubmissionContext(
            run=run,
            store_url=request.store.storage.url,
            cluster=request.cluster,
            submission=number,
            max_array=max_array(config),
            exclude=failing_nodes(run, config.get(CLUSTER_NAME, "")) if run.exists() else (),
        )
        parts = jobs_of(context, request.plan, unfinished(request.plan, request.store))
        return tuple(_preview(part) for part in parts)

    def replace_workers(self, run: RunFolder, store: Store, instance: str) -> int:
        """Submit workers in place of those that have left the queue; how many.

        Asked by a stage's head. Raises BackendError.
        """
        plan, submissions = run.plan(), run.submissions
        head, *_ = refs_of(run, "stage", instance)
        theirs = [s for s in submissions.all() if any(j.instance == instance for j in s.jobs)]
        number = theirs[-1].number  # where those are that count as the newest workers
        context = self._context(run, store.storage.url, number)
        parts = [
            p for p in jobs_of(context, plan, [plan.instance(instance)]) if p.kind == "workers"
        ]
        refs = refs_of(run, "workers", instance)
        rows = self._backend.queue(refs).values() if refs else ()
        wanted = sum(p.num_tasks for p in parts)
        count = wanted - sum(not row.was_refused for group in rows for row in group)
        if count <= 0:
            return 0
        name = f"{instance}-workers-{len(refs) + 1}"
        part = resized(context, parts[0], name, min(count, parts[0].num_tasks))
        if late := self._backend.find([part.job]).get(part.job.tag):  # sbatch did not answer
            _record(run, number, part, late, time.time())
            return 0
        return self._submit_workers(context, part, [head])

    def has_room(
        self, run: RunFolder, store: Store, instance: str, partition: str, num_nodes: int
    ) -> bool:
        """Whether a stage's job would be given so many nodes more; not where Slurm is silent."""
        context = self._context(run, store.storage.url, run.submissions.all()[-1].number)
        part, *_ = jobs_of(context, run.plan(), [run.plan().instance(instance)])
        try:
            return has_room(self._backend, part.job, partition, num_nodes)
        except BackendError as error:
            log.warning("more nodes: %s", error)
            return False

    def avoid_nodes(self, run: RunFolder, instance: str, nodes: Sequence[str]) -> None:
        """Take workers off nodes, and keep those that wait off them. Raises BackendError."""
        self._backend.avoid(refs_of(run, "workers", instance), nodes)

    def _job_states(self, run: RunFolder, store: Store) -> JobStates:
        """The newest jobs of the run, and how each stands.

        Jobs that were accepted when whoever submitted them died are found by their tags. Attempts
        whose job has ended are closed. Raises BackendError.
        """
        submissions = run.submissions
        if not submissions.all():
            return JobStates((), {})
        newest, plan = submissions.all()[-1], run.plan()
        if not newest.is_whole:
            context = self._context(run, store.storage.url, newest.number)
            planned = {context.tag(p.name): p for p in jobs_of(context, plan, plan.leaders)}
            for tag, job_id in self._backend.find(p.job for p in planned.values()).items():
                _record(run, newest.number, planned[tag], job_id, newest.at)
        observed = self.observe([run])[run.name]
        if observed.problem:
            raise BackendError(observed.problem)
        for instance, status in observed.jobs.items():
            if status.state.is_final:
                close_attempts(run, store, instance, status)
        return JobStates(submissions.newest_jobs(), observed.by_id)

    def _context(self, run: RunFolder, store_url: str, number: int) -> SubmissionContext:
        config = self._config()
        return SubmissionContext(
            run=run,
            store_url=store_url,
            cluster=run.cluster(),
            submission=number,
            max_array=max_array(config),
            exclude=failing_nodes(run, config.get(CLUSTER_NAME, "")),
        )

    def _config(self) -> dict[str, str]:
        """The site's configuration; nothing where Slurm does not answer."""
        with suppress(BackendError):
            return self._backend.config()
        return {}

    def _submit(
        self,
        context: SubmissionContext,
        parts: Sequence[PlannedJob],
        kept: Mapping[str, SubmittedJob],
        beat: Callable[[], None],
    ) -> Started:
        """Hand jobs over, workers last: they take what places in the queue are left."""
        refs = {instance: ref_of(job) for instance, job in kept.items()}
        plan, submissions, number = context.run.plan(), context.run.submissions, context.submission
        submitted: list[JobRef] = []
        for part in (p for p in parts if p.kind != "workers"):
            beat()
            try:
                ref = self._backend.submit(part.job, [refs[i] for i in part.after])
            except RequestError as error:  # what comes before it would wait or work for nothing
                self._cancel(context.run, submitted, "what was submitted with it was refused")
                submissions.refuse(number, str(error))
                raise
            submitted.append(ref)
            _record(context.run, number, part, ref.id, ref.submitted_at)
            if part.kind == "stage":
                refs[part.instance] = ref
        workers = [part for part in parts if part.kind == "workers"]
        counts = {p.name: self._submit_workers(context, p, [refs[p.instance]]) for p in workers}
        submissions.close(number)
        return Started(
            outcome="started",
            num_jobs=len(submitted) + sum(count > 0 for count in counts.values()),
            remarks=(*_too_few(workers, counts), *self.remarks(plan, context.cluster)),
        )

    def _submit_workers(
        self, context: SubmissionContext, part: PlannedJob, after: Sequence[JobRef]
    ) -> int:
        """Submit as many of an array as there is room for in the queue; how many that are."""
        size = part.num_tasks
        while size:
            fitting = resized(context, part, part.name, size)
            try:
                ref = self._backend.submit(fitting.job, after)
            except NoRoomError:
                size //= 2
                continue
            _record(context.run, context.submission, fitting, ref.id, ref.submitted_at)
            return size
        return 0


def _require_known(run: RunFolder, states: JobStates, left: Sequence[Instance]) -> None:
    """Raises BackendError where a job may be at work that the scheduler does not know."""
    if lines := [f"{i.id}: {words}" for i in left if (words := states.unknown(i.id))]:
        others = f", and so {format_several(len(lines) - 1, 'other')}" if lines[1:] else ""
        raise BackendError(
            f"{run.name}: {lines[0]}{others}; resume after that, or `orchestrator cancel "
            f"{run.name}` if you know that it has ended"
        )


def _from_shell(parts: Iterable[PlannedJob]) -> Iterator[str]:
    """What sbatch takes from this shell because the cluster file does not say it."""
    if taken := taken_from_shell((script(part.job) for part in parts), os.environ):
        said = ", ".join(f"{name}={value}" for name, value in taken.items())
        yield f"from this shell, as the cluster file does not say it: {said}"


def _too_few(workers: Sequence[PlannedJob], counts: Mapping[str, int]) -> Iterator[str]:
    """What to know where not all workers fit into the queue."""
    for instance in dict.fromkeys(part.instance for part in workers):
        own = [part for part in workers if part.instance == instance]
        wanted, there = sum(p.num_tasks for p in own), sum(counts[p.name] for p in own)
        if there < wanted:
            yield (
                f"{instance}: {there} of {wanted} workers fit into this site's limit on jobs in "
                "the queue; its head asks for more as room appears"
            )


def _preview(part: PlannedJob) -> JobPreview:
    """A job that has no id yet: in its script, a dependency names the stage that it is on."""
    shape, options = part.job.shape, job_options(part.job).sbatch
    return JobPreview(
        name=part.name,
        instance=part.instance,
        shape=replace(
            shape,
            cpus=options.cpus or shape.cpus,
            mem_gb=options.mem_gb or shape.mem_gb,
            walltime_min=options.walltime_min or shape.walltime_min,
        ),
        queue=options.partition or "",
        script=script(part.job, [JobRef(backend=NAME, id=f"<{i}>") for i in part.after]),
    )


def _kept(
    plan: Plan, left: Sequence[Instance], live: Mapping[str, SubmittedJob]
) -> dict[str, SubmittedJob]:
    """Live jobs that may go on: all they wait for is done, or has a job that may go on."""
    ids = {i.id for i in left}
    kept: dict[str, SubmittedJob] = {}
    for instance in left:  # in the order of the data's path
        if instance.id in live and all(n in kept for n in plan.upstream(instance.id) & ids):
            kept[instance.id] = live[instance.id]
    return kept


def _needed(
    parts: Sequence[PlannedJob], fresh: Collection[str], states: JobStates
) -> list[PlannedJob]:
    """The jobs that must be submitted, where the stage jobs of ``fresh`` must.

    Each submission has a sentinel of its own: that of an earlier one leaves the run to it.
    """
    needed = [
        part
        for part in parts
        if part.instance in fresh
        or (part.kind == "workers" and not states.has("workers", part.instance))
    ]
    sentinels = [part for part in parts if part.kind == "sentinel"]
    return needed + (sentinels if needed or not states.waiting_sentinels() else [])


def _with_followers(plan: Plan, left: Sequence[Instance], chosen: Collection[str]) -> set[str]:
    """Instances, and all that cannot be done without them."""
    found = set(chosen)
    for instance in left:  # in the order of the data's path
        if found & plan.upstream(instance.id):
            found.add(instance.id)
    return found


def _record(run: RunFolder, number: int, part: PlannedJob, job_id: str, at: float) -> None:
    job = SubmittedJob(
        name=part.name, kind=part.kind, instance=part.instance, id=job_id, submitted_at=at
    )
    run.submissions.record(number, job)
