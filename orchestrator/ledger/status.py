"""How a run stands, as typed data: from its folder, the store and, if any, the scheduler.

Computed here alone: the verbs, the report, metrics and ``--json`` show what this says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeVar

from orchestrator.errors import Cause, OrchestratorError
from orchestrator.ledger.artifact import MANIFEST
from orchestrator.ledger.attempt import DRIVER_LOG, AttemptFolder
from orchestrator.ledger.goodput import Interval, accounted, summed
from orchestrator.ledger.moved import MOVED, Moved
from orchestrator.ledger.records import BROKEN_RECORD, understood
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.spending import spending
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Found, Instance
from orchestrator.plan.policy import HOPELESS_CAUSES
from orchestrator.plan.stages import BY_NAME

BROKEN = (OSError, OrchestratorError, *BROKEN_RECORD)
"""What reading a missing, truncated or foreign file can raise."""

_T = TypeVar("_T")
_D = TypeVar("_D")


class JobState(StrEnum):
    """What a backend can say about a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether the job will not change any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.PREEMPTED)


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """How a job stands, by its backend."""

    state: JobState
    exit_code: int | None = None
    """The process's exit code; negative when a signal ended it; None when not known."""
    node: str = ""
    detail: str = ""
    """The scheduler's own words."""
    cause: Cause | None = None
    """Why it ended, where the scheduler alone knows."""
    is_held: bool = False
    """Whether it waits in the queue and will never start by itself."""
    waits: str = ""
    """Why it waits, in plain words with what to do; empty for what passes by itself."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Whether somebody is at work on a run, and what a scheduler says of its jobs."""

    is_alive: bool
    """Whether something will still happen by itself."""
    jobs: Mapping[str, JobStatus] = field(default_factory=dict)
    """By stage instance; empty where there is no scheduler."""
    by_id: Mapping[str, JobStatus] = field(default_factory=dict)
    """Of all jobs, workers and sentinels included, by the scheduler's id."""
    problem: str = ""
    """Why the scheduler did not answer; its last answer stands for it."""
    refusal: str = ""
    """Why the scheduler did not take what was last submitted to it, of which nothing is left."""
    ends_as: str = ""
    """The state in which the one at work is about to leave the run, asked by itself."""
    look_every_s: float = 1.0
    """How often to ask again, in seconds."""

    @property
    def has_jobs_left(self) -> bool:
        """Whether a job is queued or running, be it of use or not."""
        return any(s.state in (JobState.QUEUED, JobState.RUNNING) for s in self.by_id.values())

    @property
    def is_unknown(self) -> bool:
        """Whether all that may go on are jobs that the scheduler does not know."""
        states = {status.state for status in self.jobs.values()}
        return self.is_alive and JobState.UNKNOWN in states and not self.has_jobs_left

    def unknown_jobs(self) -> list[str]:
        """A line for each stage's job that the scheduler does not know."""
        unknown = {i: s for i, s in self.jobs.items() if s.state is JobState.UNKNOWN}
        return [f"{instance}: {status.detail}" for instance, status in unknown.items()]

    def expects(self, instance: str) -> bool:
        """Whether somebody works on the stage instance, or will."""
        if instance not in self.jobs:
            return self.is_alive and not self.jobs
        return not self.jobs[instance].state.is_final


class RunState(StrEnum):
    """How a run stands, or a stage of it."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """The scheduler does not know the job that was at work, and nobody saw it end."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)


@dataclass
class Reader:
    """Reads files of which any may be missing or broken; what is becomes a line in ``gaps``.

    A strict one raises instead.
    """

    is_strict: bool = False
    gaps: list[str] = field(default_factory=list)

    def ask(self, what: str, question: Callable[[], _T], default: _D) -> _T | _D:
        """The answer; the default, and a gap named ``what``, where a file is missing or broken."""
        try:
            return question()
        except FileNotFoundError:
            if self.is_strict:
                raise
            self.gaps.append(f"{what} is missing.")
        except BROKEN as error:
            if self.is_strict:
                raise
            self.gaps.append(f"{what} cannot be read ({type(error).__name__}: {error}).")
        return default


