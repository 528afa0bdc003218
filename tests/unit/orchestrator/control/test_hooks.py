"""What comes of telling a server that is busy, away or slow, and a command that fails or hangs."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from orchestrator.control.hooks import Outcome, address_of, call, hooks_of, post
from orchestrator.errors import RequestError
from orchestrator.spec.cluster import Notify
from tests.receiver import SECRET, Answer, receiving

PAYLOAD = {"id": "r/1/started", "event": "started", "text": "r: started ü"}
NOTIFY = Notify(webhook="${env:HOOK}", timeout_s=0.3, deadline_s=20)


def posted(url: str, monkeypatch: pytest.MonkeyPatch, notify: Notify = NOTIFY) -> Outcome:
    monkeypatch.setenv("HOOK", url)
    outcome = post(notify, PAYLOAD, first_wait_s=0.05)
    assert SECRET not in repr(outcome)
    return outcome


@pytest.mark.parametrize(
    ("script", "tries"),
    [
        ((), 1),
        ((204,), 1),
        ((500, 503), 3),
        ((429,), 2),
        (("hang",), 2),
        (("lost",), 2),
        (("lost", 500, "hang"), 4),
    ],
)
def test_a_server_that_is_busy_away_or_silent_is_asked_again(
    script: tuple[Answer, ...], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving(script) as receiver:
        assert posted(receiver.url, monkeypatch) == Outcome(was_told=True, tries=tries)
        assert receiver.received == [PAYLOAD] * tries, "with the same id each time"


@pytest.mark.parametrize("status", [301, 302, 400, 403, 404, 410])
def test_what_no_other_try_would_change_is_given_up_at_once(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving([status] * 9) as receiver:
        outcome = posted(receiver.url, monkeypatch)
        assert outcome == Outcome(was_told=False, tries=1, problem=f"the server answers {status}")
        assert len(receiver.received) == 1


def test_a_server_may_ask_for_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving([429], retry_after="1") as receiver:
        began_at = time.monotonic()
        assert posted(receiver.url, monkeypatch).was_told
        assert time.monotonic() - began_at >= 1
    with receiving([429], retry_after="3600") as receiver:
        assert posted(receiver.url, monkeypatch).problem == "the server answers 429"


@pytest.mark.parametrize("answer", [500, "hang", "lost"])
def test_it_is_given_up_at_the_deadline(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    short = NOTIFY.model_copy(update={"deadline_s": 1.0})
    with receiving([answer] * 99) as receiver:
        began_at = time.monotonic()
        outcome = posted(receiver.url, monkeypatch, short)
        assert time.monotonic() - began_at < 3
        assert not outcome.was_told
        assert outcome.tries == len(receiver.received) >= 2


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"{SECRET}", "holds no address"),
        (f"{SECRET}://x/y", "holds no address"),
        (f"file:///{SECRET}", "holds no address"),
        (f"http:///{SECRET}", "holds no address"),
        (f"http://127.0.0.1:{SECRET}/", "holds no address"),
        (f"http://[{SECRET}/", "holds no address"),
        (f"http://127.0.0.1:1/{SECRET} and\nmore", "its address is none"),
        (f"http://127.0.0.1:1/{SECRET}", "Connection refused"),
    ],
)
def test_an_address_that_leads_nowhere_is_told_without_it(
    url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = posted(url, monkeypatch, NOTIFY.model_copy(update={"deadline_s": 0.1}))
    assert not outcome.was_told
    assert says in outcome.problem


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK", raising=False)
    assert "environment variable HOOK is not set" in post(NOTIFY, PAYLOAD).problem
    with pytest.raises(RequestError, match="HOOK is not set"):
        address_of(NOTIFY)


def command(*words: str, timeout_s: float = 20.0) -> Outcome:
    return call(Notify(command=words, timeout_s=timeout_s), PAYLOAD)


def test_a_command_reads_the_notice(tmp_path: Path) -> None:
    copy = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
    assert command(sys.executable, "-c", copy, str(tmp_path / "n")).was_told
    assert json.loads((tmp_path / "n").read_text()) == PAYLOAD


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("false",), "exit code 1"),
        (("sh", "-c", "kill -9 $$"), "exit code -9"),
        (("true",), ""),  # reads nothing
        (("/no/such/program",), "/no/such/program: No such file or directory"),
        (("/",), "/: Permission denied"),
    ],
)
def test_how_a_command_ends(words: tuple[str, ...], problem: str) -> None:
    assert command(*words).problem == problem


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    words = f"sleep 1000 & echo $! > {tmp_path}/pid; sleep 1000"
    assert command("sh", "-c", words, timeout_s=0.5).problem == "not done after 0.5 s"
    with suppress(psutil.NoSuchProcess):
        child = psutil.Process(int((tmp_path / "pid").read_text()))
        deadline = time.monotonic() + 10
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_both_may_be_told() -> None:
    assert list(hooks_of(Notify(webhook="${env:HOOK}", command=("true",)))) == [
        "command", "webhook",
    ]  # fmt: skip
    assert hooks_of(Notify()) == {}
