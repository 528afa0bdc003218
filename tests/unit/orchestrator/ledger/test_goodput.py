"""Where the time went: every part by hand, and the parts add up whatever the attempts did."""

from __future__ import annotations

import json
import math
import random
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.goodput import (
    PART_NAMES,
    Interval,
    accounted,
    goodput_line,
    summed,
    sweep,
    timeline,
)
from orchestrator.ledger.storage import Storage

Steps = tuple[tuple[int, float, float, float], ...]
"""Number, end, seconds, seconds of saving after it."""


def goodput(
    by_instance: Mapping[str, Sequence[AttemptFolder]], **how: Any
) -> dict[str, float | None]:
    """What the parts add up to."""
    return summed(accounted(by_instance, **how))


@dataclass(frozen=True)
class Past:
    """What one attempt left: times, final state (none: nobody said), its begin and its steps."""

    started: float
    ended: float | None
    state: str = "succeeded"
    begun: float | None = None
    steps: Steps = field(default=())

    def write(self, number: int, folder: Storage) -> AttemptFolder:
        folder.create_json("attempt.json", {"started_at": self.started})
        if self.begun is not None:
            write_lines(folder, "events-0001.jsonl", [{"at": self.begun, "kind": "begin"}])
        lines = [dict(zip(("step", "at", "step_s", "stall_s"), s, strict=True)) for s in self.steps]
        if lines:
            write_lines(folder, "metrics-0001.jsonl", lines)
        if self.ended is not None:
            folder.create_json("end.json", {"ended_at": self.ended, "state": self.state})
        return AttemptFolder(number, folder)


def write_lines(folder: Storage, name: str, lines: Iterable[Mapping[str, object]]) -> None:
    folder.replace(name, "".join(json.dumps(line) + "\n" for line in lines).encode())


def attempts(storage: Storage, instance_id: str, pasts: Sequence[Past]) -> list[AttemptFolder]:
    return [
        past.write(number, storage.at(instance_id, f"{number:04d}"))
        for number, past in enumerate(pasts, 1)
    ]


def account(storage: Storage, **pasts: Sequence[Past]) -> dict[str, float]:
    """The parts that are not zero, with their sum and the ETTR left out."""
    found = goodput(
        {f"{name}-0a1b2c": attempts(storage, name, past) for name, past in pasts.items()}
    )
    return {part: found[f"{part}_s"] or 0.0 for part in PART_NAMES if found[f"{part}_s"]}


def test_nothing_has_happened() -> None:
    found = goodput({})
    assert found["ettr"] is None
    assert set(found) == {"elapsed_s", "ettr"} | {f"{part}_s" for part in PART_NAMES}
    assert not any(found.values())
    assert goodput_line(found) == "goodput: nothing has run yet"


@pytest.mark.parametrize(
    ("past", "expected"),
    [
        ([Past(10, 20)], {"productive": 10}),
        ([Past(10, 20, begun=13)], {"queue": 3, "productive": 7}),
        ([Past(10, 20, "failed", begun=13)], {"queue": 3, "lost": 7}),
        # Killed before its first events were written, and cancelled before it had begun.
        ([Past(10, 20, "preempted")], {"lost": 10}),
        ([Past(10, 20, "cancelled")], {"queue": 10}),
        ([Past(10, 20, "failed", begun=11), Past(25, 35, begun=27)],
         {"queue": 1, "lost": 9, "restart": 7, "productive": 8}),
        # After a success, an attempt is no retry: nothing went on in between.
        ([Past(10, 20), Past(25, 35, begun=27)], {"productive": 18, "idle": 5, "queue": 2}),
        # Nobody said how the first ended, but the second has started.
        ([Past(10, None, begun=10), Past(25, 35, begun=25)], {"lost": 15, "productive": 10}),
        # Clocks that disagree neither go back nor beyond the end.
        ([Past(10, 20, begun=8)], {"productive": 10}),
        ([Past(10, 20, begun=22)], {"queue": 10}),
    ],
)  # fmt: skip
def test_a_stage_that_does_not_train(
    storage: Storage, past: list[Past], expected: dict[str, float]
) -> None:
    assert account(storage, tokenize=past) == expected


TWO_STEPS: Steps = ((1, 15, 2, 0), (2, 18, 2, 1))
"""Starts at 13; a second of validation between the steps; saves until 19."""


