"""Telling a run's people what happens to it, from beside whoever supervises it.

A thread looks at the run's status, keeps what is new in the run's folder, and tells it to the hooks
of the cluster file. Of several supervisors one tells at a time; what it had not told when it died
the next one does. Nothing that goes wrong here is the run's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace

from orchestrator.control.hooks import Hook, hooks_of
from orchestrator.errors import CorruptError, LeaseHeldError, OrchestratorError
from orchestrator.ledger import lease as leases
from orchestrator.ledger.notice import Notice, NoticeFolder, notices_of
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed, Reader, StatusReader
from orchestrator.ledger.store import Store
from orchestrator.report.page import PAGE
from orchestrator.report.record import Record, read_record

LOOK_EVERY_S = 5.0
REMOTE_LOOK_EVERY_S = 15.0
"""Of a store that is no path: each look asks it several times, and may cost money."""
_TRY_AGAIN_S = 0.5
_CLOCKS_DIFFER_S = 60.0
"""How far the clocks of a run's first nodes may be apart."""
_ENDS = ("failed", "done")

log = logging.getLogger(__name__)


class Notifier:
    """Tells what happens to a run from when it is made until it is closed.

    Nothing happens, and nothing is read, where the cluster file has no hook.
    """

    def __init__(self, store: Store, run: RunFolder, look_every_s: float | None = None) -> None:
        self._store, self._run = store, run
        self._notify = run.cluster().notify
        self._hooks: Mapping[str, Hook] = hooks_of(self._notify)
        usual_s = LOOK_EVERY_S if run.storage.local_root else REMOTE_LOOK_EVERY_S
        self._look_every_s = usual_s if look_every_s is None else look_every_s
        self._made_at = time.time()
        self._folder = NoticeFolder(run.storage)
        self._teller: _Teller | None = None
        self._closing = threading.Event()
        self._last_look: Callable[[], Observed] = lambda: Observed(is_alive=True)
        self._thread = threading.Thread(target=self._work, name="notices", daemon=True)

    def watch(self) -> None:
        """Begin to tell."""
        if self._hooks:
            self._thread.start()

    def close(self, last_look: Callable[[], Observed], within_s: float | None = None) -> None:
        """Tell what is left, as the run stands now, and end.

        What takes longer than ``within_s``, by default the hooks' own deadline, is left to the next
        supervisor.
        """
        if self._thread.ident is None:
            return
        self._last_look = last_look
        self._closing.set()
        self._thread.join(self._notify.deadline_s if within_s is None else within_s)

    def _work(self) -> None:
        while not self._closing.is_set():
            self._look(lambda: Observed(is_alive=True))
            self._closing.wait(self._look_every_s)
        # Of the run's end nobody else may know: tried until whoever waits for us does so no more.
        while not self._look(self._last_look) and not self._is_at_work():
            time.sleep(_TRY_AGAIN_S)
        if self._teller:
            self._teller.leave()

    def _is_at_work(self) -> bool:
        """Whether somebody is known to work on the run at its end for us."""
        try:
            return self._last_look().is_alive
        except (OSError, OrchestratorError):  # a store that is away
            return False

    def _look(self, observe: Callable[[], Observed]) -> bool:
        """Tell what is new; False when somebody else does, or nothing could be read."""
        try:
            if self._teller is None:
                self._teller = self._begin()
            self._teller.tell(observe())
        except LeaseHeldError:  # another supervisor of this run tells
            self._teller = None
            return False
        except Exception as error:  # noqa: BLE001 (whatever it is, the run must go on)
            log.warning("notices: %s", error)
            return False
        return True

    def _begin(self) -> _Teller:
        """The right to tell. Raises LeaseHeldError while another process has it."""
        timeout_s = self._run.cluster().retry.heartbeat_timeout_s
        lease = leases.acquire(self._folder.storage, holder=self._run.name, timeout_s=timeout_s)
        return _Teller(self._store, self._run, self._folder, self._hooks, lease, self._made_at)


class _Teller:
    """Tells, with the right to do so."""

    def __init__(
        self,
        store: Store,
        run: RunFolder,
        folder: NoticeFolder,
        hooks: Mapping[str, Hook],
        lease: leases.HeldLease,
        now: float,
    ) -> None:
        self._store, self._run, self._folder = store, run, folder
        self._hooks, self._lease = hooks, lease
        self._reader = StatusReader(run, store, Reader())
        self._events = run.cluster().notify.events
        self._since, self._token = folder.origin(self._begins_at(now))
        self._recorded = set(folder.names())
        self._to_tell = sorted(self._recorded)
        """Those of earlier processes included, as far as nobody knows what came of them."""

    def tell(self, observed: Observed) -> None:
        """Record what is new, then tell what is untold. Raises LeaseHeldError, OSError."""
        self._lease.beat()
        notices = notices_of(self._reader.read(observed), self._since)
        for notice in sorted(notices, key=lambda notice: notice.at):
            if notice.event in self._events and notice.name not in self._recorded:
                self._record(notice, observed)
        while self._to_tell:
            try:
                self._tell(self._to_tell[0])
            except CorruptError as error:  # those after it are still to be told
                log.warning("notices: %s", error)
            del self._to_tell[0]

    def _begins_at(self, now: float) -> float:
        """From when on to tell: all of a run that begins now, else what happens from now on."""
        status = self._reader.read(Observed(is_alive=True))
        begun_at = min((a.started_at for s in status.stages for a in s.attempts), default=now)
        return 0.0 if begun_at > now - _CLOCKS_DIFFER_S else now

    def leave(self) -> None:
        """Let others tell."""
        with suppress(OSError):
            self._lease.release()

    def _record(self, notice: Notice, observed: Observed) -> None:
        """Keep the notice before anybody is told; of an end, with what came of the run."""
        facts = dict(notice.facts)
        if notice.event in _ENDS and self._run.storage.exists(PAGE):
            facts["report"] = f"{self._run.storage.url}/{PAGE}"
        if notice.event == "done":
            scores = scores_of(read_record(self._run, self._store, observed))
            facts["scores"] = scores
            figures = [f"{name} {s['test']:.4g}" for name, s in scores.items() if "test" in s]
            text = (
                f"{notice.text}; test perplexity {', '.join(figures)}" if figures else notice.text
            )
            notice = replace(notice, text=text)
        payload = replace(notice, facts=facts).payload(self._run.name, self._token)
        self._folder.record(notice.name, payload)
        self._recorded.add(notice.name)
        self._to_tell.append(notice.name)

    def _tell(self, name: str) -> None:
        payload = self._folder.read(name)
        for hook in self._folder.untold(name, self._hooks):
            outcome = self._hooks[hook](payload, self._lease.beat)
            if outcome.problem:
                log.warning("notice %s: %s given up: %s", name, hook, outcome.problem)
            self._folder.close(name, hook, **asdict(outcome))


def scores_of(record: Record) -> dict[str, dict[str, float]]:
    """Perplexity by variant and split, of the variants that have scores."""
    splits = {v.name: v.scores.splits for v in record.variants}
    found = {
        name: {split: by["model"].perplexity for split, by in of.items() if "model" in by}
        for name, of in splits.items()
    }
    return {name: scores for name, scores in found.items() if scores}
