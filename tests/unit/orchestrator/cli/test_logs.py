"""Logs are read on from where they were read to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.logs import Logs
from orchestrator.cli.main import main
from orchestrator.errors import RequestError
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    store = Store.open(str(tmp_path / "store"))
    run = RunFolder(store.run_storage("small"))
    run.create(plan_of(recipe()), recipe(), cluster(store.storage.url), {}, {})
    return run


def begin(run: RunFolder, stage: str = "corpus") -> AttemptFolder:
    return run.begin_attempt(next(i.id for i in run.plan().instances if i.stage == stage))


def options(**more: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"stage": None, "attempt": None, "rank": None, "follow": True, **more}
    )


def text_of(logs: Logs) -> str:
    return "".join(title + text for title, text in logs.new_text())


def test_what_was_read_is_not_read_again(run: RunFolder) -> None:
    log = Path(begin(run).storage.url) / "driver.log"
    logs = Logs(run, options())
    assert text_of(logs) == "", "no log yet"
    log.write_bytes("é".encode()[:1])
    assert text_of(logs) == f"==> {log} <==\n", "half a letter waits for the rest"
    log.write_bytes("één\n".encode())
    assert text_of(logs) == "één\n"
    assert text_of(logs) == ""


class Ranges(Storage):
    """Notes from where objects are read."""

    starts: list[int]

    def at(self, *parts: str) -> Ranges:
        child = Ranges("/".join((self.url, *parts)))
        child.starts = self.starts
        return child

    def read_bytes(self, path: str, *, start: int = 0) -> bytes:
        if path.endswith(".log"):
            self.starts.append(start)
        return super().read_bytes(path, start=start)


def test_a_log_that_has_ended_is_read_to_its_end_and_left_alone(run: RunFolder) -> None:
    attempt = begin(run)
    log = Path(attempt.storage.url) / "driver.log"
    log.write_text("a" * 1000)
    storage = Ranges(run.storage.url)
    storage.starts = []
    logs = Logs(RunFolder(storage), options())
    text_of(logs)
    text_of(logs)
    assert storage.starts == [0, 1000]
    attempt.finish(state="failed")
    text_of(logs)
    text_of(logs)
    assert storage.starts == [0, 1000, 1000]


def test_the_newest_attempt_or_the_one_asked_for(run: RunFolder) -> None:
    for text in ("first", "second"):
        (Path(begin(run).storage.url) / "driver.log").write_text(text)
    assert text_of(Logs(run, options())).endswith("second")
    assert text_of(Logs(run, options(attempt=1))).endswith("first")


def test_a_ranks_log(run: RunFolder) -> None:
    (Path(begin(run, "train").storage.url) / "rank-00001.log").write_text("rank one")
    assert text_of(Logs(run, options(rank=1))).endswith("rank one")


def test_a_stage_that_is_not_there(run: RunFolder) -> None:
    with pytest.raises(RequestError, match="nope: no such stage in small; it has"):
        Logs(run, options(stage="nope"))


def test_what_is_asked_for_and_not_there_is_named(run: RunFolder) -> None:
    with pytest.raises(RequestError, match=r"^--rank 0: no log of such a rank; there is none$"):
        Logs(run, options(rank=0, follow=False))
    Logs(run, options(rank=0))  # may come
    for rank in (0, 1):
        begin(run, "train").storage.create(f"rank-{rank:05d}.log", b"")
    with pytest.raises(RequestError, match=r"^--rank 9: no log of such a rank; there are 1 to 1$"):
        Logs(run, options(rank=9))
    with pytest.raises(RequestError, match=r"^--attempt 3: no such attempt; there are 1 to 2$"):
        Logs(run, options(attempt=3))


@pytest.mark.parametrize("verb", ["logs", "cancel", "chaos"])
def test_a_node_that_is_not_there_is_refused_by_every_verb(
    run: RunFolder, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--kill", "rank"] if verb == "chaos" else []
    assert main([verb, run.storage.url, "targets.7", *more]) == 2
    names = ", ".join(run.plan().names)
    assert capsys.readouterr().err == f"targets.7: no such stage in small; it has {names}\n"


def test_earlier_failures_are_named(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for cause in ("node_lost", "", "device_oom"):
        attempt = begin(run)
        attempt.storage.create("driver.log", b"all well\n")
        attempt.finish(state="failed" if cause else "succeeded", cause=cause)
    begin(run).storage.create("driver.log", b"all well\n")
    (corpus,) = (i.id for i in run.plan().instances if i.stage == "corpus")
    assert main(["logs", run.storage.url, "--first-error"]) == 0
    said = capsys.readouterr()
    earlier = f"{corpus}: earlier attempts failed: 1 (node_lost), 3 (device_oom); read --attempt N"
    assert said.err == f"{earlier}\n"
    assert said.out.startswith(f"{corpus}: node_lost; see {run.storage.url}/stages/{corpus}")
    assert main(["logs", run.storage.url, "--first-error", "--attempt", "1"]) == 0
    assert capsys.readouterr().err == "no error found\n"


def test_a_log_that_has_not_begun_is_said(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["logs", run.storage.url, "train"]) == 0
    assert capsys.readouterr().err == "run small: no attempt at train has a log so far\n"


def test_the_first_error_is_not_followed(run: RunFolder) -> None:
    with pytest.raises(SystemExit) as left:
        main(["logs", run.storage.url, "--first-error", "--follow"])
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        ("ray_lost", "ray: the session did not start (OSError: no room in /tmp); see ray.log"),
        ("storage", "/store/a: No space left on device"),
        ("supervisor", "KeyError: 'x'"),
    ],
)
def test_a_run_that_ended_before_any_stage_failed_says_why(
    run: RunFolder, cause: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = run.begin_supervisor(process=vars(Process.current()))
    supervisor.finish(state="failed", cause=cause, reason=reason)
    for verb in (["logs", run.storage.url, "--first-error"], ["status", run.storage.url]):
        main(verb)
        assert f"{run.name}: {cause}: {reason}" in capsys.readouterr().out.replace("\n", "")
    main(["logs", run.storage.url, "pack", "--first-error"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ({"cause": "storage", "message": "x.json: No space left on device"}, "storage: x.json: No"),
        ({"cause": "node_lost", "reason": "the scheduler says: NODE_FAIL"}, "node_lost: the sched"),
        ({"cause": "walltime", "reason": "", "message": ""}, "walltime; see "),
    ],
)
def test_where_nothing_could_be_logged_the_runs_records_say_why(
    run: RunFolder, end: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that was full when the attempt failed took no log either."""
    begin(run).finish(state="failed", **end)
    (corpus,) = (i.id for i in run.plan().instances if i.stage == "corpus")
    assert main(["logs", run.storage.url, "corpus", "--first-error"]) == 0
    assert capsys.readouterr().out.startswith(f"{corpus}: {says}")
    assert main(["logs", run.storage.url, "pack", "--first-error"]) == 0
    assert capsys.readouterr().err == "no error found\n"
