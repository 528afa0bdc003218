"""Logs reach the run's folder wherever that is."""

from __future__ import annotations

import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestrator.control.run_logs import RunLogs
from orchestrator.ledger.attempt import CURVES, OFFLINE_CURVES
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from tests.unit.orchestrator.ledger.conftest import mounted


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def run_in(url: str) -> RunFolder:
    return RunFolder(Store.open(url).run_storage("small"))


def written(logs: RunLogs, run: RunFolder, text: str) -> Path:
    path = logs.path(run.storage.at("stages", "pack-1", "attempts", "0001"), "driver.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


LOG = "stages/pack-1/attempts/0001/driver.log"


def test_on_a_path_they_are_written_in_place(tmp_path: Path) -> None:
    run = run_in(str(tmp_path / "store"))
    logs = RunLogs(run)
    assert written(logs, run, "x") == tmp_path / "store/runs/small" / LOG
    assert logs.path(run.storage, "supervisor.log") == tmp_path / "store/runs/small/supervisor.log"
    logs.close()
    assert run.storage.read_bytes(LOG) == b"x"


def test_elsewhere_they_are_copied_now_and_then_and_at_the_end() -> None:
    run = run_in("memory://logs-copied")
    logs = RunLogs(run, copy_every_s=3600)
    path = written(logs, run, "one\n")
    logs.copy()
    assert not run.storage.exists(LOG), "too early"
    logs.copy(now=True)
    assert run.storage.read_bytes(LOG) == b"one\n"
    with path.open("a") as file:
        file.write("two\n")
    logs.close()
    assert run.storage.read_bytes(LOG) == b"one\ntwo\n"
    assert not logs.folder.exists()


def test_a_full_disk_is_named_where_earlier_words_are_fetched_to(tmp_path: Path) -> None:
    run = run_in("memory://logs-full")
    run.storage.create("supervisor.log", bytes(1 << 20))
    logs = RunLogs(run)
    logs.folder.mkdir(parents=True)
    with (
        mounted(logs.folder, "size=64k"),
        pytest.raises(OSError, match="free some space, or name another TMPDIR") as raised,
    ):
        logs.continued(run.storage, "supervisor.log")
    assert raised.value.filename == str(logs.folder / "supervisor.log")


class Tidying(Storage):
    """A store beside which a tracker removes its former folder, once something is copied."""

    def __init__(self, url: str, former: Path) -> None:
        super().__init__(url)
        self.former = former

    def replace(self, path: str, data: bytes) -> None:
        super().replace(path, data)
        shutil.rmtree(self.former, ignore_errors=True)


@pytest.mark.parametrize("name", ["debug.log", "output.txt", "files/run.log"])
def test_what_a_tracker_removes_meanwhile_stops_nobody(name: str) -> None:
    run = run_in(f"memory://logs-removed-{name.replace('/', '-')}")
    former = RunLogs(run).path(run.storage, f"stages/train-1/{OFFLINE_CURVES}/offline-run-1")
    (former / name).parent.mkdir(parents=True)
    (former / name).write_text("x")
    logs = RunLogs(RunFolder(Tidying(run.storage.url, former)))
    written(logs, run, "one\n")
    assert logs.copy(now=True)
    assert not former.exists()
    assert run.storage.read_bytes(LOG) == b"one\n"


def test_a_log_goes_on_where_an_earlier_process_ended() -> None:
    run = run_in("memory://logs-continued")
    for text in ("first\n", "second\n"):
        logs = RunLogs(run)
        path = logs.continued(run.storage, "supervisor.log")
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(text)
        logs.close()
    assert run.storage.read_bytes("supervisor.log") == b"first\nsecond\n"


def test_ranks_logs_and_curves_are_kept_and_caches_are_not() -> None:
    run = run_in("memory://logs-of-ranks")
    logs = RunLogs(run)
    attempt = written(logs, run, "driver\n").parent
    (attempt / "rank-00001.log").write_text("rank one\n")
    (attempt / "rank-00001.stacks.txt").write_text("loop.py\n")
    (attempt / "inputs").mkdir()
    (attempt / "inputs" / "test.bin").write_bytes(b"large")
    curves = attempt.parent.parent / CURVES
    curves.mkdir()
    (curves / "events.out.tfevents.1").write_bytes(b"curve")
    offline = attempt.parent.parent / OFFLINE_CURVES / "wandb" / "offline-run-1"
    offline.mkdir(parents=True)
    (offline / "run-1.wandb").write_bytes(b"curve")
    logs.close()
    assert list(run.storage.list("stages/pack-1")) == [
        LOG,
        LOG.replace("driver", "rank-00001"),
        LOG.replace("driver.log", "rank-00001.stacks.txt"),
        f"stages/pack-1/{CURVES}/events.out.tfevents.1",
        f"stages/pack-1/{OFFLINE_CURVES}/wandb/offline-run-1/run-1.wandb",
    ]


def test_only_what_has_grown_is_copied() -> None:
    run = run_in("memory://logs-grown")
    logs = RunLogs(run, copy_every_s=0)
    written(logs, run, "one\n")
    logs.copy()
    run.storage.delete(LOG)
    logs.copy()
    assert not run.storage.exists(LOG)


def test_what_a_killed_supervisor_left_is_copied_by_the_next() -> None:
    run = run_in("memory://logs-left")
    written(RunLogs(run), run, "last words\n")
    RunLogs(run).close()
    assert run.storage.read_bytes(LOG) == b"last words\n"


class _Refuses(BaseHTTPRequestHandler):
    """A store whose owner has taken our rights away."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(403)

    def log_message(self, *args: object) -> None:
        pass


def test_a_store_that_refuses_stops_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anyone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    run = RunFolder(Storage("s3://refusing/runs/small"))
    logs = RunLogs(run, copy_every_s=0)
    written(logs, run, "x")
    logs.copy()
    assert "logs: " in caplog.text
    assert "s3://refusing/runs/small" in caplog.text
    logs.close()
    kept = logs.path(run.storage.at("stages/pack-1/attempts/0001"), "driver.log")
    assert kept.exists(), "the only copy there is"
    kept.unlink()
    server.shutdown()
    server.server_close()
