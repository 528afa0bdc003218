"""What goes wrong under a running training, on real ranks: hangs, warnings, full disks, buckets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobs import text_model, train
from jobs.training import driver
from jobs.training.rank import log_path
from orchestrator.errors import Cause, RequestError, RunFailedError
from orchestrator.ledger import checkpoints
from orchestrator.plan.execution import execution_of
from tests.integration.test_train import World, make_world
from tests.training import Training, finish, make_inputs, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def test_a_rank_that_is_stopped_is_found_its_stacks_kept_and_the_training_finished(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    retry = {"hang_timeout_s": 6, "start_timeout_s": 400}  # imports alone can take minutes
    monkeypatch.setenv("ORCHESTRATOR_FAULT", json.dumps({"kind": "hang", "rank": 1, "step": 150}))
    with pytest.raises(RunFailedError, match="rank 1 made no progress") as raised:
        train.work(world.attempt("train", name="4", retry=retry))
    assert raised.value.cause is Cause.COMM_HANG
    folder = world.root / "runs" / "train-4" / "attempts" / "0001"
    for rank in (0, 1):
        assert "loop.py" in (folder / f"rank-0000{rank}.stacks.txt").read_text()
    monkeypatch.delenv("ORCHESTRATOR_FAULT")
    assert train.work(world.attempt("train", name="4", lease_n=2, retry=retry))["steps"] == 400


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_warning_to_one_rank_saves_all_of_them(
    inputs: Path, tmp_path: Path, number: signal.Signals
) -> None:
    training = Training(inputs=inputs, root=tmp_path, steps=100_000, every_steps=50_000)
    ranks = training.start()
    wait_for(lambda: training.record(1).exists("metrics-0001.jsonl"), "the first step")
    os.kill(ranks[1].pid or 0, number)
    assert finish(ranks) == [0, 0]
    (saved,) = checkpoints.committed(training.out)
    live = training.live(1)
    assert live["stopped"]
    assert saved.step == live["step"]
    assert not list((tmp_path / "scratch").glob("*")), "something was left on the node's disk"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs with room for some checkpoints; needs root, as tests in CI have."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_store_is_a_storage_failure_and_harms_no_checkpoint(
    inputs: Path, tmp_path: Path, small_disk: Path
) -> None:
    training = Training(inputs=inputs, root=tmp_path, out_url=str(small_disk / "out"))
    ranks = training.start()
    wait_for(lambda: len(checkpoints.committed(training.out)) == 2, "the second checkpoint")
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(4 << 20))
    assert all(code != 0 for code in finish(ranks))
    whole = checkpoints.committed(training.out)
    assert len(whole) >= 2
    for manifest in whole:
        assert not checkpoints.fetch_verified(
            training.out, manifest, sorted(manifest.files), tmp_path
        )
    ballast.unlink()
    assert training.run(2) == [0, 0]
    assert training.live(2)["resumed_from"] == whole[-1].name


def test_a_full_scratch_is_a_storage_failure_that_names_the_folder(
    inputs: Path, tmp_path: Path, small_disk: Path
) -> None:
    (tmp_path / "scratch").symlink_to(small_disk)
    training = Training(inputs=inputs, root=tmp_path, steps=100_000, every_steps=20)
    ranks = training.start()
    wait_for(lambda: len(checkpoints.committed(training.out)) > 1, "the second checkpoint")
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(bytes(4 << 20))
    assert all(code != 0 for code in finish(ranks))
    logs = "".join(log_path(tmp_path / "attempt-1", rank).read_text() for rank in (0, 1))
    folder = re.escape(f"cluster: scratch: {tmp_path}/scratch/a0001/rank-0000")
    assert re.search(rf"{folder}.: cannot be written \(.*\); 0 B of 2.* are free on", logs)
    (small_disk / "ballast").unlink()
    ranks = training.start(2)
    wait_for(lambda: checkpoints.committed(training.out)[-1].lease_n == 2, "a checkpoint again")
    for rank in ranks:
        rank.kill()
    finish(ranks)
    assert [span.lease_n for span in checkpoints.committed(training.out)[-1].history] == [1, 2]


def test_a_slow_store_holds_training_back_rather_than_filling_the_disk(
    inputs: Path, tmp_path: Path
) -> None:
    training = Training(inputs=inputs, root=tmp_path, steps=12, every_steps=2)
    staged: list[int] = []
    ended = threading.Event()

    def count() -> None:
        while not ended.wait(0.02):
            staged.append(len(list((tmp_path / "scratch").glob("a0001/rank-00000/*"))))

    watcher = threading.Thread(target=count)
    watcher.start()
    assert training.run(fault={"kind": "slow_store", "mb_per_s": 0.2}) == [0, 0]
    ended.set()
    watcher.join()
    assert max(staged) == 2  # one on its way, one behind it
    stalls = [s["stall_s"] for s in map(json.loads, _segment(training).splitlines())]
    assert max(stalls) > 5 * min(s for s in stalls if s)


def _segment(training: Training) -> bytes:
    return training.record(1).read_bytes("metrics-0001.jsonl")


def test_a_notice_shorter_than_an_upload_publishes_what_is_staged(
    inputs: Path, tmp_path: Path
) -> None:
    training = Training(
        inputs=inputs, root=tmp_path, steps=100_000, every_steps=20, more={"notice_s": 0.1}
    )
    ranks = training.start(fault={"kind": "slow_store", "mb_per_s": 0.05})
    wait_for(lambda: len(checkpoints.committed(training.out)) > 1, "the second checkpoint")
    for rank in ranks:
        os.kill(rank.pid or 0, signal.SIGTERM)
    assert finish(ranks) == [0, 0]
    newest = checkpoints.committed(training.out)[-1]
    live = training.live(1)
    assert live["stopped"]
    assert newest.step % 20 == 0
    assert newest.step < live["step"], "it made another checkpoint instead"


def test_a_device_without_memory_gets_half_the_micro_batch_from_then_on(world: World) -> None:
    attempt = world.attempt("train", name="6")
    source = text_model.place(attempt, attempt.recipe)
    split = partial(execution_of, attempt.recipe.train)
    config = train.rank_config(attempt, source, split)
    assert config.execution.micro_batch == 2
    with pytest.raises(RunFailedError), driver.halving_on_oom(attempt, config, train.TOO_LARGE):
        raise RunFailedError("a rank failed: torch.OutOfMemoryError: CUDA out of memory")
    again = train.rank_config(attempt, source, split)
    assert again.execution.micro_batch == 1
    assert again.settings.global_batch == config.settings.global_batch
    with (
        pytest.raises(RequestError, match="one sequence does not fit the device's memory"),
        driver.halving_on_oom(attempt, again, train.TOO_LARGE),
    ):
        raise RunFailedError("CUDA out of memory")
