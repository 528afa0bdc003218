"""Steps, saving, resuming and giving up, with ranks as threads and an engine of plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.training.heartbeat import Heartbeat
from jobs.training.loop import Phases, Rank
from jobs.training.rank import RankConfig
from orchestrator.errors import Cause, RunFailedError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.storage import Storage
from tests.unit.jobs.training.countdown import Countdown, rank_config
from tests.unit.jobs.training.ranks import Member, Threads, build_plain

Lines = list[dict[str, Any]]


class Stopping(Countdown):
    """Asks its rank to leave after some steps."""

    heartbeat: Heartbeat
    stop_at = 6

    def learning_rate(self, step: int) -> float:
        self.heartbeat.stop_seen = step == self.stop_at
        return super().learning_rate(step)


class Poisoned(Countdown):
    """Gives no finite loss for some samples."""

    def loss(self, module: Any, micro_batch: Any) -> Any:
        loss = super().loss(module, micro_batch)
        return loss * float("nan") if 0 in micro_batch[0] else loss


def run(config: RankConfig, task: type[Countdown] = Countdown, *, world_size: int = 1) -> list[Any]:
    """What the ranks raise; None for those that end well."""

    def work(member: Member) -> None:
        heartbeat = Heartbeat(config, member.info)
        mine = task(config)
        mine.heartbeat = heartbeat
        Rank(config, member, mine, heartbeat, Phases(), build_plain).run()
        heartbeat._write()

    return Threads(world_size).run(work)


def lines(config: RankConfig, name: str = "metrics.jsonl") -> Lines:
    data = Storage(config.out_url).read_bytes(name)
    return [json.loads(line) for line in data.splitlines()]


def again(tmp_path: Path, lease_n: int = 2, **options: Any) -> RankConfig:
    return rank_config(tmp_path, lease_n=lease_n, **options)


def test_a_training_leaves_lines_facts_and_what_its_task_publishes(tmp_path: Path) -> None:
    config = rank_config(tmp_path, settings={"validate_every_steps": 5})
    assert run(config) == [None]
    out = Storage(config.out_url)
    assert [line["step"] for line in lines(config)] == list(range(1, 13))
    assert [line["numbers_seen"] for line in lines(config)] == list(range(8, 104, 8))
    assert [line["step"] for line in lines(config, "validation.jsonl")] == [5, 10, 12]
    facts = out.read_json("training.json")
    assert facts["epochs"] == 12 * 8 / 24
    assert (facts["num_windows"], facts["numbers_seen"], facts["skips"]) == (24, 96, [])
    assert out.exists("weight.json")
    assert not (tmp_path / "scratch").exists()


def test_two_ranks_see_the_same_samples_as_one(tmp_path: Path) -> None:
    one, two = rank_config(tmp_path / "one"), rank_config(tmp_path / "two")
    assert run(one) == [None]
    assert run(two, world_size=2) == [None, None]
    assert [n["sample_hash"] for n in lines(one)] == [n["sample_hash"] for n in lines(two)]


def test_a_training_that_was_asked_to_stop_goes_on_where_it_saved(tmp_path: Path) -> None:
    whole = rank_config(tmp_path / "whole")
    assert run(whole) == [None]
    config = rank_config(tmp_path / "stopped")
    assert run(config, Stopping) == [None]
    live = Storage(config.record_url).read_json("live.json")
    assert live["stopped"]
    assert live["rates"]["peak_memory_bytes"] > 10_000_000  # Python and torch alone hold as much
    assert checkpoints.committed(Storage(config.out_url))[-1].step == 6
    assert run(again(tmp_path / "stopped")) == [None]
    assert lines(config) == lines(whole)
    weights = [Storage(c.out_url).read_bytes("weight.json") for c in (config, whole)]
    assert weights[0] == weights[1]


def test_checkpoints_come_when_they_are_due_and_at_the_end(tmp_path: Path) -> None:
    config = rank_config(tmp_path, settings={"steps": 10})
    run(config)
    names = Storage(config.out_url).children("metrics")
    assert [n for n in names if "valid" not in n] == [
        f"{checkpoints.name_of(step, 1)}.jsonl" for step in (4, 8, 10)
    ]


def test_too_many_losses_that_are_not_finite_roll_back_around_their_samples(
    tmp_path: Path,
) -> None:
    options = {"settings": {"max_nonfinite_in_row": 0}}
    config = rank_config(tmp_path, **options)
    ends = run(config, Poisoned, world_size=2)
    assert {type(e) for e in ends} == {RunFailedError}
    assert {e.cause for e in ends} == {Cause.NONFINITE}
    skips = checkpoints.skipped(Storage(config.out_url))
    assert len(skips) == 8  # the whole batch, once
    steps = {m.step for m in checkpoints.committed(Storage(config.out_url))}
    assert all(step % 4 == 0 for step in steps), "a checkpoint holds a bad batch"


def test_some_losses_that_are_not_finite_are_passed_over(tmp_path: Path) -> None:
    config = rank_config(tmp_path, settings={"max_nonfinite_in_row": 3})
    assert run(config, Poisoned) == [None]
    bad = [line for line in lines(config) if line["loss"] is None]
    assert 0 < len(bad) < 12
    assert all(line["grad_norm"] is None for line in bad)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_loss_of_a_line_is_the_mean_over_the_global_batch(
    tmp_path: Path, world_size: int
) -> None:
    config = rank_config(tmp_path, settings={"steps": 1})
    run(config, world_size=world_size)
    other = rank_config(tmp_path / "other", micro_batch=1, settings={"steps": 1})
    run(other)
    assert lines(config)[0]["loss"] == pytest.approx(lines(other)[0]["loss"])
