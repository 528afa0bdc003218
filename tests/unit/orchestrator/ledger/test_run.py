"""A run's folder: created once, by one plan; attempts are numbered and never overwritten."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import CorruptError, RequestError
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.plan.planner import Plan
from orchestrator.spec.recipe import Continuations, Perplexity, Recipe
from tests.unit.orchestrator.before import unpack
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe, swept, variants_of

RECIPE = swept(recipe(), **{"model.init": ["twist", "cold"], "model.num_layers": [None, 3]})
ELSEWHERE = {"host": "another-machine/0", "pid": 1, "started_at": 0.0}


def create(run: RunFolder, what: Recipe = RECIPE, plan: Plan | None = None) -> bool:
    code = {"jobs/train.py": b"pass\n"}
    return run.create(plan or plan_of(what), what, cluster("/store"), code, {"commit": "abc"})


@pytest.fixture
def run(storage: Storage) -> RunFolder:
    run = RunFolder(storage.at("runs", "small"))
    assert create(run)
    return run


def test_a_run_tells_what_it_was_asked_for(run: RunFolder) -> None:
    assert run.name == "small"
    assert run.exists()
    assert run.plan() == plan_of(RECIPE)
    assert run.cluster() == cluster("/store")
    assert run.recipe() == RECIPE
    assert run.variants() == variants_of(RECIPE)
    assert run.storage.read_bytes("code/jobs/train.py") == b"pass\n"
    assert run.storage.read_json("code.json") == {"commit": "abc"}


def test_code_of_a_submission_that_was_killed_half_way_is_not_mixed_in(storage: Storage) -> None:
    run = RunFolder(storage.at("runs", "small"))
    for path in ("code/jobs/train.py", "code/jobs/gone.py"):
        run.storage.replace(path, b"raise SystemExit\n")
    assert create(run)
    assert list(run.storage.list("code")) == ["code/jobs/train.py"]
    assert run.storage.read_bytes("code/jobs/train.py") == b"pass\n"


def test_the_stored_recipe_makes_the_same_keys(run: RunFolder) -> None:
    again = plan_of(run.recipe())
    assert {i.key for i in again.instances} == {i.key for i in run.plan().instances}


def test_the_same_run_again_attaches(run: RunFolder) -> None:
    assert create(run) is False


def test_the_same_name_for_other_keys_is_refused(run: RunFolder) -> None:
    with pytest.raises(RequestError) as raised:
        create(run, recipe(**{"train.steps": 13}))
    assert str(raised.value) == (
        "--name small: a run of this name exists with other keys; "
        "choose another name, or leave --name out"
    )
    assert run.recipe() == RECIPE


def test_one_of_several_submitters_creates(tmp_path: Path) -> None:
    run = RunFolder(Storage(str(tmp_path / "runs" / "small")))
    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda _: create(run), range(4)))
    assert sorted(created) == [False, False, False, True]


def test_no_such_run(storage: Storage) -> None:
    run = RunFolder(storage.at("runs", "nope"))
    assert not run.exists()
    with pytest.raises(RequestError) as raised:
        run.plan()
    url = run.storage.url
    assert str(raised.value) == (
        f"nope: no such run in {url}; `orchestrator status` lists them, "
        "--cluster names another store"
    )


def test_attempts_are_numbered_from_one(run: RunFolder) -> None:
    assert run.attempts("train-1") == ()
    first = run.begin_attempt("train-1", supervisor=7)
    second = run.begin_attempt("train-1")
    assert [first.number, second.number] == [1, 2]
    assert [a.number for a in run.attempts("train-1")] == [1, 2]
    assert first.started["supervisor"] == 7
    assert first.storage.url.endswith("stages/train-1/attempts/0001")
    assert run.attempts("train-2") == ()


def test_attempts_begun_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    run = RunFolder(Storage(str(tmp_path)))
    with ThreadPoolExecutor(8) as pool:
        attempts = list(pool.map(lambda _: run.begin_attempt("train-1"), range(8)))
    assert sorted(a.number for a in attempts) == list(range(1, 9))


def test_an_attempt_ends_once(run: RunFolder) -> None:
    attempt = run.begin_attempt("train-1")
    assert attempt.end is None
    attempt.finish(state="failed", cause="killed")
    attempt.finish(state="succeeded", cause="")
    assert attempt.end is not None
    assert attempt.end["state"] == "failed"
    assert attempt.end["ended_at"] >= attempt.started["started_at"]


def test_progress_and_events(run: RunFolder) -> None:
    attempt = run.begin_attempt("train-1")
    assert attempt.progress == {}
    assert list(attempt.events()) == []
    attempt.storage.replace("progress.json", b'{"done": 3}')
    attempt.storage.create("events-0002.jsonl", b'{"kind": "c"}\n')
    attempt.storage.create("events-0001.jsonl", b'{"kind": "a"}\n{"kind": "b"}\n')
    assert attempt.progress == {"done": 3}
    assert [e["kind"] for e in attempt.events()] == ["a", "b", "c"]


def test_the_live_supervisor_is_the_one_whose_process_lives(run: RunFolder) -> None:
    assert run.live_supervisor() is None
    gone = {**Process.current().__dict__, "start_ticks": 1}
    run.begin_supervisor(process=gone)
    assert run.live_supervisor() is None
    mine = run.begin_supervisor(process=Process.current().__dict__)
    found = run.live_supervisor()
    assert found is not None
    assert found.number == mine.number
    mine.finish(state="succeeded")
    assert run.live_supervisor() is None
    assert [s.number for s in run.supervisors()] == [1, 2]


def lease_of(supervisor: dict[str, Any], clock_s: float = 0.0) -> dict[str, Any]:
    """As its holder wrote it, whose clock is ahead."""
    said_at = time.time() + clock_s
    return {"number": 1, "holder": "small", "process": supervisor, "heartbeat_at": said_at}


@pytest.mark.parametrize("clock_s", [-3600.0, 3600.0])
def test_a_supervisor_elsewhere_is_at_work_while_its_heart_beats(
    run: RunFolder, clock_s: float
) -> None:
    """By the clock of the store, whatever its own says."""
    run.begin_supervisor(process=ELSEWHERE)
    assert run.live_supervisor() is None  # it never took the lease
    lease = run.supervision.at("lease")
    lease.create_json("000001.json", lease_of(ELSEWHERE, clock_s))
    assert run.live_supervisor() is not None
    run.move(cluster(run.storage.url, retry={"heartbeat_timeout_s": 0.5}))
    time.sleep(1.1)  # some stores count whole seconds
    assert run.live_supervisor() is None
    assert list(run.supervision.list()) == ["lease/000001.json"], "nothing else is left"


def test_a_later_supervisors_heart_does_not_beat_for_an_earlier_one(run: RunFolder) -> None:
    run.begin_supervisor(process=ELSEWHERE)
    other = {**ELSEWHERE, "pid": 2}
    run.supervision.create_json("lease/000001.json", lease_of(other))
    assert run.live_supervisor() is None


def step_line(step: int, **more: float) -> str:
    return json.dumps({"step": step, "at": 10.0 * step, "step_s": 2.0, "stall_s": 0.0, **more})


def test_steps_come_from_whole_segments_in_order(run: RunFolder) -> None:
    attempt = run.begin_attempt("train-0a1b2c")
    assert list(attempt.steps()) == []
    segments = {
        "metrics-0002.jsonl": f"{step_line(3)}\n",
        "metrics-0001.jsonl": f"{step_line(1, loss=4.5)}\n{step_line(2)}\n",
        "events-0001.jsonl": '{"at": 1.0, "kind": "begin"}\n',
    }
    for name, text in segments.items():
        attempt.storage.replace(name, text.encode())
    steps = list(attempt.steps())
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[0] == {"step": 1, "at": 10.0, "step_s": 2.0, "stall_s": 0.0, "loss": 4.5}


def test_steps_without_times_and_a_torn_last_line_are_left_out(run: RunFolder) -> None:
    attempt = run.begin_attempt("train-0a1b2c")
    lines = ['{"step": 1, "step_s": 2.0}', "null", step_line(2), step_line(3)[:20]]
    attempt.storage.replace("metrics-0001.jsonl", "\n".join(lines).encode())
    assert [step["step"] for step in attempt.steps()] == [2]


def test_a_step_line_that_is_spoilt_is_named(run: RunFolder) -> None:
    attempt = run.begin_attempt("train-0a1b2c")
    attempt.storage.replace("metrics-0001.jsonl", f"{{\n{step_line(2)}\n".encode())
    with pytest.raises(CorruptError) as raised:
        list(attempt.steps())
    where, problem = str(raised.value).split(": line 1 is not valid JSON ", 1)
    assert where == f"{attempt.storage.url}/metrics-0001.jsonl"
    assert problem.endswith("; remove that line")


def test_wishes_to_stop_are_kept_in_order(run: RunFolder) -> None:
    assert run.cancel_requests() == ()
    for stage in ("train", None):
        run.request_cancel(stage)
    assert [r["stage"] for r in run.cancel_requests()] == ["train", None]


def test_wishes_at_once_are_all_kept(tmp_path: Path) -> None:
    run = RunFolder(Storage(str(tmp_path)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run.request_cancel, ["train"] * 8))
    assert len(run.cancel_requests()) == 8


def test_values_from_the_environment_are_never_written_down(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_ROOT", "/very/secret")
    run = RunFolder(storage.at("runs", "small"))
    where = cluster("${env:SECRET_ROOT}/store", data={"speech": "${env:SECRET_ROOT}/x"})
    run.create(plan_of(RECIPE), RECIPE, where, {}, {})
    contents = b"".join(run.storage.read_bytes(path) for path in run.storage.list())
    assert b"secret" not in contents
    assert run.cluster() == where


def test_a_run_of_the_version_before_is_read(tmp_path: Path) -> None:
    _, run = unpack(tmp_path)
    assert all(i.node == i.stage for i in run.plan().instances)
    (twist, cold) = run.variants()
    assert (twist.recipe.model.init, cold.recipe.model.init) == ("twist", "cold")
    assert twist.recipe.evaluate.perplexity == Perplexity(bootstrap_samples=200)
    assert twist.recipe.evaluate.continuations == Continuations(
        num_prompts=2, prompt_s=0.5, num_tokens=16
    )
    written = run.storage.read_bytes("cluster.yaml")
    asked = written.replace(b"resources: {}", b"resources: {evaluate: {}}")
    run.storage.replace("cluster.yaml", asked)
    assert run.cluster().resources == {}


def test_a_score_that_is_left_out_stays_out_in_the_record(tmp_path: Path) -> None:
    """Nulls are written down where they are not the default."""
    asked = recipe(**{"evaluate.continuations": None})
    run = RunFolder(Storage(str(tmp_path / "r")))
    run.create(plan_of(asked), asked, cluster(str(tmp_path)), {}, {})
    assert run.recipe().evaluate.continuations is None
    assert [i.stage for i in plan_of(run.recipe()).instances][-1] == "perplexity"


def test_when_supervisors_were_at_work(run: RunFolder) -> None:
    assert run.supervised(is_alive=False) == []
    for number, (began_at, beaten_at) in enumerate([(1.0, 5.0), (7.0, 9.0)], 1):
        process = {"host": "h", "pid": 1, "started_at": began_at}
        lease = {"number": number, "holder": "x", "process": process, "heartbeat_at": beaten_at}
        run.supervision.create_json(f"lease/{number:06d}.json", lease)
    assert run.supervised(is_alive=False) == [(1.0, 5.0), (7.0, 9.0)]
    *_, (began_at, until) = run.supervised(is_alive=True)
    assert (began_at, until) == (7.0, pytest.approx(time.time(), abs=60))
