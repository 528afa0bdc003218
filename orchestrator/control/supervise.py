"""The supervisor of a run: starts what is ready, decides about what has ended, alone retries.

It holds nothing but the budgets of retries: everything else is in the store, so that killing it
costs no work. Every executor has one: for all stages of a run, or inside the job of one stage.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.backends.base import Backend, JobRef
from orchestrator.backends.local import LocalBackend
from orchestrator.backends.ray_session import Session
from orchestrator.control.executor import observe
from orchestrator.control.job import cpus_of, gpus_of, stage_job
from orchestrator.control.run_logs import RunLogs
from orchestrator.control.standby import Standby
from orchestrator.control.store_patience import StorePatience
from orchestrator.errors import BackendError, Cause, ExitCode, LeaseHeldError, cause_of
from orchestrator.ledger import lease as leases
from orchestrator.ledger.attempt import DRIVER_LOG, AttemptFolder
from orchestrator.ledger.openmetrics import FILE as FIGURES
from orchestrator.ledger.openmetrics import openmetrics
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.spending import held, spending
from orchestrator.ledger.status import JobState, JobStatus, Observed, run_status
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance, Plan
from orchestrator.plan.policy import FREE_CAUSES, Decision, Ending, Past, decide
from orchestrator.plan.stages import BY_NAME
from orchestrator.report.page import write_report
from orchestrator.spec.cluster import Cluster

TICK_S = 0.25
LEASE_WAIT_S = 2.0
RETRY_DELAY_S = 1.0
LOG_TAIL_BYTES = 20_000
FIGURES_EVERY_S = 60.0
LIMITS_EVERY_S = 60.0
_NOT_OF_RAY = (ExitCode.DONE, ExitCode.BAD_REQUEST, ExitCode.LEASE_HELD, ExitCode.STOPPED)
_RAY_STARTS = 3
"""How often in a row a session may end before it answers."""
LAST_WORDS_S = 10.0
"""What a driver gets beyond the time its ranks may take to save."""

log = logging.getLogger(__name__)


@dataclass
class Work:
    """One job of the plan: a stage instance, or several that share a pass."""

    leader: Instance
    members: tuple[Instance, ...]
    state: str = "pending"
    """pending, running, succeeded, failed or cancelled."""
    ref: JobRef | None = None
    attempt: AttemptFolder | None = None
    begun: AttemptFolder | None = None
    """An attempt that was announced and has not been started yet."""
    log: Path | None = None
    """What the attempt's driver prints, on this machine."""
    past: list[tuple[Cause, float, str]] = field(default_factory=list)
    not_before: float = 0.0
    """Monotonic time before which it is not started again."""
    is_held: bool = False
    """Whether another run works on it."""
    ray: Session | None = None
    """The session that its attempt was started in."""

    @property
    def has_lost_ray(self) -> bool:
        """Whether that session has gone away, in whole or in part."""
        return self.ray is not None and not self.ray.is_alive()


