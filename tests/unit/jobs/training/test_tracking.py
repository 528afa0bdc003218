"""Only what is committed is sent, in order, with the times and rates that its attempt knows."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.training.trackers import Row, Tracked, Tracker
from jobs.training.tracking import Chain, Job, Training, follow, rows, without_secrets
from orchestrator.errors import LeaseHeldError
from orchestrator.ledger import checkpoints, lease
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Tracking
from tests.unit.orchestrator.ledger.test_extension import save


class Shown(Tracker):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def send(self, rows: Sequence[Row]) -> None:
        self.rows += rows

    def score(self, step: int, values: object) -> None: ...

    def close(self) -> None: ...

    @property
    def steps(self) -> list[int]:
        return [row.step for row in self.rows]


@pytest.fixture
def out(tmp_path: Path) -> Artifact:
    return Artifact("train", "0" * 64, Storage(str(tmp_path / "out")))


@pytest.fixture
def chain(tmp_path: Path, out: Artifact) -> Chain:
    record = str(tmp_path / "attempt")
    return Chain(Training(out_url=out.storage.url, record_url=record, lease_n=1))


def test_a_row_holds_what_is_known_of_its_step() -> None:
    line = {"step": 2, "loss": 1.5, "lr": 0.1, "grad_norm": None, "tokens_seen": 64}
    timed = {**line, "at": 7.0, "step_s": 0.5, "stall_s": 0.2, "tokens_per_s": 64.0}
    (row,) = rows([line], [{"step": 2, "loss": 1.25, "num_windows": 3}], [timed])
    assert row == Row(2, 7.0, {
        "train/loss": 1.5, "train/lr": 0.1, "train/tokens_per_s": 64.0,
        "train/checkpoint_stall_s": 0.2, "valid/loss": 1.25,
    })  # fmt: skip


def test_steps_of_attempts_before_are_rows_without_rates() -> None:
    (row,) = rows([{"step": 2, "loss": None, "lr": 0.1, "grad_norm": None}], [], [])
    assert row.values == {"train/lr": 0.1}


def test_each_commit_is_sent_once_and_one_look_later(
    tmp_path: Path, out: Artifact, chain: Chain
) -> None:
    """By then the attempt has written when its steps ended."""
    assert chain.new_rows() == []
    save(out, [3, 5], tmp_path)
    assert chain.new_rows() == []
    written = json.dumps({"step": 4, "at": 9.0, "step_s": 1.0, "stall_s": 0.0, "mfu": 0.5})
    Storage(str(tmp_path / "attempt")).create("metrics-0001.jsonl", f"{written}\n".encode())
    found = chain.new_rows()
    assert [row.step for row in found] == [1, 2, 3, 4, 5]
    assert (found[3].at, found[3].values["train/mfu"]) == (9.0, 0.5)
    assert chain.new_rows() == []


def test_what_is_not_committed_is_sent_by_nobody(
    tmp_path: Path, out: Artifact, chain: Chain
) -> None:
    save(out, [3], tmp_path)
    segment, data = checkpoints.segment(checkpoints.segment_path(9, 1), [{"step": 4}])
    out.storage.create(segment.path, data)
    shown, ended = Shown(), threading.Event()
    ended.set()
    follow(chain, shown, ended, poll_s=0)
    assert shown.steps == [1, 2, 3]


class Away(Chain):
    """A chain in a store that is out of reach at every other look."""

    looks = 0

    def new_rows(self) -> list[Row]:
        Away.looks += 1
        if Away.looks % 2 and Away.looks < 6:
            raise OSError("the store is away")
        return super().new_rows()


def test_a_store_that_comes_back_costs_nothing(tmp_path: Path, out: Artifact) -> None:
    save(out, [3], tmp_path)
    chain = Away(Training(out_url=out.storage.url, record_url=str(tmp_path / "a"), lease_n=1))
    shown, ended = Shown(), threading.Event()
    thread = threading.Thread(target=follow, args=(chain, shown, ended, 0.001))
    thread.start()
    while Away.looks < 6:
        pass
    ended.set()
    thread.join()
    assert shown.steps == [1, 2, 3]


def test_who_lost_the_right_to_work_sends_nothing_more(
    tmp_path: Path, out: Artifact, chain: Chain
) -> None:
    save(out, [3], tmp_path)
    for _ in range(2):
        lease.acquire(out.storage, holder="test", timeout_s=60).release()
    with pytest.raises(LeaseHeldError):
        chain.new_rows()


def job_of(**tracking: object) -> Job:
    tracked = Tracked(
        id="a", name="b", params={}, folder="c", tracking=Tracking.model_validate(tracking)
    )
    return Job(kind="wandb", tracked=tracked)


@pytest.mark.parametrize(
    "tracking",
    [
        {"wandb": {"project": "p", "api_key": "${env:PLANTED}"}},
        {"wandb": {"project": "p", "mode": "offline", "base_url": "${env:PLANTED}"}},
        {"mlflow": {"experiment": "e", "uri": "${env:PLANTED}"}},
        {"mlflow": {"experiment": "e", "password": "${env:PLANTED}"}},
        {"mlflow": {"experiment": "e", "token": "${env:PLANTED}"}},
    ],
)
def test_what_goes_wrong_is_told_without_secrets(
    monkeypatch: pytest.MonkeyPatch, tracking: dict[str, object]
) -> None:
    monkeypatch.setenv("PLANTED", "s3cr3t-0123")
    said = "\nHTTPError: 401 for http://u:s3cr3t-0123@host/api\nbody s3cr3t-0123"
    assert (
        without_secrets(said, job_of(**tracking)) == "HTTPError: 401 for http://u:$PLANTED@host/api"
    )
