"""What a run has spent: attempts that ended, run, died without a word or noted nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.errors import CorruptError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.spending import Spending, held, spending, spending_figures
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.spec.cluster import Prices
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe

PLAN = plan_of(recipe())
TRAIN = next(i.id for i in PLAN.instances if i.stage == "train")
TOKENIZE = next(i.id for i in PLAN.instances if i.stage == "tokenize")
PRICES = Prices(gpu_hour=2.0, cpu_hour=0.1)
HOUR = 3600.0
NOTED = held(8, 10, PRICES)
"""17 an hour."""


def run_of(storage: Storage) -> RunFolder:
    run = RunFolder(storage.at("runs", "small"))
    run.create(PLAN, recipe(), cluster(storage.url), {}, {})
    return run


def attempt(run: RunFolder, started_at: float, ended_at: float | None = None, **about: Any) -> None:
    folder = run.begin_attempt(TRAIN, started_at=started_at, **about)
    if ended_at is not None:
        folder.finish(ended_at=ended_at, state="failed")


def spent(run: RunFolder, *, is_alive: bool = False) -> tuple[float, float]:
    found = spending(run, PLAN, is_alive=is_alive)
    return pytest.approx(found.gpu_hours, abs=0.01), pytest.approx(found.price, abs=0.1)


def test_nothing_has_been_spent(storage: Storage) -> None:
    assert spent(run_of(storage), is_alive=True) == (0.0, 0.0)


def test_attempts_add_up_each_at_the_prices_of_its_day(storage: Storage) -> None:
    run = run_of(storage)
    attempt(run, 1 * HOUR, 3 * HOUR, **NOTED)
    attempt(run, 10 * HOUR, 11 * HOUR, **held(4, 0, Prices(gpu_hour=1.0)))
    assert spent(run) == (8 * 2 + 4, 2 * 17 + 4)


def test_one_that_runs_counts_until_now_and_no_longer_than_it_lived(storage: Storage) -> None:
    run, now = run_of(storage), time.time()
    attempt(run, now - 3 * HOUR, **NOTED)
    (folder,) = run.attempts(TRAIN)
    folder.storage.replace("progress.json", to_json({"at": now - HOUR / 6}))
    assert spent(run, is_alive=True) == (24, 51)
    folder.storage.replace("progress.json", to_json({"at": now - 2 * HOUR}))
    assert spent(run) == (8, 17), "with nobody at work it ended with its last sign of life"
    assert spent(run, is_alive=True) == (8, 17), "others are, and its job waits in the queue"


@pytest.mark.parametrize(("last_event", "hours"), [(2.0, 2.0), (50.0, 4.0)])
def test_one_that_died_without_a_word_counts_until_its_last(
    storage: Storage, last_event: float, hours: float
) -> None:
    """Another follows it hours later; clocks that disagree do not let it outlive that."""
    run = run_of(storage)
    attempt(run, 0.0, **NOTED)
    event = json.dumps({"at": last_event * HOUR, "kind": "begin"})
    run.attempts(TRAIN)[0].storage.create("events-0001.jsonl", event.encode())
    attempt(run, 4 * HOUR, 4 * HOUR, **NOTED)
    assert spent(run, is_alive=True) == (8 * hours, 17 * hours)


def test_a_training_counts_the_nodes_that_it_had(storage: Storage) -> None:
    """Of four: none while it waits for an hour, two for half an hour, three for an hour."""
    run = run_of(storage)
    attempt(run, 0.0, 2.5 * HOUR, nodes=4, **NOTED)
    (folder,) = run.attempts(TRAIN)
    rows = [[HOUR, 2], [1.5 * HOUR, 3]]
    folder.storage.replace("nodes.json", to_json({"nodes": rows}))
    assert spent(run) == (8 * (1 + 3) / 4, 17 * (1 + 3) / 4)
    attempt(run, 3 * HOUR, 5 * HOUR, nodes=4, **NOTED)
    assert spent(run) == (8, 17), "one that never had any costs nothing"


def test_what_noted_nothing_and_what_ends_before_it_starts_cost_nothing(storage: Storage) -> None:
    run = run_of(storage)
    attempt(run, 0.0, 5 * HOUR)
    attempt(run, 9 * HOUR, 8 * HOUR, **NOTED)
    assert spent(run) == (0.0, 0.0)


def test_workers_of_a_data_stage_count_beside_its_head(storage: Storage) -> None:
    run = run_of(storage)
    for name in ("12-0-n1", "13-0-n2"):
        run.note_worker(TOKENIZE, name, **held(1, 4, PRICES), started_at=0.0, seen_at=0.0)
        run.note_worker(TOKENIZE, name, **held(1, 4, PRICES), started_at=0.0, seen_at=2 * HOUR)
    assert spent(run) == (4, 2 * 2 * 2.4)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({}, ""),
        ({"max_gpu_hours": 21}, ""),
        ({"max_gpu_hours": 20}, "limits.max_gpu_hours: 20 of 20 spent"),
        ({"max_price": 12.5}, "limits.max_price: 12.6 of 12.5 EUR spent"),
        ({"max_gpu_hours": 1000, "max_price": 12}, "limits.max_price: 12.6 of 12 EUR spent"),
    ],
)
def test_which_limit_is_reached(limits: Mapping[str, float], says: str) -> None:
    prices = {"gpu_hour": 1.0, "currency": "EUR"}
    where = cluster(
        "/store", limits=limits, prices=prices, resources={"train": {"gpus_per_node": 1}}
    )
    assert Spending(gpu_hours=20, price=12.6).used_up(where) == says


def test_the_next_look_is_when_the_first_limit_is_reached() -> None:
    spent, asked = Spending(gpu_hours=19, price=1), {"train": {"gpus_per_node": 1}}
    limits = {"max_gpu_hours": 20, "max_price": 35}
    where = cluster("/store", limits=limits, prices={"gpu_hour": 1.0}, resources=asked)
    assert spent.seconds_left(where, [NOTED]) == HOUR / 8
    assert spent.seconds_left(where, [held(0, 10, PRICES)] * 2) == 17 * HOUR
    assert spent.seconds_left(where, []) == float("inf")
    assert spent.seconds_left(cluster("/store"), [NOTED]) == float("inf")


def test_figures_say_what_is_spent_of_what_is_allowed() -> None:
    spent = Spending(gpu_hours=0.0, price=1234.5)
    assert spending_figures(spent.to_json(cluster("/store"))) == ["1,234 USD"]
    prices, limits = {"cpu_hour": 1.0, "currency": "EUR"}, {"max_price": 5000}
    where = cluster("/store", prices=prices, limits=limits)
    assert spending_figures(spent.to_json(where)) == ["1,234 of 5,000 EUR"]
    assert spending_figures({}) == []


@pytest.mark.parametrize("row", [{}, {"seen_at": "x"}, {**NOTED, "started_at": 0, "seen_at": None}])
def test_a_damaged_note_of_a_worker_is_a_line(storage: Storage, row: Mapping[str, Any]) -> None:
    run = run_of(storage)
    run.storage.replace(f"stages/{TOKENIZE}/workers/12-0.json", to_json(row))
    with pytest.raises(CorruptError, match="/stages: cannot be understood"):
        spent(run)
