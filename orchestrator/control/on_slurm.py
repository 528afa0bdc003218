"""A run on Slurm: chained jobs carry it, and no process of ours stays on the login node.

All that is known lies in the run's folder and with the scheduler, so any login node can go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.backends.base import JobRef, JobState, JobStatus
from orchestrator.backends.slurm import LAUNCH_FAILED, NAME, SlurmBackend, script
from orchestrator.control.carrier import Observed
from orchestrator.control.slurm_jobs import PlannedJob, Surroundings, jobs_of, resized
from orchestrator.errors import BackendError, LeaseHeldError, RequestError, RunFailedError
from orchestrator.ledger import lease as leases
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import JobKind, Submissions, SubmittedJob, Submitter
from orchestrator.plan.planner import Instance, Plan
from orchestrator.plan.stages import BY_NAME
from orchestrator.spec.cluster import Cluster

USUAL_MAX_ARRAY = 1000
"""What Slurm allows where the site has said nothing."""
SMALL_ARRAY = 100
"""What every site allows."""
SUBMIT_WAIT_S = 300.0
"""How long to wait for somebody else who is submitting the same run."""
CANCEL_SLACK_S = 60.0
_POLL_S = 0.5
_CANCEL_POLL_S = 2.0


@dataclass(frozen=True)
class _Known:
    """The newest jobs of a run by kind and instance, and how each stands by its id."""

    jobs: Mapping[tuple[JobKind, str], tuple[SubmittedJob, ...]]
    states: Mapping[str, JobStatus]

    def has(self, kind: JobKind, instance: str) -> bool:
        """Whether such a job is queued or running."""
        return any(self._lives(job) for job in self.jobs.get((kind, instance), ()))

    def live_stages(self) -> dict[str, SubmittedJob]:
        """The job of each stage instance whose own job is queued or running."""
        stages = ((i, group[0]) for (kind, i), group in self.jobs.items() if kind == "stage")
        return {instance: job for instance, job in stages if self._lives(job)}

    def waiting_sentinels(self) -> list[SubmittedJob]:
        """Those that have not started: one that runs is the one that asks."""
        sentinels = [job for job in self.jobs.get(("sentinel", ""), ()) if self._lives(job)]
        return [job for job in sentinels if self.states[job.id].state is JobState.QUEUED]

    def living(self, instances: Collection[str], *, and_sentinel: bool) -> list[SubmittedJob]:
        """All jobs of some instances that have not ended, held ones included."""
        groups = [group for (_, i), group in self.jobs.items() if i in instances]
        jobs = [job for group in groups for job in group]
        found = [job for job in jobs if not self.states[job.id].state.is_final]
        return found + (self.waiting_sentinels() if and_sentinel else [])

    def _lives(self, job: SubmittedJob) -> bool:
        status = self.states[job.id]
        return not status.state.is_final and LAUNCH_FAILED not in status.detail


class SlurmCarrier:
    """Submits what is missing, asks once about everything, cancels."""

    def __init__(self, backend: SlurmBackend | None = None) -> None:
        self._backend = backend or SlurmBackend()

    def ensure(
        self, run: RunFolder, store: Store, by: Submitter = "user", but: Collection[str] = ()
    ) -> str:
        """Submit what is left and has no job, without ``but`` and what needs those instances.

        Their jobs are cancelled, as are jobs that wait for what will never come.
        """
        with _only_submitter(run) as beat:
            plan = run.plan()
            undone = work_left(plan, store)
            unfinished = [i for i in plan.leaders if i.id in undone]
            if not unfinished:
                return "everything is done"
            known = self._known(run, store)
            hopeless = _with_followers(plan, unfinished, but)
            left = [i for i in unfinished if i.id not in hopeless]
            kept = _kept(plan, left, known.live_stages())
            fresh = {i.id for i in left} - kept.keys()
            number = Submissions(run.storage).next_number()
            around = self._surroundings(run, store.storage.url, number)
            needed = _needed(jobs_of(around, plan, left), fresh, known)
            renewed = any(part.kind == "sentinel" for part in needed)
            self._cancel(known.living(hopeless | fresh, and_sentinel=renewed))
            if not needed:
                return "already running" if left else "nothing is left that could be resumed"
            number = Submissions(run.storage).begin(by, undone)
            return self._submit(run, number, needed, kept, beat)

    def observe(self, runs: Sequence[RunFolder]) -> dict[str, Observed]:
        """How the runs stand, from one question about all of their jobs."""
        known = {run.name: Submissions(run.storage) for run in runs}
        jobs = {name: submissions.newest_jobs() for name, submissions in known.items()}
        unfinished = [
            _ref(job)
            for name, submissions in known.items()
            for job in _unfinished(jobs[name], submissions.seen())
        ]
        try:
            answers, problem = self._backend.poll(unfinished), ""
        except BackendError as error:
            answers, problem = {}, str(error)
        return {
            run.name: _observed(jobs[run.name], _merged(run, answers, problem), problem)
            for run in runs
        }

    def cancel(self, run: RunFolder, stage: str | None) -> None:
        """Let running attempts save and end; take the rest out of the queue at once."""
        run.request_cancel(stage)
        chosen = {i.leader for i in run.plan().chosen(stage)} | ({""} if stage is None else set())
        jobs = {
            (kind, instance): [_ref(job) for job in group]
            for (kind, instance), group in Submissions(run.storage).newest_jobs().items()
            if instance in chosen
        }
        refs = [ref for group in jobs.values() for ref in group]
        states = {ref: status.state for ref, status in self._backend.poll(refs).items()}
        running = {
            i for (kind, i), group in jobs.items() if kind == "stage" and _any_runs(group, states)
        }
        # What runs may save; a worker ends with its head, and at once where that does not run.
        self._backend.cancel(
            [
                ref
                for (_, instance), group in jobs.items()
                for ref in group
                if states[ref] is JobState.QUEUED
                or (states[ref] is JobState.RUNNING and instance not in running)
            ]
        )
        self._await_end(run, refs)

    def _await_end(self, run: RunFolder, refs: Sequence[JobRef]) -> None:
        deadline = time.monotonic() + run.cluster().retry.notice_s + CANCEL_SLACK_S
        while running := self._in_state(refs, JobState.RUNNING):
            if time.monotonic() > deadline:
                self._backend.cancel(running)
                raise RunFailedError(
                    f"{run.name}: jobs {', '.join(r.id for r in running)} did not stop by "
                    "themselves and were killed; see `orchestrator status`"
                )
            time.sleep(_CANCEL_POLL_S)

    def replace_workers(self, run: RunFolder, store: Store, instance: str) -> int:
        """Submit workers in place of those that have left the queue; how many.

        Asked by a stage's head. Raises BackendError.
        """
        plan, submissions = run.plan(), Submissions(run.storage)
        newest = submissions.newest_jobs()
        (head, *_) = newest["stage", instance]
        theirs = [s for s in submissions.all() if any(j.instance == instance for j in s.jobs)]
        number = theirs[-1].number  # where those are that count as the newest workers
        around = self._surroundings(run, store.storage.url, number)
        parts = [p for p in jobs_of(around, plan, [plan.instance(instance)]) if p.kind == "workers"]
        known = refs_of(run, "workers", instance)
        rows = self._backend.queue(known).values() if known else ()
        wanted = sum(p.job.shape.array for p in parts)
        count = wanted - sum(not row.was_refused for group in rows for row in group)
        if count <= 0:
            return 0
        name = f"{instance}-workers-{len(known) + 1}"
        part = resized(around, parts[0], name, min(count, around.max_array))
        if late := self._backend.find([part.job.tag]).get(part.job.tag):  # sbatch did not answer
            _record(run, number, part, late, time.time())
            return 0
        ref = self._backend.submit(part.job, [_ref(head)])
        _record(run, number, part, ref.id, ref.submitted_at)
        return part.job.shape.array

    def _in_state(self, refs: Sequence[JobRef], state: JobState) -> list[JobRef]:
        return [ref for ref, status in self._backend.poll(refs).items() if status.state is state]

    def _known(self, run: RunFolder, store: Store) -> _Known:
        """The newest jobs of the run, and how each stands.

        Jobs that were accepted when whoever submitted them died are found by their tags. Attempts
        whose job has ended are closed. Raises BackendError.
        """
        submissions = Submissions(run.storage)
        if not submissions.all():
            return _Known({}, {})
        self._adopt(run, store)
        observed = self.observe([run])[run.name]
        if observed.problem:
            raise BackendError(observed.problem)
        for instance, status in observed.jobs.items():
            if status.state.is_final:
                close_attempts(run, store, instance, status)
        return _Known(submissions.newest_jobs(), observed.by_id)

    def _cancel(self, jobs: Sequence[SubmittedJob]) -> None:
        self._backend.cancel([_ref(job) for job in jobs])

    def _adopt(self, run: RunFolder, store: Store) -> None:
        newest = Submissions(run.storage).all()[-1]
        if newest.is_whole:
            return
        around = self._surroundings(run, store.storage.url, newest.number)
        plan = run.plan()
        planned = {around.tag(p.name): p for p in jobs_of(around, plan, plan.leaders)}
        for tag, job_id in self._backend.find(planned).items():
            _record(run, newest.number, planned[tag], job_id, newest.at)

    def _surroundings(self, run: RunFolder, store_url: str, number: int) -> Surroundings:
        cluster = run.cluster()
        elastic = {i.stage for i in run.plan().instances if BY_NAME[i.stage].is_elastic}
        largest = max((cluster.resources_of(stage).nodes for stage in elastic), default=1)
        limit = self._backend.limits().max_array if largest > SMALL_ARRAY else USUAL_MAX_ARRAY
        return Surroundings(
            run=run,
            store_url=store_url,
            cluster=cluster,
            submission=number,
            max_array=limit,
            exclude=failing_nodes(run),
        )

    def _submit(
        self,
        run: RunFolder,
        number: int,
        parts: Sequence[PlannedJob],
        kept: Mapping[str, SubmittedJob],
        beat: Callable[[], None],
    ) -> str:
        refs = {instance: _ref(job) for instance, job in kept.items()}
        submitted: list[JobRef] = []
        for part in parts:
            beat()
            try:
                ref = self._backend.submit(part.job, [refs[i] for i in part.after])
            except RequestError:  # what comes before it would wait or work for nothing
                self._backend.cancel(submitted)
                raise
            submitted.append(ref)
            _record(run, number, part, ref.id, ref.submitted_at)
            if part.kind == "stage":
                refs[part.instance] = ref
        Submissions(run.storage).close(number)
        return f"{len(parts)} jobs submitted"


def planned_jobs(
    run: RunFolder, store: Store, cluster: Cluster, plan: Plan
) -> tuple[PlannedJob, ...]:
    """Every job that a submission would hand over now."""
    undone = work_left(plan, store)
    left = [i for i in plan.leaders if i.id in undone]
    around = Surroundings(
        run=run,
        store_url=store.storage.url,
        cluster=cluster,
        submission=Submissions(run.storage).next_number(),
        exclude=failing_nodes(run) if run.exists() else (),
    )
    return jobs_of(around, plan, left)


def work_left(plan: Plan, store: Store) -> dict[str, float]:
    """The stage instances that are not complete, and how far the work on each is."""
    left = [i for i in plan.leaders if not store.has(*plan.group(i.id))]
    return {i.id: store.progress(*plan.group(i.id)) for i in left}


def preview(part: PlannedJob) -> str:
    """The script of a job that has no id yet: a dependency names the stage that it is on."""
    return script(part.job, [JobRef(backend=NAME, id=f"<{instance}>") for instance in part.after])


def close_attempts(
    run: RunFolder,
    store: Store,
    instance: str,
    status: JobStatus,
    ended_at: float | None = None,
) -> None:
    """Say how attempts ended whose job was ended before they could; by now when no time is known.

    ``ended_at`` is in seconds since the epoch.
    """
    for attempt in run.attempts(instance):
        if attempt.end is None:
            cause = status.cause or "node_lost"
            state = {"preempted": "preempted", "cancelled": "cancelled"}.get(cause, "failed")
            attempt.finish(
                state=state,
                ended_at=ended_at or time.time(),
                cause=cause,
                action="resume",
                reason=f"the scheduler says: {status.detail or 'nothing'}",
                exit_code=status.exit_code,
                node=status.node,
                progress=store.progress(*run.plan().group(instance)),
            )


def refs_of(run: RunFolder, kind: JobKind, instance: str) -> list[JobRef]:
    """The newest jobs of a kind for a stage instance."""
    return [_ref(job) for job in Submissions(run.storage).newest_jobs().get((kind, instance), ())]


def failing_nodes(run: RunFolder) -> tuple[str, ...]:
    """Nodes of this cluster that a stage was to be kept off."""
    attempts = [a for i in run.plan().leaders for a in run.attempts(i.id)]
    here = [a for a in attempts if a.started.get("moves", 0) == run.num_moves]
    nodes = [end["node"] for a in here if (end := a.end) and end.get("action") == "elsewhere"]
    return tuple(dict.fromkeys(node for node in nodes if node))


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


def _needed(parts: Sequence[PlannedJob], fresh: Collection[str], known: _Known) -> list[PlannedJob]:
    """The jobs that must be submitted, where the stage jobs of ``fresh`` must.

    Each submission has a sentinel of its own: that of an earlier one leaves the run to it.
    """
    needed = [
        part
        for part in parts
        if part.instance in fresh
        or (part.kind == "workers" and not known.has("workers", part.instance))
    ]
    sentinels = [part for part in parts if part.kind == "sentinel"]
    return needed + (sentinels if needed or not known.waiting_sentinels() else [])


def _with_followers(plan: Plan, left: Sequence[Instance], chosen: Collection[str]) -> set[str]:
    """Instances, and all that cannot be done without them."""
    found = set(chosen)
    for instance in left:  # in the order of the data's path
        if found & plan.upstream(instance.id):
            found.add(instance.id)
    return found


def _unfinished(
    jobs: Mapping[tuple[JobKind, str], Sequence[SubmittedJob]], seen: Mapping[str, Any]
) -> list[SubmittedJob]:
    """Those that were not seen to end: about the others there is nothing to ask."""
    known = {job_id: JobState(row["state"]).is_final for job_id, row in seen.items()}
    return [job for group in jobs.values() for job in group if not known.get(job.id, False)]


def _any_runs(refs: Sequence[JobRef], states: Mapping[JobRef, JobState]) -> bool:
    return any(states[ref] is JobState.RUNNING for ref in refs)


def _record(run: RunFolder, number: int, part: PlannedJob, job_id: str, at: float) -> None:
    job = SubmittedJob(
        name=part.name, kind=part.kind, instance=part.instance, id=job_id, submitted_at=at
    )
    Submissions(run.storage).record(number, job)


def _ref(job: SubmittedJob) -> JobRef:
    return JobRef(backend=NAME, id=job.id, submitted_at=job.submitted_at)


def _merged(
    run: RunFolder, answers: Mapping[JobRef, JobStatus], problem: str
) -> dict[str, JobStatus]:
    """The newest known status of each of a run's jobs, by id; written down for the next look.

    A job that the scheduler does not know keeps its last state, until that has lasted too long.
    """
    submissions, now = Submissions(run.storage), time.time()
    before = submissions.seen()
    jobs = [job for group in submissions.newest_jobs().values() for job in group]
    rows: dict[str, dict[str, Any]] = {}
    for job in jobs:
        last = before.get(job.id, {"state": JobState.QUEUED, "absent_since": None})
        answer = answers.get(_ref(job))
        if answer is not None and answer.state is not JobState.UNKNOWN:
            rows[job.id] = {**asdict(answer), "absent_since": None}
        elif problem or answer is None or JobState(last["state"]).is_final:
            rows[job.id] = last
        else:
            rows[job.id] = {**last, "absent_since": last["absent_since"] or now}
    if jobs and not problem:
        with suppress(OSError):  # somebody else's run may be looked at, not written
            submissions.remember(rows)
    timeout_s = run.cluster().slurm.missing_timeout_s
    return {job_id: _status_of(row, now, timeout_s) for job_id, row in rows.items()}


def _status_of(row: Mapping[str, Any], now: float, timeout_s: float) -> JobStatus:
    absent_since = row["absent_since"]
    if absent_since is not None and now - absent_since > timeout_s:
        return JobStatus(
            state=JobState.FAILED,
            cause="node_lost",
            detail=f"unknown to the scheduler for more than {timeout_s:.0f} s",
        )
    said = {name: value for name, value in row.items() if name != "absent_since"}
    return JobStatus(**{**said, "state": JobState(said["state"])})


def _observed(
    jobs: Mapping[tuple[JobKind, str], Sequence[SubmittedJob]],
    seen: Mapping[str, JobStatus],
    problem: str,
) -> Observed:
    stages = {
        instance: seen[group[0].id] for (kind, instance), group in jobs.items() if kind == "stage"
    }
    sentinels = [seen[job.id] for job in jobs.get(("sentinel", ""), ())]
    has_failed = any(
        s.state.is_final and s.state is not JobState.SUCCEEDED for s in stages.values()
    )
    # A sentinel that has something to see to will start, or is at it.
    is_watched = has_failed and any(not s.state.is_final for s in sentinels)
    return Observed(
        is_alive=is_watched or any(not s.state.is_final for s in stages.values()),
        jobs=stages,
        by_id=dict(seen),
        problem=problem,
    )


@contextmanager
def _only_submitter(run: RunFolder) -> Iterator[Callable[[], None]]:
    """Two shells may submit the same run at once: the second waits, and finds it submitted.

    Yields what must be called now and then to stay the one. Raises BackendError when the other
    takes too long.
    """
    storage: Storage = run.storage.at("submission-lease")
    timeout_s = run.cluster().retry.heartbeat_timeout_s
    deadline = time.monotonic() + SUBMIT_WAIT_S
    while True:
        try:
            held = leases.acquire(storage, holder=f"submission of {run.name}", timeout_s=timeout_s)
            break
        except LeaseHeldError as error:
            if time.monotonic() > deadline:
                raise BackendError(f"{run.name}: {error}; try again") from None
            time.sleep(_POLL_S)
    try:
        yield held.beat
    finally:
        held.release()
