"""Real runs that are preempted, reach a limit, move and go on; what their people were told.

The webhook's server answers 500 twice, loses an answer and hangs once on the way; the command fails
each time. Another one is preempted, moves to another store, and is done there.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.receiver import SECRET, receiving
from tests.smoke import Smoke

pytestmark = pytest.mark.slow
STEPS = 100_000
"""More than it does here."""
PLANTED = "S3CR3T-of-something-else"


def test_a_run_tells_its_people(calm: tuple[Smoke, str], material: Path, tmp_path: Path) -> None:
    with receiving([500, 503, 200, "lost", 200, "hang"]) as receiver:
        smoke = Smoke.create(
            tmp_path / "s",
            material,
            env={**os.environ, "HOOK": receiver.url, "PLANTED": PLANTED},
            notify={"webhook": "${env:HOOK}", "command": ["false"], "timeout_s": 2},
            environment={"export": ["PLANTED"]},
            prices={"cpu_hour": 3600.0},  # 1 a second
        )
        smoke.take_artifacts(calm[0], "train", "perplexity", "continuations")
        asked = {"sweep": "{}", "train.steps": STEPS, "train.checkpoint.every_steps": 100}
        run = smoke.submit(*(w for k, v in asked.items() for w in ("--set", f"{k}={v}")))
        wait_for(lambda: "first_step" in receiver.told)
        start_up_s = smoke.status(run)["spending"]["price"]
        (driver,) = (p for p in smoke.processes() if "jobs.train" in p.cmdline())
        driver.send_signal(signal.SIGTERM)
        wait_for(lambda: "back" in receiver.told)
        smoke.orchestrator("cancel", run)
        before = train_of(smoke, run)["step"]
        limit = smoke.status(run)["spending"]["price"] + 1.5 * start_up_s + 5
        assert resume(smoke, run, limit) == 0
        wait_for(lambda: "failed" in receiver.told)
        assert receiver.received[-1]["cause"] == "limit"
        assert "orchestrator resume" in receiver.received[-1]["remedy"]
        assert smoke.wait_gone() == []
        assert train_of(smoke, run)["attempts"][-1]["cause"] == "limit"
        assert train_of(smoke, run)["step"] > before, "it has saved"
        assert limit <= smoke.status(run)["spending"]["price"] < limit + start_up_s + 20
        assert resume(smoke, run, limit + 0.1) == 2
        assert resume(smoke, run, 10 * limit) == 0
        wait_for(lambda: receiver.told.count("back") == 2)
        smoke.orchestrator("cancel", run)
        assert smoke.wait_gone() == []
    assert receiver.told == ["started", "first_step", "interrupted", "back", "failed", "back"]
    assert len(receiver.received) == 6 + 4, "again, with the same id, where no answer came"
    written = b"".join(p.read_bytes() for p in smoke.folder.rglob("*") if p.is_file())
    assert SECRET.encode() not in written
    assert PLANTED.encode() not in written


def test_a_run_tells_its_people_from_both_stores(
    calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    with receiving([]) as receiver:
        env = {**os.environ, "HOOK": receiver.url}
        told = {"notify": {"webhook": "${env:HOOK}"}}
        here = Smoke.create(tmp_path / "here", material, env, **told)
        there = Smoke.create(tmp_path / "there", material, env, **told)
        here.take_artifacts(calm[0], "train", "perplexity", "continuations")
        asked = {"sweep": "{}", "train.steps": 1500, "train.checkpoint.every_steps": 50}
        run = here.submit(*(w for k, v in asked.items() for w in ("--set", f"{k}={v}")))
        wait_for(lambda: "first_step" in receiver.told)
        (driver,) = (p for p in here.processes() if "jobs.train" in p.cmdline())
        driver.send_signal(signal.SIGTERM)
        wait_for(lambda: "back" in receiver.told)
        there.orchestrator("resume", str(here.folder / "store" / "runs" / run), "--watch")
        wait_for(lambda: "done" in receiver.told)
        assert there.wait_gone() == here.wait_gone() == []
    assert receiver.told[:4] == ["started", "first_step", "interrupted", "back"]
    assert receiver.told[-1] == "done"
    assert receiver.told.count("started") == receiver.told.count("first_step") == 1
    ids = [notice["id"] for notice in receiver.received]
    assert len(ids) == len(set(ids)), "nothing is told again"
    metrics = there.folder / "store" / "artifacts" / "train"
    (lines,) = (p.read_text().splitlines() for p in metrics.glob("*/metrics.jsonl"))
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 1501))


def resume(smoke: Smoke, run: str, limit: float) -> int:
    """Go on with this limit; the exit code."""
    file = smoke.folder / "cluster.yaml"
    cluster = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**cluster, "limits": {"max_price": limit}}))
    return smoke.orchestrator("resume", run, check=False).returncode


def train_of(smoke: Smoke, run: str) -> dict[str, Any]:
    (train,) = (s for s in smoke.status(run)["stages"] if s["name"] == "train")
    return train


def wait_for(condition: Callable[[], bool], timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)
