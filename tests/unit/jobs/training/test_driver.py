from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import pytest

from jobs import pretrain, train
from jobs.attempt import StopRequestedError
from jobs.training.driver import extend, halving_on_oom, max_micro_batch, mtbf_s, run_monitored
from orchestrator.errors import Cause, RequestError, RunFailedError
from orchestrator.ledger.store import Store
from orchestrator.spec.cluster import Resources, Retry
from orchestrator.spec.recipe import Execution, Pretrain, Train
from tests.unit.jobs.test_targets import attempt_of
from tests.unit.jobs.training.countdown import rank_config
from tests.unit.orchestrator.ledger.test_extension import EVERY, STEPS, save, training
from tests.unit.orchestrator.recipes import pretrained_recipe


@dataclass
class Ranks:
    """Ranks that run until they are asked to stop, and then take their time to save."""

    said: list[str] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    signal_after_s: float | None = None

    def launch(self) -> None:
        if self.signal_after_s is not None:
            time.sleep(self.signal_after_s)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert self.asked.wait(60)
        time.sleep(0.5)
        self.said.append("saved")

    def look(self) -> None:
        return

    def ask_to_stop(self) -> None:
        self.said.append("asked")
        self.asked.set()

    def report(self) -> None:
        self.said.append("reported")


@pytest.mark.parametrize("after_s", [0.2, 0.7])
def test_a_signal_lets_ranks_save_before_the_driver_leaves(after_s: float) -> None:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise StopRequestedError

    ranks = Ranks(signal_after_s=after_s)
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(StopRequestedError):
            run_monitored(ranks.launch, ranks, grace_s=60)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ranks.said == ["asked", "saved", "reported"]


def test_what_a_launch_raises_arrives() -> None:
    def fail() -> None:
        raise RunFailedError("rank 3: exit code 1")

    with pytest.raises(RunFailedError, match="rank 3"):
        run_monitored(fail, Ranks(), grace_s=60)


def test_the_configured_time_between_failures_comes_first() -> None:
    assert mtbf_s(Retry(mtbf_h=2.0), Resources(), 5, 100.0) == 7200.0


def test_the_observed_one_follows() -> None:
    assert mtbf_s(Retry(), Resources(), 5, 1000.0) == 200.0
    assert mtbf_s(Retry(), Resources(), 2, 1000.0) > 1e6  # two say little


def test_else_it_is_what_is_usual_for_so_many_devices() -> None:
    asked = Resources(nodes=4, gpus_per_node=8)
    assert mtbf_s(Retry(), asked, 0, 0.0) == pytest.approx(45_600 * 3600 / 32)


@pytest.mark.parametrize(
    "error",
    [
        RunFailedError("train: rank 3 failed", cause=Cause.DEVICE_OOM),
        RunFailedError("HIP out of memory", cause=Cause.WORKER_LOST),
    ],
)
def test_a_device_out_of_memory_gets_half_the_micro_batch(
    tmp_path: Path, error: RunFailedError
) -> None:
    attempt = attempt_of(tmp_path, pretrained_recipe())
    config = rank_config(tmp_path, micro_batch=4)
    with (
        pytest.raises(RunFailedError) as raised,
        halving_on_oom(attempt, config, ""),
    ):
        raise error
    assert raised.value.cause is Cause.DEVICE_OOM
    assert max_micro_batch(attempt) == 2


def test_any_other_end_leaves_the_micro_batch_as_it_is(tmp_path: Path) -> None:
    attempt = attempt_of(tmp_path, pretrained_recipe())
    with (
        pytest.raises(RunFailedError),
        halving_on_oom(attempt, rank_config(tmp_path), ""),
    ):
        raise RunFailedError("oom-kill", cause=Cause.WORKER_LOST)
    assert max_micro_batch(attempt) is None


@pytest.mark.parametrize(
    ("section", "too_large", "fields"),
    [
        ("train", train.TOO_LARGE, ["activation_checkpointing", "execution", "zero_stage"]),
        ("encoder.pretrain", pretrain.TOO_LARGE, ["crop_s", "hidden_size", "num_layers"]),
    ],
)
def test_a_sample_that_does_not_fit_is_met_with_fields_of_its_own_section(
    tmp_path: Path, section: str, too_large: str, fields: list[str]
) -> None:
    config = rank_config(tmp_path, micro_batch=1).model_copy(update={"section": section})
    with (
        pytest.raises(RequestError) as raised,
        halving_on_oom(attempt_of(tmp_path, pretrained_recipe()), config, too_large),
    ):
        raise RunFailedError("x", cause=Cause.DEVICE_OOM)
    assert str(raised.value).startswith(f"{section}.")
    assert all(field in str(raised.value) for field in fields)
    known = {*Train.model_fields, *Execution.model_fields, "execution"}
    assert set(fields) <= (known if section == "train" else set(Pretrain.model_fields))


def test_the_attempt_records_whose_steps_it_goes_on_from(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    shorter, longer = training(store, 30), training(store, STEPS)
    *_, broken = save(shorter, [10, 20, 30], tmp_path)
    shorter.storage.delete(broken.metrics[-1].path)
    attempt = replace(attempt_of(tmp_path, pretrained_recipe()), artifacts=(longer,))
    settings = {"steps": STEPS, "validate_every_steps": EVERY}
    extend(attempt, rank_config(tmp_path, settings=settings))
    attempt.flush()
    refused, taken = attempt.record.events()
    about = {"extends": f"train-{shorter.key[:12]}"}
    assert refused.items() >= {**about, "kind": "not_extended", "step": 30}.items()
    assert taken.items() >= {**about, "kind": "extended", "step": 20}.items()
    assert longer.storage.children("checkpoints") == ("step-00000020-a0001",)
