"""What the doctor finds on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.control.doctor import examine
from tests.receiver import SECRET, receiving
from tests.unit.orchestrator.recipes import cluster


def test_the_doctor_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    where = cluster(
        str(tmp_path / "store"),
        backend="local",
        data={"speech": str(tmp_path / "speech"), "music": str(tmp_path / "music")},
        models={"hubert": str(tmp_path / "speech")},
    )
    checks = {c.name: c for c in examine(where)}
    assert checks["store"].passed
    assert checks["data.speech"].passed
    assert not checks["data.music"].passed
    assert checks["data.music"].detail == f"{tmp_path}/music: not a folder; check the path"
    assert checks["models.hubert"].detail == (
        f"{tmp_path}/speech: no config.json in it; check the path"
    )
    assert {"cpus", "gpus", "disk", "open files", "package torch"} <= set(checks)
    assert checks["store"].detail == (
        f"{tmp_path}/store: exclusive creation works in {tmp_path}, where it is to be created"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["speech"], "nothing is left behind"


def test_what_jobs_on_this_machine_would_miss_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    where = cluster(
        str(tmp_path / "store"),
        backend="local",
        scratch=str(tmp_path / "file" / "scratch"),
        environment={"venv": str(tmp_path / "venv"), "container": "image.sif"},
    )
    failed = {c.name: c.detail for c in examine(where) if not c.passed}
    assert failed["scratch"].startswith(f"{tmp_path}/file is no folder")
    assert failed["environment.venv"].startswith(f"there is no {tmp_path}/venv/bin/python")
    assert "run in none" in failed["environment.container"]


@pytest.mark.parametrize("backend", ["fake", "local"])
def test_the_doctor_survives_a_store_that_cannot_be(backend: str) -> None:
    where = cluster("${env:NO_SUCH_VARIABLE}/store", backend=backend)
    checks = {c.name: c for c in examine(where)}
    assert not checks["store"].passed
    assert "environment variable NO_SUCH_VARIABLE is not set" in checks["store"].detail


def test_the_doctor_asks_for_hooks_and_tells_them_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*command: str) -> dict[str, tuple[bool, str]]:
        notify = {"webhook": "${env:HOOK}", "command": command}
        checks = examine(cluster(str(tmp_path), notify=notify))
        return {c.name: (c.passed, c.detail) for c in checks if c.name.startswith("notify")}

    with receiving() as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        host = receiver.url.split("/")[2]
        checks = found("sh", "-c", "exit 1")
        assert checks["notify.webhook"] == (True, f"{host} takes connections; nothing was sent")
        assert checks["notify.command"][0]
        assert receiver.received == []
    checks = found("/no/such/program")
    assert checks["notify.webhook"] == (False, f"{host}: [Errno 111] Connection refused; check it")
    assert checks["notify.command"] == (
        False, "/no/such/program: no such program here; check its path"
    )  # fmt: skip
    for url in (SECRET, f"http://127.0.0.1:{SECRET}/"):
        monkeypatch.setenv("HOOK", url)
        passed, detail = found("sh")["notify.webhook"]
        assert not passed
        assert SECRET not in detail
    monkeypatch.delenv("HOOK")
    assert "environment variable HOOK is not set" in found("sh")["notify.webhook"][1]