@dataclass(frozen=True, kw_only=True)
class AttemptStatus:
    """One attempt of a stage instance."""

    n: int
    state: str
    """A `RunState`, ``preempted`` or ``unknown``."""
    cause: str
    """A `Cause`; empty when nothing went wrong."""
    action: str
    reason: str
    """Why that action: the retry policy's words."""
    message: str
    """The driver's own last sentence, where it failed."""
    started_at: float
    ended_at: float | None
    node: str
    log: str
    """URL of the driver's log."""
    folder: AttemptFolder

    @property
    def is_open(self) -> bool:
        """Whether it has no recorded end."""
        return self.ended_at is None

    def to_json(self) -> dict[str, Any]:
        """Its row in ``status --json``."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "folder"}


_PROGRESS = {"at", "done", "total", "unit"}
"""What an attempt's progress must say to be shown."""
_OF_STAGES = ("instance", "found", "attempts")
"""Fields of a stage that its row shows in other words."""


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """One stage instance."""

    instance: Instance
    state: RunState
    found: Found
    """What is in the store."""
    job: str
    """The scheduler's words about its job."""
    waits: str
    """Why its job waits, in plain words with what to do, or what its workers wait for; empty for
    what passes by itself."""
    shards_done: int | None
    shards_total: int | None
    step: int | None
    checkpoint_interval: Mapping[str, float] | None
    """The newest choice of the time between checkpoints, with what it was chosen from."""
    progress: Mapping[str, Any]
    """How far the newest attempt is; empty when the artifact is complete."""
    attempts: tuple[AttemptStatus, ...]
    """Of its leader, which does the work of the whole group."""

    @property
    def is_reused(self) -> bool:
        """Whether the artifact was there without any attempt of this run."""
        return self.found.complete and not self.attempts

    @property
    def shown_state(self) -> str:
        """Its state, or ``reused``."""
        return "reused" if self.is_reused else self.state

    @property
    def failure(self) -> AttemptStatus | None:
        """The attempt that a failed stage failed with."""
        return self.attempts[-1] if self.state is RunState.FAILED and self.attempts else None

    def to_json(self) -> dict[str, Any]:
        """Its row in ``status --json``."""
        return {
            "id": self.instance.id,
            "name": self.instance.stage,
            "stage": self.instance.stage,
            "node": self.instance.node,
            "variant": ", ".join(self.instance.variants),
            "key": self.instance.key,
            "reused": self.is_reused,
            "steps": self.instance.steps,
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OF_STAGES},
            "attempts": [a.to_json() for a in self.attempts],
        }


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How a run stands."""

    run: str
    state: RunState
    cause: str
    """Why its supervisor stopped short: ``node_lost`` when that died without a word."""
    reason: str = ""
    """The same in its words; empty where it had none."""
    backend: str
    problem: str
    """Why the scheduler did not answer; its last answer stands for it."""
    stages: tuple[StageStatus, ...]
    refusal: str = ""
    """Why the scheduler did not take what was last submitted to it, of which nothing is left."""
    goodput: Mapping[str, float | None] = field(default_factory=dict)
    """Empty where it was not asked for."""
    accounted: Sequence[Interval] = ()
    """What the goodput is the sum of."""
    spending: Mapping[str, Any] = field(default_factory=dict)
    """What it has spent of what it may; empty where it was not asked for."""
    moved: Moved | None = None
    """Where it goes on in another store, or is on its way to; None where it does so here."""

    @property
    def moved_to(self) -> str:
        """URL of its folder in another store; empty where it is at home."""
        return self.moved.to if self.moved else ""

    @property
    def shown_state(self) -> str:
        """Its state in words; of a run that goes on elsewhere, that it does."""
        if self.moved is None:
            return self.state
        return "moving" if self.moved.arrived_at is None else "moved"

    @property
    def has_ended_in_vain(self) -> bool:
        """Whether it has failed or was cancelled, and goes on nowhere else."""
        is_over = self.state.is_final and not self.moved_to
        return is_over and self.state is not RunState.SUCCEEDED

    @property
    def resuming_helps(self) -> bool:
        """Whether any stage that failed could go on with nothing changed."""
        failures = [a for s in self.stages if (a := s.failure)]
        return not failures or any(a.cause not in HOPELESS_CAUSES for a in failures)

    @property
    def is_at_limit(self) -> bool:
        """Whether it, or a stage of it, ended because it had spent what it may."""
        causes = {a.cause for s in self.stages if (a := s.failure)} | {self.cause}
        return Cause.LIMIT in causes

    def to_json(self) -> dict[str, Any]:
        """The document of ``status RUN --json``."""
        return {
            "run": self.run,
            "state": self.state,
            "backend": self.backend,
            "problem": self.problem,
            "stages": [s.to_json() for s in self.stages],
            **({"refusal": self.refusal} if self.refusal else {}),
            **({"moved_to": self.moved_to} if self.moved_to else {}),
            **({"goodput": dict(self.goodput)} if self.goodput else {}),
            **({"spending": dict(self.spending)} if self.spending else {}),
        }


def run_status(
    run: RunFolder, store: Store, observed: Observed, reader: Reader | None = None
) -> RunStatus:
    """How a run stands, and where its time went. Raises RequestError when there is no such run."""
    reader = reader or Reader(is_strict=True)
    status = StatusReader(run, store, reader).read(observed)
    leaders = (s for s in status.stages if s.instance.leader == s.instance.id)
    attempts = {s.instance.id: [a.folder for a in s.attempts] for s in leaders}

    def where_time_went() -> list[Interval]:
        with understood(run.storage.at("stages").url, "move the damaged attempt's folder away"):
            return accounted(attempts, submitted_at=run.submitted_at(), is_alive=observed.is_alive)

    def what_was_spent() -> dict[str, Any]:
        spent = spending(run, run.plan(), is_alive=observed.is_alive)
        return spent.to_json(run.cluster())

    intervals = reader.ask("attempts", where_time_went, None)
    return replace(
        status,
        goodput={} if intervals is None else summed(intervals),
        accounted=intervals or (),
        spending=reader.ask("attempts", what_was_spent, {}),
    )


def run_progress(run: RunFolder, store: Store, observed: Observed) -> RunStatus:
    """The same without its goodput, which reads every step line."""
    return StatusReader(run, store).read(observed)


@dataclass
class _Known:
    """What was read of an attempt and cannot change any more."""

    started: Mapping[str, Any]
    end: Mapping[str, Any] = field(default_factory=dict)
    segments: set[str] = field(default_factory=set)
    """Those of its events that were read."""
    interval: dict[str, float] | None = None


class StatusReader:
    """Reads how a run stands again and again; what cannot change any more is read once.

    Shards and checkpoints are listed when a stage is first seen and when an attempt at it begins or
    ends; in between its progress.json counts.
    """

    def __init__(self, run: RunFolder, store: Store, reader: Reader | None = None) -> None:
        self._run, self._store = run, store
        self._reader = reader or Reader(is_strict=True)
        self._plan = run.plan()
        self._backend = self._reader.ask("cluster.yaml", lambda: run.cluster().backend, "unknown")
        self._attempts: dict[str, _Known] = {}
        self._found: dict[str, tuple[Found, object]] = {}
        """By instance: what is in the store, and which attempts had ended when that was listed."""

    def read(self, observed: Observed) -> RunStatus:
        """How the run stands now."""
        leaders = {i.id: self._of_leader(i, observed) for i in self._plan.leaders}
        found = {i.id: self._find(i, leaders[i.leader]) for i in self._plan.instances}
        stages = tuple(
            self._stage(i, found, leaders[i.leader], observed) for i in self._plan.instances
        )
        end = self._reader.ask("supervisor", lambda: _supervisor_end(self._run, observed), None)
        moved = self._reader.ask(MOVED, lambda: self._run.moved, None)
        state = _run_state(observed, stages, end)
        if moved and not observed.is_alive and state is not RunState.SUCCEEDED:
            state = RunState.CANCELLED
        ended: Mapping[str, Any] = {} if end is None or observed.is_alive else end
        return RunStatus(
            run=self._run.name,
            state=state,
            moved=moved,
            cause=str(ended.get("cause") or ""),
            reason=str(ended.get("reason") or ""),
            backend=self._backend,
            problem=observed.problem,
            stages=stages,
            refusal="" if observed.is_alive else observed.refusal,
        )

    def _of_leader(self, leader: Instance, observed: Observed) -> tuple[AttemptStatus, ...]:
        what = f"{leader.id}: attempts"
        folders = self._reader.ask(what, lambda: self._run.attempts(leader.id), ())
        rows = (self._attempt(leader, a, observed) for a in folders)
        return tuple(row for row in rows if row)

    def _attempt(
        self, leader: Instance, folder: AttemptFolder, observed: Observed
    ) -> AttemptStatus | None:
        url, what = folder.storage.url, f"{leader.id} attempt {folder.number}"
        if url not in self._attempts:
            started = self._reader.ask(f"{what}: attempt.json", lambda: folder.started, {})
            if not isinstance(started.get("started_at"), int | float):
                return None
            self._attempts[url] = _Known(started)
        known = self._attempts[url]
        if not known.end:
            written = self._reader.ask(f"{what}: end.json", lambda: folder.end, None)
            known.end = written if isinstance(written, Mapping) else {}
        end: Mapping[str, Any] = known.end or _presumed(
            observed.jobs.get(leader.id), is_alive=observed.is_alive
        )
        return AttemptStatus(
            n=folder.number,
            state=str(end.get("state", "unknown")),
            cause=str(end.get("cause") or ""),
            action=str(end.get("action") or ""),
            reason=str(end.get("reason") or ""),
            message=str(end.get("message") or ""),
            started_at=float(known.started["started_at"]),
            ended_at=end.get("ended_at"),
            node=str(end.get("node") or known.started.get("node") or ""),
            log=f"{url}/{DRIVER_LOG}",
            folder=folder,
        )

    def _find(self, instance: Instance, attempts: Sequence[AttemptStatus]) -> Found:
        """What is in the store; listed anew only when an attempt has begun or ended since."""
        artifact = self._store.artifact(instance.stage, instance.key)
        ends = [a.is_open for a in attempts]
        found, listed_at = self._found.get(instance.id, (Found(complete=False), None))
        if found.complete:
            return found
        what = f"{instance.id}: {MANIFEST}"
        if ends != listed_at or self._reader.ask(what, artifact.is_complete, False):
            address = {instance.id: f"{instance.stage}/{instance.key}"}
            found = self._reader.ask(what, lambda: self._store.find(address)[instance.id], found)
            self._found[instance.id] = found, ends
        return found

    def _stage(
        self,
        instance: Instance,
        found: Mapping[str, Found],
        attempts: tuple[AttemptStatus, ...],
        observed: Observed,
    ) -> StageStatus:
        own, job = found[instance.id], observed.jobs.get(instance.leader)
        progress = self._progress(attempts[-1]) if attempts and not own.complete else {}
        total = self._shards_total(instance, found)
        return StageStatus(
            instance=instance,
            state=_stage_state(own, attempts, job, expected=observed.expects(instance.leader)),
            found=own,
            job=job.detail if job else "",
            waits=(job.waits if job else "") or self._waits(instance, attempts),
            shards_done=_done(own, own.shards_done, total or None, progress, "shards"),
            shards_total=total,
            step=_done(own, own.step, instance.steps, progress, "steps"),
            checkpoint_interval=self._interval(attempts) if instance.steps else None,
            progress=progress,
            attempts=attempts,
        )

    def _progress(self, attempt: AttemptStatus) -> Mapping[str, Any]:
        what = f"{attempt.folder.storage.url}: progress.json"
        progress = self._reader.ask(what, lambda: attempt.folder.progress, {})
        return progress if progress.keys() >= _PROGRESS else {}

    def _waits(self, instance: Instance, attempts: Sequence[AttemptStatus]) -> str:
        """What the workers or ranks of an attempt under way wait for."""
        if not attempts or not attempts[-1].is_open or not BY_NAME[instance.stage].uses_ray:
            return ""
        folder = attempts[-1].folder
        return self._reader.ask(f"{folder.storage.url}: waits.json", lambda: folder.waits, "")

    def _shards_total(self, instance: Instance, found: Mapping[str, Found]) -> int | None:
        if BY_NAME[instance.stage].counts != "shards":
            return None
        facts = found[instance.needs["corpus"]].facts
        total = self._reader.ask("corpus: facts", lambda: facts.get("num_shards"), None)
        return int(total) if total is not None else None

    def _interval(self, attempts: Sequence[AttemptStatus]) -> dict[str, float] | None:
        if not attempts:
            return None
        folder = attempts[-1].folder
        known = self._attempts[folder.storage.url]
        if not (known.end and known.segments):
            what = f"{folder.storage.url}: events"
            for event in self._reader.ask(what, lambda: folder.events_of(known.segments), []):
                if event["kind"] == "checkpoint_interval":
                    known.interval = {k: v for k, v in event.items() if k not in ("at", "kind")}
        return known.interval


def _done(
    found: Found, listed: int, total: int | None, progress: Mapping[str, Any], unit: str
) -> int | None:
    """How many of a unit are done; None where they are not counted."""
    if total is None or found.complete:
        return total
    live = int(progress["done"]) if progress.get("unit") == unit else 0
    return max(live, listed)


def _stage_state(
    found: Found, attempts: Sequence[AttemptStatus], job: JobStatus | None, *, expected: bool
) -> RunState:
    if found.complete:
        return RunState.SUCCEEDED
    if job and job.state in (JobState.CANCELLED, JobState.UNKNOWN):
        return RunState(job.state)
    if not attempts:
        without = RunState.FAILED if job else RunState.PENDING
        return RunState.QUEUED if expected else without
    last = attempts[-1]
    if last.action == "wait":  # another run works on its key
        return RunState.QUEUED if expected else RunState.FAILED
    if last.state in (RunState.RUNNING, RunState.CANCELLED):
        return RunState(last.state)
    return RunState.QUEUED if expected and last.action != "stop" else RunState.FAILED


def _presumed(job: JobStatus | None, *, is_alive: bool) -> dict[str, str]:
    """The state of an attempt without a recorded end."""
    if job is None:
        gone = {"state": "failed", "cause": Cause.NODE_LOST}
        return {"state": "running"} if is_alive else gone
    if job.state is JobState.RUNNING:
        return {"state": "running"}
    if job.state.is_final:
        return {"state": "failed", "cause": job.cause or Cause.NODE_LOST}
    return {"state": "unknown"}  # its job is in the queue again, or the scheduler knows nothing


def _run_state(
    observed: Observed, stages: Sequence[StageStatus], end: Mapping[str, Any] | None
) -> RunState:
    """Somebody alive makes a run ``running`` to the end, when its page is written."""
    states = {s.state for s in stages}
    has_begun = any(s.attempts for s in stages) or states == {RunState.SUCCEEDED}
    if observed.is_unknown:
        return RunState.UNKNOWN
    if observed.is_alive:
        return RunState.RUNNING if has_begun else RunState.QUEUED
    if states == {RunState.SUCCEEDED}:
        return RunState.SUCCEEDED
    if observed.jobs:
        is_cancelled = RunState.CANCELLED in states and RunState.FAILED not in states
        is_cancelled = is_cancelled and not observed.refusal
        return RunState.CANCELLED if is_cancelled else RunState.FAILED
    if end is None:
        return RunState.PENDING
    return RunState.CANCELLED if end.get("state") == "cancelled" else RunState.FAILED


def _supervisor_end(run: RunFolder, observed: Observed) -> Mapping[str, Any] | None:
    """How the run's last supervisor ended, or is about to; None when there was none."""
    if observed.ends_as:
        return {"state": observed.ends_as}
    if observed.refusal:
        return {"state": "failed", "cause": Cause.BAD_REQUEST}
    supervisors = run.supervisors()
    if not supervisors:
        return None
    end = supervisors[-1].end
    return end if isinstance(end, Mapping) else {"state": "failed", "cause": Cause.NODE_LOST}
