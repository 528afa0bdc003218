"""A run on Slurm: chained jobs carry it, and no process of ours stays on the login node.

All that is known lies in the run's folder and with the scheduler, so any login node can go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

from orchestrator.backends.base import JobRef, JobState, JobStatus
from orchestrator.backends.slurm import NAME, SlurmBackend, script
from orchestrator.control.carrier import Observed
from orchestrator.control.slurm_jobs import PlannedJob, Surroundings, jobs_of
from orchestrator.errors import BackendError, LeaseHeldError, RequestError, RunFailedError
from orchestrator.ledger import lease as leases
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import JobKind, Submissions, SubmittedJob, Submitter
from orchestrator.plan.planner import Instance, Plan
from orchestrator.spec.cluster import Cluster

USUAL_MAX_ARRAY = 1000
"""What Slurm allows where the site has said nothing."""
SUBMIT_WAIT_S = 300.0
"""How long to wait for somebody else who is submitting the same run."""
CANCEL_SLACK_S = 60.0
_POLL_S = 0.5
_CANCEL_POLL_S = 2.0


class SlurmCarrier:
    """Submits what is missing, asks once about everything, cancels."""

    def __init__(self, backend: SlurmBackend | None = None) -> None:
        self._backend = backend or SlurmBackend()

    def ensure(self, run: RunFolder, store: Store, by: Submitter = "user") -> str:
        """Submit a job for every stage instance that is left and has none."""
        with _only_submitter(run):
            plan = run.plan()
            left = [i for i in _leaders(plan) if not store.has(*plan.group(i.id))]
            if not left:
                return "everything is done"
            kept = _kept(plan, left, self._live(run, store))
            missing = [i for i in left if i.id not in kept]
            if not missing:
                return "already running"
            self._clear(run, missing)
            return self._submit(run, store, missing, kept, by)

    def observe(self, runs: Sequence[RunFolder]) -> dict[str, Observed]:
        """How the runs stand, from one question about all of their jobs."""
        known = {run.name: Submissions(run.storage).newest_jobs() for run in runs}
        refs = [_ref(j) for jobs in known.values() for group in jobs.values() for j in group]
        try:
            answers, problem = self._backend.poll(refs), ""
        except BackendError as error:
            answers, problem = {}, str(error)
        seen = {run.name: _merged(run, answers, problem) for run in runs}
        return {name: _observed(jobs, seen[name], problem) for name, jobs in known.items()}

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

    def replace_workers(self, run: RunFolder, store: Store, instance: str) -> None:
        """Submit a stage's workers again, when those that it had have left the queue.

        Asked by its head when it comes back. Raises BackendError.
        """
        poll = self._backend.poll(refs_of(run, "workers", instance))
        if any(not status.state.is_final for status in poll.values()):
            return
        submissions = Submissions(run.storage)
        (head, *_) = submissions.newest_jobs()[("stage", instance)]
        number = next(s.number for s in reversed(submissions.all()) if head in s.jobs)
        around = _surroundings(run, store.storage.url, number)
        left = [run.plan().instance(instance)]
        for part in jobs_of(around, run.plan(), left):
            if part.kind == "workers":
                ref = self._backend.submit(part.job, [_ref(head)])
                _record(run, number, part, ref.id, ref.submitted_at)

    def _in_state(self, refs: Sequence[JobRef], state: JobState) -> list[JobRef]:
        return [ref for ref, status in self._backend.poll(refs).items() if status.state is state]

    def _live(self, run: RunFolder, store: Store) -> dict[str, SubmittedJob]:
        """The job of each stage instance whose job is queued or running.

        Jobs that were accepted when whoever submitted them died are found by their tags. Attempts
        whose job has ended are closed. Raises BackendError.
        """
        submissions = Submissions(run.storage)
        if not submissions.all():
            return {}
        self._adopt(run)
        observed = self.observe([run])[run.name]
        if observed.problem:
            raise BackendError(observed.problem)
        for instance, status in observed.jobs.items():
            if status.state.is_final:
                close_attempts(run, store, instance, status)
        return {
            instance: group[0]
            for (kind, instance), group in submissions.newest_jobs().items()
            if kind == "stage" and observed.expects(instance)
        }

    def _adopt(self, run: RunFolder) -> None:
        newest = Submissions(run.storage).all()[-1]
        if newest.is_whole:
            return
        around = _surroundings(run, "", newest.number)
        plan = run.plan()
        planned = {around.tag(p.name): p for p in jobs_of(around, plan, _leaders(plan))}
        for tag, job_id in self._backend.find(planned).items():
            _record(run, newest.number, planned[tag], job_id, newest.at)

    def _clear(self, run: RunFolder, missing: Sequence[Instance]) -> None:
        """Cancel what is left of these instances' jobs, and the sentinel that watches them.

        A sentinel that runs is the one that asks for this.
        """
        ids = {i.id for i in missing}
        groups = Submissions(run.storage).newest_jobs().items()
        left = [_ref(job) for (_, i), group in groups for job in group if i in ids]
        sentinels = refs_of(run, "sentinel", "")
        answers = self._backend.poll([*left, *sentinels])
        self._backend.cancel(
            [
                ref
                for ref, status in answers.items()
                if status.state is JobState.QUEUED
                or (status.state is JobState.RUNNING and ref not in sentinels)
            ]
        )

    def _submit(
        self,
        run: RunFolder,
        store: Store,
        missing: Sequence[Instance],
        kept: Mapping[str, SubmittedJob],
        by: Submitter,
    ) -> str:
        submissions, cluster = Submissions(run.storage), run.cluster()
        number = submissions.begin(by)
        around = _surroundings(run, store.storage.url, number)
        if any(cluster.resources_of(i.stage).nodes > USUAL_MAX_ARRAY for i in missing):
            around = replace(around, max_array=self._backend.limits().max_array)
        refs = {instance: _ref(job) for instance, job in kept.items()}
        planned = jobs_of(around, run.plan(), missing, kept)
        submitted: list[JobRef] = []
        for part in planned:
            try:
                ref = self._backend.submit(part.job, [refs[i] for i in part.after])
            except RequestError:  # what comes before it would wait or work for nothing
                self._backend.cancel(submitted)
                raise
            submitted.append(ref)
            _record(run, number, part, ref.id, ref.submitted_at)
            if part.kind == "stage":
                refs[part.instance] = ref
        submissions.close(number)
        return f"{len(planned)} jobs submitted"


def planned_jobs(
    run: RunFolder, store: Store, cluster: Cluster, plan: Plan
) -> tuple[PlannedJob, ...]:
    """Every job that a submission would hand over now."""
    left = [i for i in _leaders(plan) if not store.has(*plan.group(i.id))]
    around = Surroundings(
        run=run,
        store_url=store.storage.url,
        cluster=cluster,
        submission=Submissions(run.storage).next_number(),
    )
    return jobs_of(around, plan, left)


def preview(part: PlannedJob) -> str:
    """The script of a job that has no id yet: a dependency names the stage that it is on."""
    return script(part.job, [JobRef(backend=NAME, id=f"<{instance}>") for instance in part.after])


def close_attempts(run: RunFolder, store: Store, instance: str, status: JobStatus) -> None:
    """Say how attempts ended whose job was ended before they could."""
    for attempt in run.attempts(instance):
        if attempt.end is None:
            cause = status.cause or "node_lost"
            state = {"preempted": "preempted", "cancelled": "cancelled"}.get(cause, "failed")
            attempt.finish(
                state=state,
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
    """Nodes that a stage was to be kept off."""
    ends = [a.end for i in _leaders(run.plan()) for a in run.attempts(i.id)]
    nodes = [end["node"] for end in ends if end and end.get("action") == "elsewhere"]
    return tuple(dict.fromkeys(node for node in nodes if node))


def _leaders(plan: Plan) -> list[Instance]:
    return [i for i in plan.instances if i.leader == i.id]


def _kept(
    plan: Plan, left: Sequence[Instance], live: Mapping[str, SubmittedJob]
) -> dict[str, SubmittedJob]:
    """Live jobs that may go on: all they wait for is done, or has a job that may go on."""
    ids = {i.id for i in left}
    kept: dict[str, SubmittedJob] = {}
    for instance in left:  # in the order of the data's path
        needs = {plan.instance(n).leader for m in plan.group(instance.id) for n in m.needs.values()}
        if instance.id in live and all(n in kept for n in needs & ids):
            kept[instance.id] = live[instance.id]
    return kept


def _any_runs(refs: Sequence[JobRef], states: Mapping[JobRef, JobState]) -> bool:
    return any(states[ref] is JobState.RUNNING for ref in refs)


def _surroundings(run: RunFolder, store_url: str, number: int) -> Surroundings:
    return Surroundings(
        run=run,
        store_url=store_url,
        cluster=run.cluster(),
        submission=number,
        exclude=failing_nodes(run),
    )


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
    rows: dict[str, dict[str, object]] = {}
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
        submissions.remember(rows)
    timeout_s = run.cluster().slurm.missing_timeout_s
    return {job_id: _status_of(row, now, timeout_s) for job_id, row in rows.items()}


def _status_of(row: Mapping[str, object], now: float, timeout_s: float) -> JobStatus:
    absent_since = row["absent_since"]
    if isinstance(absent_since, float) and now - absent_since > timeout_s:
        return JobStatus(
            state=JobState.FAILED,
            cause="node_lost",
            detail=f"unknown to the scheduler for more than {timeout_s:.0f} s",
        )
    said = {name: value for name, value in row.items() if name != "absent_since"}
    return JobStatus(**{**said, "state": JobState(str(said["state"]))})  # type: ignore[arg-type]


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
        problem=problem,
    )


@contextmanager
def _only_submitter(run: RunFolder) -> Iterator[None]:
    """Two shells may submit the same run at once: the second waits, and finds it submitted.

    Raises BackendError when the other takes too long.
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
        yield
    finally:
        held.release()
