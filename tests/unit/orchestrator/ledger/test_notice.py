"""What is told of a run: each thing once, under a name that everybody finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Cause
from orchestrator.ledger.notice import Notice, NoticeFolder, notices_of
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import JobState, JobStatus, Observed, run_progress
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.ledger.store import Store
from orchestrator.plan.policy import remedy_of
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe

PLAN = plan_of(recipe())
TRAIN = next(i for i in PLAN.instances if i.stage == "train")
PACK = next(i for i in PLAN.instances if i.stage == "pack")
RUNNING, OVER = Observed(is_alive=True), Observed(is_alive=False)
PREEMPTED = {"state": "preempted", "cause": "preempted", "action": "resume", "reason": "to leave"}
STOPPED = {"state": "failed", "cause": "bad_data", "action": "stop", "reason": "no help"}
LIMIT = {"state": "failed", "cause": "limit", "action": "stop", "message": "max_price spent"}


class World:
    """A run whose attempts are written by hand."""

    def __init__(self, storage: Storage) -> None:
        self.store = Store.open(storage.url)
        self.run = RunFolder(self.store.run_storage("small"))
        self.run.create(PLAN, recipe(), cluster(storage.url), {}, {})

    def attempt(self, at: float, end: dict[str, Any] | None = None, **progress: Any) -> None:
        folder = self.run.begin_attempt(TRAIN.id, started_at=at, node=f"n{at:g}")
        if progress:
            folder.storage.replace("progress.json", to_json({"at": at + 1, **progress}))
        if end is not None:
            folder.finish(**{"ended_at": at + 5, **end})

    def told(self, observed: Observed = RUNNING, since: float = 0.0) -> list[Notice]:
        notices = list(notices_of(run_progress(self.run, self.store, observed), since))
        return sorted(notices, key=lambda notice: notice.at)

    def events(self, observed: Observed = RUNNING, since: float = 0.0) -> list[str]:
        return [notice.event for notice in self.told(observed, since)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Storage(str(tmp_path / "store")))


GONE = {"host": "elsewhere/1", "pid": 1, "started_at": 1.0}
STEPS = {"done": 3, "total": 12, "unit": "steps"}


@pytest.mark.parametrize(
    ("ends", "observed", "events"),
    [
        ([], RUNNING, []),
        ([None], RUNNING, ["started"]),
        ([PREEMPTED], RUNNING, ["started", "interrupted"]),
        ([PREEMPTED, None], RUNNING, ["started", "interrupted", "back"]),
        ([PREEMPTED, PREEMPTED, None], RUNNING,
         ["started", "interrupted", "back", "interrupted", "back"]),
        ([STOPPED], RUNNING, ["started", "failed"]),
        ([STOPPED], OVER, ["started", "failed"]),
        ([LIMIT], OVER, ["started", "failed"]),
        # Resumed by its user, who was told of the end before.
        ([STOPPED, None], RUNNING, ["started", "failed", "back"]),
        # Nobody goes on after a preemption: that is a failure.
        ([PREEMPTED], OVER, ["started", "failed"]),
        # Of an attempt that nobody ended, the next one tells.
        ([None, None], RUNNING, ["started", "back"]),
        ([None, STOPPED], OVER, ["started", "back", "failed"]),
        ([None], OVER, ["started", "failed"]),
        # Those that wait for another run, or were cancelled, concern nobody.
        ([{"state": "cancelled", "action": "wait"}, None], RUNNING, ["started"]),
        ([{"state": "cancelled", "action": "stop", "cause": "cancelled"}], RUNNING, ["started"]),
        ([{"state": "cancelled", "action": "stop", "cause": "cancelled"}, None], RUNNING,
         ["started"]),
        ([PREEMPTED, {"state": "cancelled", "action": "stop", "cause": "cancelled"}, None], RUNNING,
         ["started", "interrupted", "back"]),
        ([PREEMPTED, {"state": "cancelled", "action": "wait"}, None], RUNNING,
         ["started", "interrupted", "back"]),
        ([{"state": "succeeded", "action": "done"}], RUNNING, ["started"]),
    ],
)  # fmt: skip
def test_what_attempts_tell(
    world: World, ends: Sequence[dict[str, Any] | None], observed: Observed, events: list[str]
) -> None:
    for number, end in enumerate(ends):
        world.attempt(10.0 * (number + 1), end)
    if observed is OVER:
        world.run.begin_supervisor(process=GONE).finish(state="failed", cause="", reason="")
    assert world.events(observed) == events
    names = [notice.name for notice in world.told(observed)]
    assert len(set(names)) == len(names)
    assert names == [notice.name for notice in world.told(observed)], "for whoever looks next"


def test_a_name_stays_when_the_run_goes_on(world: World) -> None:
    world.attempt(10.0, STOPPED)
    before = {n.name for n in world.told(OVER)}
    world.attempt(20.0)
    assert before < {n.name for n in world.told(RUNNING)}


def test_the_first_step_is_told_once_by_its_training(world: World) -> None:
    world.attempt(10.0)
    assert world.events() == ["started"]
    world.attempt(20.0, PREEMPTED, **STEPS)
    world.attempt(30.0, **STEPS)
    (first,) = (n for n in world.told() if n.event == "first_step")
    assert first.name == f"first_step-{TRAIN.id}"
    assert first.facts == {"stage": TRAIN.id, "step": 3, "steps": 12}


def test_the_first_step_comes_before_the_end_of_its_attempt_whenever_somebody_looks(
    world: World,
) -> None:
    world.attempt(10.0, PREEMPTED)
    world.attempt(20.0, {**PREEMPTED, "ended_at": 20.5}, **STEPS)  # its progress is of 21.0
    world.attempt(30.0, **STEPS)
    assert world.events() == [
        "started", "interrupted", "back", "first_step", "interrupted", "back",
    ]  # fmt: skip


def test_what_happened_before_anybody_was_to_be_told_is_not(world: World) -> None:
    world.attempt(10.0, PREEMPTED, **STEPS)
    world.attempt(20.0, STOPPED)
    world.attempt(30.0, **STEPS)
    assert world.events(since=29.0) == ["back"]
    world.run.attempts(TRAIN.id)[-1].finish(**STOPPED, ended_at=35.0)
    world.run.begin_supervisor(process=GONE).finish(state="failed", cause="", reason="")
    assert world.events(since=36.0) == [], "an old failure, of a run that somebody resumes"
    assert world.events(OVER, since=36.0) == ["failed"], "unless that is how the run stands"


def test_a_failure_carries_its_cause_and_the_remedy(world: World) -> None:
    world.attempt(10.0, {**LIMIT, "reason": "no more"})
    (failed,) = (n for n in world.told(OVER) if n.event == "failed")
    payload = failed.payload("small", "abc")
    assert payload.pop("remedy").startswith("the cluster file allows no more; `orchestrator resume")
    assert payload == {
        "id": f"small/abc/failed-{TRAIN.id}-0001",
        "run": "small",
        "event": "failed",
        "time": "1970-01-01T00:00:15.000+00:00",
        "text": f"small: {TRAIN.id}: failed: limit: max_price spent",
        "stage": TRAIN.id,
        "node": "n10",
        "attempt": 1,
        "step": 0,
        "steps": 12,
        "cause": "limit",
        "reason": "no more",
        "message": "max_price spent",
    }


def test_a_run_that_failed_without_an_attempt(world: World) -> None:
    world.run.begin_supervisor(process=GONE).finish(state="failed", cause="limit", reason="")
    (failed,) = world.told(OVER)
    assert (failed.event, failed.facts["cause"]) == ("failed", "limit")
    job = JobStatus(state=JobState.FAILED, detail="FAILED on n1")
    (failed,) = world.told(Observed(is_alive=False, jobs={PACK.id: job}))
    assert failed.name == f"failed-{PACK.id}-0000"
    assert failed.text == f"{PACK.id}: failed: the scheduler says: FAILED on n1"


def test_done(world: World) -> None:
    for instance in PLAN.instances:
        artifact = world.store.artifact(instance.stage, instance.key)
        artifact.publish(inputs=instance.inputs, facts={}, producer={})
    assert world.events(OVER, since=1.0) == ["done"]


def test_what_is_kept_is_kept_once(storage: Storage) -> None:
    folder = NoticeFolder(storage)
    since, token = folder.origin(100.0)
    assert (since, token) == folder.origin(200.0)
    assert since == 100.0
    folder.record("started", {"id": "1"})
    folder.record("started", {"id": "2"})
    assert folder.read("started") == {"id": "1"}
    assert folder.names() == ("started",)
    assert folder.untold("started", ["webhook", "command"]) == ["webhook", "command"]
    folder.close("started", "webhook", was_told=True)
    folder.close("started", "webhook", was_told=False)
    assert folder.untold("started", ["webhook", "command"]) == ["command"]
    assert storage.read_json("notices/started/webhook.json")["was_told"] is True


def test_a_cause_that_only_later_versions_know_is_told_as_unknown(world: World) -> None:
    world.attempt(10.0, {**STOPPED, "cause": "cosmic_rays"})
    (failed,) = (n for n in world.told(OVER) if n.event == "failed")
    assert failed.facts["remedy"] == remedy_of(Cause.UNKNOWN)
