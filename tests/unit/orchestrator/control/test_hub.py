"""What a hub is asked, and that nobody waits for it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from orchestrator.control.hub import Hub
from tests.unit.orchestrator.hub import hub_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


def test_a_branch_is_at_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.dumps({"sha": COMMIT, "id": "a/b"}).encode()
    paths = ("/api/models/a/b/revision/main", "/api/models/a/b/revision/refs%2Fpr%2F1")
    with hub_of(dict.fromkeys(paths, answer), monkeypatch) as asked:
        assert Hub().commit_of("a/b", "main") == COMMIT
        assert Hub().commit_of("a/b", "refs/pr/1") == COMMIT
        assert Hub().commit_of("a/b", "nowhere") == ""
    assert asked == [*paths, "/api/models/a/b/revision/nowhere"]


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b'{"sha": 5}', b'{"sha": "main"}'])
def test_whatever_is_no_answer_is_none(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_of({"/api/models/a/b/revision/main": answer}, monkeypatch):
        assert Hub().commit_of("a/b", "main") == ""


def test_a_config_comes_from_the_hub_or_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of({f"/a/b/resolve/{COMMIT}/config.json": b'{"n": 1}'}, monkeypatch):
        assert Hub().config_of("a/b", COMMIT) == {"n": 1}
        cached = tmp_path / "home/hub/models--a--b/snapshots" / COMMIT / "config.json"
        cached.parent.mkdir(parents=True)
        cached.write_text('{"n": 2}')
        assert Hub().config_of("a/b", COMMIT) == {"n": 2}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Hub().config_of("a/b", COMMIT) == {"n": 2}
    assert Hub().config_of("a/c", COMMIT) == {}


def test_a_hub_that_is_slow_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_of({}, monkeypatch, delay_s=1.0) as asked:
        hub, began_at = Hub(timeout_s=0.1), time.monotonic()
        assert [hub.commit_of("a/b", "main") for _ in range(5)] == [""] * 5
        assert time.monotonic() - began_at < 0.9
    assert len(asked) <= 1


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "file:///etc", "nonsense"])
def test_a_hub_that_is_not_there_says_nothing(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert Hub().commit_of("a/b", "main") == ""