@pytest.mark.parametrize(
    ("past", "expected"),
    [
        # Validation belongs to the step after it, writing the model to the end.
        ([Past(10, 24, begun=11, steps=TWO_STEPS)],
         {"queue": 1, "startup": 2, "productive": 5 + 5, "checkpoint": 1}),
        ([Past(10, 24, "preempted", begun=11, steps=TWO_STEPS)],
         {"queue": 1, "startup": 2, "productive": 5, "checkpoint": 1, "lost": 5}),
        # It went on from step 2: nothing is done twice.
        ([Past(10, 19, "preempted", begun=11, steps=TWO_STEPS),
          Past(22, 30, begun=23, steps=((3, 27, 1, 0),))],
         {"queue": 1, "startup": 2, "productive": 5 + 1 + 3, "checkpoint": 1, "restart": 3 + 4}),
        # Step 2 is done again; saving it was saving all the same.
        ([Past(10, 19, "failed", begun=11, steps=TWO_STEPS),
          Past(19, 26, begun=20, steps=((2, 25, 1, 0), (3, 26, 1, 0)))],
         {"queue": 1, "startup": 2, "productive": 2 + 2, "lost": 3, "checkpoint": 1, "restart": 5}),
        # The second went on from step 2, but the third fell back behind it.
        ([Past(10, 19, "failed", begun=11, steps=TWO_STEPS),
          Past(19, 22, "preempted", begun=19, steps=((3, 22, 2, 0),)),
          Past(22, 26, begun=22, steps=((2, 26, 3, 0),))],
         {"queue": 1, "startup": 2, "productive": 2 + 3, "lost": 5, "checkpoint": 1, "restart": 2}),
        # An attempt without a step in between changes nothing of that, and is all restart.
        ([Past(10, 19, "failed", begun=11, steps=TWO_STEPS),
          Past(19, 30, "failed", begun=20),
          Past(30, 33, begun=30, steps=((1, 32, 1, 0), (2, 33, 1, 0)))],
         {"queue": 1, "startup": 2, "lost": 5, "checkpoint": 1, "restart": 12, "productive": 2}),
        # A first attempt without a step: it failed, or had nothing left to do but the end.
        ([Past(10, 20, "failed", begun=12)], {"queue": 2, "lost": 8}),
        ([Past(10, 20, begun=12)], {"queue": 2, "productive": 8}),
        # A step line whose writer's clock is ahead ends with the attempt.
        ([Past(10, 17, begun=11, steps=TWO_STEPS)],
         {"queue": 1, "startup": 2, "productive": 4}),
    ],
)  # fmt: skip
def test_training(storage: Storage, past: list[Past], expected: dict[str, float]) -> None:
    assert account(storage, train=past) == expected


def test_stages_side_by_side_count_once(storage: Storage) -> None:
    found = account(
        storage,
        tokenize=[Past(10, 20, begun=10)],
        train=[Past(12, 30, "failed", begun=18), Past(40, 45, begun=44)],
        evaluate=[Past(50, 60, "failed", begun=50)],
    )
    assert found == {"productive": 10, "lost": 10 + 10, "restart": 10 + 5, "idle": 5}


@pytest.mark.parametrize(
    ("end", "parts"),
    [
        ({"state": "cancelled"}, {"lost": 9, "idle": 100, "productive": 10}),
        ({"state": "failed", "action": "stop"}, {"lost": 9, "idle": 100, "productive": 10}),
        ({"state": "failed", "action": "resume"}, {"lost": 9, "restart": 100, "productive": 10}),
        ({"state": "preempted"}, {"lost": 9, "restart": 100, "productive": 10}),
    ],
)
def test_what_nobody_was_to_retry_lay_idle(
    storage: Storage, end: dict[str, str], parts: dict[str, float]
) -> None:
    first, second = attempts(storage, "pack", [Past(10, None, begun=10), Past(119, 129, begun=119)])
    first.storage.create_json("end.json", {"ended_at": 19, **end})
    found = goodput({"pack-1": [first, second]})
    assert {part: s for part in PART_NAMES if (s := found[f"{part}_s"])} == parts


def test_without_a_supervisor_nobody_restarts(storage: Storage) -> None:
    past = [Past(10, 20, "failed", begun=10), Past(120, 130, begun=122)]
    found = goodput({"pack-1": attempts(storage, "pack", past)}, supervised=[(0, 23), (115, 130)])
    assert found["restart_s"] == 3 + 5 + 2
    assert found["idle_s"] == 92


def test_every_part_yields_to_those_before_it() -> None:
    order = ("productive", "checkpoint", "lost", "startup", "restart", "queue")
    nested = [Interval(10 - n, 10 + n, part) for n, part in enumerate(order, 1)]
    assert sweep(nested) == {**dict.fromkeys(order, 2.0), "idle": 0.0}
    assert sweep(reversed(nested)) == sweep(nested)


def test_what_still_runs_is_productive_until_it_says_otherwise(storage: Storage) -> None:
    now = time.time()
    running = {
        "pack-1": attempts(storage, "pack", [Past(now - 8, None, begun=now - 6)]),
        "train-1": attempts(storage, "train", [Past(now - 20, None, begun=now - 16)]),
        "train-2": attempts(storage, "waiting", [Past(now - 30, None)]),
    }
    found = goodput(running)
    assert found["queue_s"] == pytest.approx(10 + 4, abs=1e-3)
    assert found["startup_s"] == pytest.approx(10, abs=1e-3)
    assert found["productive_s"] == pytest.approx(6, abs=5)
    assert found["lost_s"] == found["idle_s"] == 0


