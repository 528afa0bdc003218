"""What a terminal and a log show of a run: narrow, wide, at work and failed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.cli.watch import ChangeLines, ending_lines, run_view, watch
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import JobState, JobStatus, Observed, RunStatus, run_progress
from orchestrator.ledger.storage import to_json
from orchestrator.ledger.store import Store
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe

RATES = {
    "loss": 5.123456, "grad_norm": 0.5, "lr": 1e-4, "tokens_per_s": 12345.6, "mfu": 0.41,
    "checkpoint_every_s": 600.0,
}  # fmt: skip


class Scene:
    """A run of which one stage is at work or has failed."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(str(folder / "store"))
        self.run = RunFolder(self.store.run_storage("small"))
        self.run.create(plan_of(recipe()), recipe(), cluster(self.store.storage.url), {}, {})

    def attempt(self, stage: str) -> AttemptFolder:
        instance = next(i for i in self.run.plan().instances if i.stage == stage)
        return self.run.begin_attempt(instance.id, started_at=100.0)

    def train(self) -> None:
        progress = {"at": 110.0, "done": 5, "total": 12, "unit": "steps", "rates": RATES}
        self.attempt("train").storage.replace("progress.json", to_json(progress))

    def fail(self, stage: str = "pack", **how: Any) -> None:
        base = {"state": "failed", "cause": "bad_request", "action": "stop", "reason": "policy"}
        self.attempt(stage).finish(**{**base, "message": "split.valid: 0; raise it", **how})

    def status(self, *, is_alive: bool = True) -> RunStatus:
        return run_progress(self.run, self.store, Observed(is_alive=is_alive))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def shown(status: RunStatus, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(run_view(status))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_row_is_a_line_at_80_columns_and_the_rates_have_their_own(scene: Scene) -> None:
    scene.train()
    num_stages = len(scene.run.plan().instances)
    lines = shown(scene.status(), 80)
    assert len(lines) == 2 + num_stages + 2
    (row,) = [line for line in lines if line.startswith("train-") and "all" in line.split()]
    assert row.split()[2:] == ["running", "5/12", "steps", "14.0", "s", "1"]
    assert "loss 5.123, tokens/s 12,346, mfu 0.41" in lines[2 + num_stages]


def test_at_200_columns_the_rates_are_one_line(scene: Scene) -> None:
    scene.train()
    assert shown(scene.status(), 200)[-1].split(": ")[1] == (
        "loss 5.123, tokens/s 12,346, mfu 0.41, checkpoint_every_s 600, grad_norm 0.5, lr 0.0001"
    )


def test_a_failed_stage_shows_its_own_last_sentence(scene: Scene) -> None:
    scene.fail()
    (line,) = [x for x in shown(scene.status(), 200) if "bad_request" in x]
    assert line.endswith(": bad_request: split.valid: 0; raise it")


def test_a_stage_whose_artifact_was_removed_says_so(scene: Scene) -> None:
    scene.fail(state="succeeded", cause="", action="done", reason="the artifact is complete")
    (line,) = [x for x in shown(scene.status(is_alive=False), 200) if "artifact" in x]
    assert line.endswith("its artifact is not in the store any more; resume makes it anew")


def test_the_end_is_told_in_the_attempts_own_words(scene: Scene) -> None:
    scene.run.begin_supervisor(process=Process.current().__dict__).finish(state="failed")
    scene.fail()
    first, failure, advice = ending_lines(scene.status(is_alive=False))
    assert first == "run small: failed"
    assert ": bad_request: split.valid: 0; raise it; see " in failure
    assert failure.endswith("/driver.log")
    assert "orchestrator resume" not in advice
    assert "submit again" in advice


def test_a_job_that_failed_before_any_attempt_is_told_in_the_schedulers_words(scene: Scene) -> None:
    pack = next(i.id for i in scene.run.plan().instances if i.stage == "pack")
    jobs = {pack: JobStatus(state=JobState.FAILED, detail="BOOT_FAIL")}
    observed = Observed(is_alive=False, jobs=jobs)
    _, failure, _ = ending_lines(run_progress(scene.run, scene.store, observed))
    assert failure == f"  {pack}: the scheduler says: BOOT_FAIL"


def test_resume_is_offered_where_it_can_help(scene: Scene) -> None:
    scene.fail(cause="storage", message="")
    *_, failure, advice = ending_lines(scene.status(is_alive=False))
    assert ": storage: policy; see " in failure, "the policy's words where the driver left none"
    assert advice == "  `orchestrator resume small` continues it"


def test_at_a_limit_a_higher_one_is_offered(scene: Scene) -> None:
    scene.fail("train", cause="limit", message="limits.max_price: 5.01 of 5 USD spent")
    lines = ending_lines(scene.status(is_alive=False))
    assert "limit: limits.max_price: 5.01 of 5 USD spent; see" in lines[1]
    assert lines[-1] == "  raise it, and `orchestrator resume small --cluster FILE` goes on"


def test_a_log_is_told_of_changes_and_now_and_then_of_progress(scene: Scene) -> None:
    scene.train()
    lines = ChangeLines(30.0)
    status = scene.status()
    first = list(lines.since(status, now=100.0))
    assert len(first) == len(status.stages) + 1
    assert first[-1].startswith("train-")
    assert ": 5/12 steps, 14.0 s left, loss 5.123" in first[-1]
    assert list(lines.since(status, now=110.0)) == []
    assert list(lines.since(status, now=130.0)) == first[-1:]


def test_watching_into_a_log_prints_progress(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.run.begin_supervisor(process=Process.current().__dict__).finish(state="failed")
    scene.fail()
    assert watch(scene.run, scene.store, every_s=0.01, line_every_s=0.01) == 1
    said = capsys.readouterr().err
    assert "bad_request: split.valid: 0; raise it; see " in said
    before, _, ending = said.partition("run small: failed")
    assert before.endswith("\n"), "the last row has a line of its own"
    assert ending


@pytest.mark.parametrize("said", ["storage: /s/a: no room", "/s/a: no room"])
def test_a_cause_is_said_once(scene: Scene, said: str) -> None:
    scene.fail(cause="storage", message=said)
    (line,) = [x for x in shown(scene.status(), 200) if "no room" in x]
    assert line.endswith(": storage: /s/a: no room")
    assert line.count("storage: ") == 1