class Supervisor:
    """Supervises a run, or one stage of it, from its start to its end."""

    def __init__(
        self,
        store: Store,
        run: RunFolder,
        backend: Backend,
        *,
        only: str | None = None,
        past: Sequence[tuple[Cause, float, str]] = (),
        about: Mapping[str, Any] | None = None,
        logs: RunLogs | None = None,
        is_set_up: bool = False,
        start_ray: Callable[[], Session] | None = None,
        on_nodes: bool = False,
        standby: Standby | None = None,
        num_cpus: int | None = None,
        beat: Callable[[], None] = lambda: None,
        patience: StorePatience | None = None,
        tick_s: float = TICK_S,
        lease_wait_s: float = LEASE_WAIT_S,
        retry_delay_s: float = RETRY_DELAY_S,
        figures_every_s: float = FIGURES_EVERY_S,
        look: Callable[[], Observed] | None = None,
        limits_every_s: float = LIMITS_EVERY_S,
    ) -> None:
        """``only``: the one stage instance to work on, whose ``past`` attempts count.

        ``about`` is noted with each attempt, over what a job of one machine would hold.
        ``is_set_up``: whether this process has been through the set-up lines of the cluster's
        environment. ``on_nodes``: whether stages of one process run on nodes of the Ray session,
        as those with workers do. ``standby`` forks the ranks of this node. ``num_cpus``: cores that
        jobs may hold together, this machine's by default. ``beat`` is called at every tick.
        ``patience``: with a store that is away.
        """
        self._store, self._run, self._backend = store, run, backend
        self._plan: Plan = run.plan()
        self._cluster: Cluster = run.cluster()
        self._start_ray, self._standby, self._on_nodes = start_ray, standby, on_nodes
        self._capacity = num_cpus or self._cluster.cpus or os.cpu_count() or 1
        self._ray: Session | None = None
        self._ray_starts_in_vain = 0
        self._beat = beat
        self._tick_s = tick_s
        self._lease_wait_s, self._retry_delay_s = lease_wait_s, retry_delay_s
        self._figures_every_s, self._look = figures_every_s, look or (lambda: observe(run))
        self._logs = logs or RunLogs(run)
        self._setup_for = None if is_set_up else self._cluster
        leaders = [i for i in self._plan.leaders if only in (None, i.id)]
        self._works = {i.id: Work(i, self._plan.group(i.id), past=list(past)) for i in leaders}
        self._has_whole_run = only is None
        self._about = {"supervisor": os.getpid(), **(about or {})}
        self._complete: set[str] = set()
        self._watch, self._patience = leases.Watch(), patience or StorePatience()
        self._cancels_seen = len(run.cancel_requests())
        self._stop_cause: Cause | None = None
        self._figures_at = time.monotonic()
        self._limits_every_s, self._limits_due = limits_every_s, 0.0
        self._limit = ""
        """Which limit of the cluster file the run has reached, in words."""
        self._home_due, self._has_moved = 0.0, False
        self._ends_at = time.monotonic() + self._cluster.ttl_s

    def run(self) -> str:
        """Work until nothing more can be done; the run's final state."""
        try:
            while self._goes_on():
                time.sleep(self._tick_s)
        finally:
            self._backend.cancel([w.ref for w in self._works.values() if w.ref])
            with suppress(OSError):  # of a store that is away: this machine keeps how they ended
                self._collect_ended()
            if self._ray:
                self._ray.stop()
            if self._standby:
                self._standby.stop()
        if self._limit or self._has_moved:
            self._give_up_what_waits("failed" if self._limit else "cancelled")
        return self.state()

    def stop(self, cause: Cause = Cause.PREEMPTED) -> None:
        """Start nothing more and end what runs; ``cause`` is noted with what was ended."""
        self._stop_cause = self._stop_cause or cause

    @property
    def is_stopped(self) -> bool:
        """Whether somebody asked for the end."""
        return bool(self._stop_cause)

    @property
    def stop_cause(self) -> Cause | None:
        """Why somebody asked for the end; None while nobody has."""
        return self._stop_cause

    @property
    def has_moved(self) -> bool:
        """Whether the run goes on in another store, which ended it here."""
        return self._has_moved

    @property
    def limit(self) -> str:
        """Which limit of the cluster file ended it, in words; empty when none did."""
        return self._limit

    @property
    def waits_for_others(self) -> bool:
        """Whether other runs work on all that is left to do here."""
        left = [w for w in self._works.values() if w.state in ("pending", "running")]
        return bool(left) and all(w.is_held for w in left)

    def state(self) -> str:
        """The run's state as its jobs' states make it."""
        states = {w.state for w in self._works.values()}
        for state in ("failed", "cancelled", "running", "pending"):
            if state in states:
                return state
        return "succeeded"

    def _goes_on(self) -> bool:
        """One look; whether there is more to do. A store that is away is waited for."""
        try:
            goes_on = self._step()
        except OSError as error:
            if cause_of(error) is not Cause.STORAGE or self._patience.is_over(error):
                raise
            return not self._stop_cause
        self._patience.renew()
        return goes_on

    def _step(self) -> bool:
        """One look at everything; whether there is more to do."""
        self._keep_right()
        self._logs.copy()
        if time.monotonic() - self._figures_at > self._figures_every_s:
            self._figures_at = time.monotonic()
            write_figures(self._run, self._store, self._look)
        self._mark_complete()
        self._obey_cancels()
        self._collect_ended()
        self._keep_to_limits()
        if self._stop_cause:
            return False
        ready = [w for w in self._works.values() if self._is_ready(w)]
        for work in ready:
            self._look_for_others(work)
        self._keep_ray()
        self._end_standby()
        for work in ready:
            if self._fits(work):
                self._start(work)
        return bool(ready) or any(w.state == "running" for w in self._works.values())

    def _keep_to_limits(self) -> None:
        """Ask for the end, as a preemption does, once the run has spent what it may."""
        is_due = time.monotonic() >= self._limits_due
        is_open = any(w.state in ("pending", "running") for w in self._works.values())
        if time.monotonic() > self._ends_at and is_open and not self._stop_cause:
            self._end_at(f"ray.ttl_h: {self._cluster.ray.ttl_h:g} h are over")
        if self._stop_cause or not (self._cluster.limits.has_any and is_due and is_open):
            return
        spent = spending(self._run, self._plan, is_alive=True)
        if limit := spent.used_up(self._cluster):
            self._end_at(limit)
        holds = [self._held(w) for w in self._works.values() if w.state == "running"]
        left_s = min(spent.seconds_left(self._cluster, holds), self._limits_every_s)
        self._limits_due = time.monotonic() + left_s

    def _end_at(self, limit: str) -> None:
        log.warning("%s; the run saves and ends", limit)
        self._limit = limit
        self.stop(Cause.LIMIT)

    def _keep_right(self) -> None:
        """Beat, and end once the run has moved to another store; its mover has the lease then."""
        if time.monotonic() >= self._home_due:
            self._home_due = time.monotonic() + self._cluster.retry.heartbeat_timeout_s / 6
            self._look_for_mover()
        try:
            self._beat()
        except LeaseHeldError:
            self._look_for_mover()
            if not self._has_moved:
                raise

    def _look_for_mover(self) -> None:
        if moved := self._run.moved:
            log.warning("%s: moved to %s; ends here", self._run.name, moved.to)
            self._has_moved, self._stop_cause = True, Cause.MOVED

    def _give_up_what_waits(self, state: str) -> None:
        for work in self._works.values():
            if work.state == "pending":
                work.state = state

    def _mark_complete(self) -> None:
        for work in self._works.values():
            if work.state == "pending" and self._has(work.members):
                work.state = "succeeded"

    def _has(self, instances: Iterable[Instance]) -> bool:
        """Whether all of these are complete; one that is need not be looked for again."""
        new = [i for i in instances if i.id not in self._complete]
        found = {i.id for i in new if self._store.has(i)}
        self._complete |= found
        return len(found) == len(new)

    def _is_ready(self, work: Work) -> bool:
        needed = {n for member in work.members for n in member.needs.values()}
        others = {n for n in needed if self._plan.instance(n).leader not in self._works}
        # Other jobs' work; our own counts once its end is written down.
        self._has(self._plan.instance(n) for n in others)
        if work.state != "pending":
            return False
        missing = needed - self._complete
        return not missing or self._can_do_a_part(work, missing)

    def _can_do_a_part(self, work: Work, missing: set[str]) -> bool:
        """Whether some members have all that they need, and nobody will make what others need."""
        makers = [self._works.get(self._plan.instance(n).leader) for n in missing]
        left = (m for m in work.members if m.id not in self._complete)
        return all(maker and maker.state in ("failed", "cancelled") for maker in makers) and any(
            missing.isdisjoint(member.needs.values()) for member in left
        )

    def _fits(self, work: Work) -> bool:
        if work.is_held or time.monotonic() < work.not_before:
            return False
        used = sum(self._cpus(w) for w in self._works.values() if w.state == "running")
        return used + self._cpus(work) <= self._capacity

    def _cpus(self, work: Work) -> int:
        stage = work.leader.stage
        wanted = cpus_of(stage, self._cluster.resources_of(stage, work.leader.node))
        return min(wanted, self._capacity)

    def _held(self, work: Work) -> dict[str, float]:
        """What its attempt notes of what it holds."""
        stage, node = work.leader.stage, work.leader.node
        gpus = gpus_of(stage, self._cluster.resources_of(stage, node))
        return held(gpus, self._cpus(work), self._cluster.prices)

    def _come_and_go(self, work: Work) -> dict[str, int]:
        """How many nodes that is for, where a training notes how many it has."""
        stage, node = work.leader.stage, work.leader.node
        if not (self._cluster.nodes_come_and_go and BY_NAME[stage].has_ranks):
            return {}
        return {"nodes": self._cluster.resources_of(stage, node).max_nodes}

    def _keep_ray(self) -> None:
        """A Ray session while we have work left that needs one: early, as its start takes time."""
        open_works = [w for w in self._works.values() if w.state in ("pending", "running")]
        left = [w for w in open_works if not w.is_held]
        is_needed = any(map(self._uses_ray, left))
        if self._ray and not (is_needed and self._ray.is_alive()):
            self._ray.stop()
            self._ray = None
        if self._start_ray and is_needed and self._ray is None:
            self._ray = self._start_ray()

    def _uses_ray(self, work: Work) -> bool:
        return self._on_nodes or BY_NAME[work.leader.stage].uses_ray

    def _end_standby(self) -> None:
        """Give its memory back once nobody needs it any more."""
        left = (w for w in self._works.values() if w.state in ("pending", "running"))
        if self._standby and not any(BY_NAME[w.leader.stage].has_ranks for w in left):
            self._standby.stop()

    def _start(self, work: Work) -> None:
        work.ray = self._ray if self._uses_ray(work) else None
        if work.ray and not self._answers(work.ray):
            return  # another session is started at the next look
        about = {**self._held(work), **self._come_and_go(work), **self._about}
        # One that a full store let begin and no further is gone on with.
        attempt = work.begun = work.begun or self._run.begin_attempt(work.leader.id, **about)
        work.log = self._logs.path(attempt.storage, DRIVER_LOG)
        has_ranks = BY_NAME[work.leader.stage].has_ranks
        standby = self._standby.env() if self._standby and has_ranks else {}
        job = stage_job(
            self._run,
            self._store,
            work.leader,
            attempt,
            log=work.log,
            env={**(work.ray.env if work.ray else {}), **standby},
            cluster=self._setup_for,
            on_nodes=self._on_nodes,
        )
        work.ref, work.attempt, work.state = self._backend.submit(job), attempt, "running"
        work.begun = None
        self._limits_due = 0.0
        log.info("%s: attempt %d started", work.leader.id, attempt.number)

    def _answers(self, ray: Session) -> bool:
        """Whether a session is ready. Raises BackendError when it is not, time and again."""
        try:
            ray.wait_ready()
        except BackendError as error:
            self._ray_starts_in_vain += 1
            if ray.is_alive() or self._ray_starts_in_vain >= _RAY_STARTS:
                raise
            log.warning("%s; starting another", error)
            return False
        self._ray_starts_in_vain = 0
        return True

    def _look_for_others(self, work: Work) -> None:
        """Leave what another run works on to it, and look again in a while."""
        if time.monotonic() < work.not_before:
            return
        folders = [self._store.artifact(m.stage, m.key).storage for m in work.members]
        timeout_s = self._cluster.retry.heartbeat_timeout_s
        # All are asked, as each is watched from its first look on.
        holders = [self._watch.live(folder, timeout_s) for folder in folders]
        work.is_held = any(holders)
        if work.is_held:
            work.not_before = time.monotonic() + self._lease_wait_s
            return
        for folder in folders:
            self._watch.clear(folder, timeout_s)

    def _collect_ended(self) -> None:
        running = {w.ref: w for w in self._works.values() if w.state == "running" and w.ref}
        refused: OSError | None = None
        for ref, status in self._backend.poll(list(running)).items():
            try:
                if status.state.is_final:
                    self._ended(running[ref], status)
            except OSError as error:  # the next look tries again
                refused = error
        if refused:
            raise refused

    def _ended(self, work: Work, status: JobStatus) -> None:
        assert work.attempt is not None  # a running work has one
        self._limits_due = 0.0  # looked at again before anything else starts
        self._logs.copy(now=True)
        failure = work.attempt.failure
        node, progress = self._node_of(work.attempt, status), self._store.progress(*work.members)
        ending = Ending(
            exit_code=status.exit_code,
            complete=self._has(work.members),
            progress=progress,
            cause=Cause(failure["cause"]) if failure else status.cause,
            log_tail=self._log_tail(work),
            node=node,
            others=node != status.node,
            has_lost_ray=status.exit_code not in _NOT_OF_RAY and work.has_lost_ray,
            stopped=Cause.PREEMPTED if status.state is JobState.PREEMPTED else self._stop_cause,
        )
        retry = self._cluster.retry
        past = Past(
            attempts=tuple(work.past),
            max_attempts=retry.max_attempts,
            max_without_progress=retry.max_without_progress,
        )
        decision = decide(ending, past)
        attempt_state = {"done": "succeeded", "wait": "cancelled"}.get(decision.action, "failed")
        if decision.cause is Cause.PREEMPTED:
            attempt_state = "preempted"
        if status.state is JobState.CANCELLED and not self._stop_cause:
            attempt_state = "cancelled"
        work.attempt.finish(
            state=attempt_state,
            cause=decision.cause or "",
            action=decision.action,
            reason=decision.reason,
            message=failure.get("message", self._limit or (status.detail if status.cause else "")),
            exit_code=status.exit_code,
            node=node,
            progress=progress,
        )
        attempt = f"{work.leader.id}: attempt {work.attempt.number}"
        log.info("%s %s (%s)", attempt, attempt_state, decision.reason)
        self._apply(work, decision, progress, node)

    def _apply(self, work: Work, decision: Decision, progress: float, node: str) -> None:
        work.ref = None
        if decision.action == "done":
            work.state = "succeeded"
            self._has(work.members)
        elif decision.action == "stop" or (
            decision.action == "elsewhere" and not self._has_whole_run
        ):
            work.state = "failed"  # whoever chooses nodes takes it from here
        else:
            work.state = "pending"
            work.not_before = time.monotonic() + self._delay_s(work, decision, progress)
            if decision.action != "wait" and decision.cause:
                work.past.append((decision.cause, progress, node))

    def _delay_s(self, work: Work, decision: Decision, progress: float) -> float:
        """How long to wait before the next attempt: what gets somewhere goes on at once."""
        if decision.action == "wait":
            return self._lease_wait_s
        is_free = decision.cause in FREE_CAUSES and decision.action == "resume"
        has_progressed = progress > (work.past[-1][1] if work.past else 0.0)
        return 0.0 if is_free or has_progressed else self._retry_delay_s

    @staticmethod
    def _node_of(attempt: AttemptFolder, status: JobStatus) -> str:
        """The node that is to blame, where the attempt says so, else the one it ran on."""
        failed = [e for e in attempt.events() if e["kind"] == "rank_failed"]
        blamed = [e["node"] for e in failed if "node" in e]
        return str(blamed[-1]) if blamed else status.node

    def _log_tail(self, work: Work) -> str:
        if work.log is None or not work.log.exists():
            return ""
        with work.log.open("rb") as file:
            file.seek(max(work.log.stat().st_size - LOG_TAIL_BYTES, 0))
            return file.read().decode(errors="replace")

    def _obey_cancels(self) -> None:
        requests = self._run.cancel_requests()[self._cancels_seen :]
        for request in requests:
            self._cancel(request["stage"])
            self._cancels_seen += 1
            if self._has_whole_run:
                self._run.note_cancelled(self._cancels_seen, request)

    def _cancel(self, stage: str | None) -> None:
        chosen = [w for w in self._works.values() if w.leader.answers_to(stage)]
        stopped = [w for w in chosen if w.state in ("pending", "running")]
        refs = [w.ref for w in stopped if w.ref]
        self._backend.cancel(refs)
        for work in stopped:
            if self._has(work.members):  # it finished while it was being asked to stop
                continue
            if work.attempt and work.state == "running":
                self._logs.copy(now=True)
                work.attempt.finish(
                    state="cancelled",
                    cause=Cause.CANCELLED,
                    action="stop",
                    reason="cancelled by the user",
                )
            work.state, work.ref = "cancelled", None
            log.info("%s: cancelled", work.leader.id)


def backend_of_drivers(cluster: Cluster, node: str = "") -> LocalBackend:
    """What starts drivers beside a supervisor: with the time to save that their ranks need."""
    retry = cluster.retry
    grace_s = retry.notice_s + LAST_WORDS_S
    return LocalBackend(grace_s=grace_s, node=node, hang_timeout_s=retry.hang_timeout_s)


def write_figures(run: RunFolder, store: Store, look: Callable[[], Observed]) -> None:
    """Write what monitoring scrapes; a failure here is not the run's."""
    try:
        run.storage.replace(FIGURES, openmetrics(run_status(run, store, look())).encode())
    except Exception as error:  # noqa: BLE001 (whatever it is, the run must go on)
        log.warning("figures: %s", error)


def write_last_page(run: RunFolder, store: Store, state: str) -> None:
    """Write figures and page of a run that is about to end in a state, before it is known to.

    `orchestrator report` can write the page again, so a failure here is not the run's.
    """
    observed = Observed(is_alive=False, ends_as=state)
    write_figures(run, store, lambda: observed)
    try:
        write_report(run, store, observed)
    except Exception as error:  # noqa: BLE001 (whatever it is, the run has ended well without)
        log.warning("report: %s; `orchestrator report %s` tries again", error, run.name)