def test_with_nobody_alive_an_attempt_ends_with_its_last_sign(storage: Storage) -> None:
    tokenize = attempts(storage, "tokenize", [Past(10, None, begun=11)])
    tokenize[0].storage.create_json("progress.json", {"at": 17.5})
    train = attempts(storage, "train", [Past(20, None, begun=21, steps=((1, 24, 1, 0.5),))])
    found = goodput({"tokenize-1": tokenize, "train-1": train}, is_alive=False)
    assert found["elapsed_s"] == 14.5
    assert (found["lost_s"], found["idle_s"], found["productive_s"]) == (6.5, 2.5, 1.0)


def test_what_was_submitted_waits_for_its_first_attempt(storage: Storage) -> None:
    corpus = {"corpus-1": attempts(storage, "corpus", [Past(10, 20, begun=12)])}
    found = goodput(corpus, submitted_at=4)
    assert (found["queue_s"], found["elapsed_s"], found["ettr"]) == (8, 16, 1.0)
    assert goodput(corpus, submitted_at=11)["elapsed_s"] == 10
    waiting = goodput({"corpus-1": []}, submitted_at=time.time() - 5)
    assert waiting["queue_s"] == waiting["elapsed_s"] == pytest.approx(5, abs=4)
    assert waiting["ettr"] is None
    assert goodput({"corpus-1": []}, submitted_at=4, is_alive=False)["elapsed_s"] == 0


def test_the_line_and_the_ratio_leave_the_queue_to_the_cluster(storage: Storage) -> None:
    past = [Past(0, 50, begun=20, steps=((1, 30, 5, 1), (2, 45, 2, 1)))]
    found = goodput({"train-1": attempts(storage, "train", past)})
    assert found["ettr"] == (5 + 14 + 4) / (50 - 20)
    assert goodput_line(
        {"elapsed_s": 200.0, "ettr": 0.875, "productive_s": 140.0, "checkpoint_s": 4.0,
         "lost_s": 8.0, "restart_s": 5.0, "startup_s": 3.0, "queue_s": 40.0, "idle_s": 0.0}
    ) == (
        "goodput: 70.0 % productive, 2.0 % checkpoint stall, 4.0 % lost, 2.5 % restart, "
        "1.5 % start-up, 20.0 % queue, 0.0 % idle; ETTR 0.88"
    )  # fmt: skip


def a_past(rng: random.Random, at: float) -> Past:
    """An attempt that did anything, clocks out of step included."""
    begun = rng.choice([None, at + rng.uniform(-1, 5)])
    reached, steps = (begun or at) + rng.uniform(0, 3), []
    for number in range(rng.randint(1, 4), rng.randint(1, 8)):
        step_s, stall_s = rng.uniform(0, 2), rng.choice([0.0, rng.uniform(0, 1)])
        reached += step_s + rng.uniform(-0.2, 0.2)
        steps.append((number, reached, step_s, stall_s))
        reached += stall_s
    state = rng.choice(["succeeded", "failed", "preempted", "cancelled"])
    return Past(at, max(at, reached + rng.uniform(-2, 2)), state, begun, tuple(steps))


def random_run(rng: random.Random, storage: Storage) -> dict[str, list[AttemptFolder]]:
    run = {}
    for name in ("tokenize-1", "train-1", "train-2"):
        at, pasts = 1.7e9 + rng.uniform(0, 40), []
        for _ in range(rng.randint(0, 4)):
            pasts.append(a_past(rng, at))
            at = (pasts[-1].ended or at) + rng.choice([0.0, rng.uniform(0, 9)])
        run[name] = attempts(storage, name, pasts)
    return run


@pytest.mark.parametrize("seed", range(60))
def test_the_parts_add_up_to_the_elapsed_time(seed: int) -> None:
    run = random_run(random.Random(seed), Storage(f"memory://{secrets.token_hex(4)}"))
    found = goodput(run)
    parts = [found[f"{part}_s"] or 0.0 for part in PART_NAMES]
    assert min(parts) >= 0
    assert math.fsum(parts) == pytest.approx(found["elapsed_s"], rel=1e-9)
    everyone = [attempt for folders in run.values() for attempt in folders]
    first = min((a.started["started_at"] for a in everyone), default=0.0)
    last = max((a.end["ended_at"] for a in everyone if a.end), default=0.0)
    assert found["elapsed_s"] == pytest.approx(last - first, rel=1e-9)
    assert found["ettr"] is None or 0 <= found["ettr"] <= 1


def test_the_timeline_is_the_sweep_in_order_without_seams() -> None:
    intervals = [
        Interval(0.0, 10.0, "queue"),
        Interval(4.0, 6.0, "productive"),
        Interval(6.0, 7.0, "productive"),
        Interval(12.0, 13.0, "lost"),
    ]
    assert timeline(intervals) == [
        Interval(0.0, 4.0, "queue"),
        Interval(4.0, 7.0, "productive"),
        Interval(7.0, 10.0, "queue"),
        Interval(10.0, 12.0, "idle"),
        Interval(12.0, 13.0, "lost"),
    ]
    seconds = dict.fromkeys(PART_NAMES, 0.0)
    for began_at, ended_at, part in timeline(intervals):
        seconds[part] += ended_at - began_at
    assert seconds == sweep(intervals)
    assert timeline([]) == []
