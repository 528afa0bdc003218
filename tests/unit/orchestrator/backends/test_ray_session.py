"""The session around Ray: its words, its token, its end. A script plays ``ray start``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.backends.ray_session import RayHead, RayNode, RaySession
from orchestrator.errors import BackendError, Cause, cause_of

HEAD = """\
import json, os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
told = {{"argv": sys.argv[1:], "env": dict(os.environ), "child": child.pid}}
print(json.dumps(told), flush=True)
{end}
print("Ray runtime started", flush=True)
time.sleep(600)
"""


def play(folder: Path, end: str = "") -> dict[str, str]:
    """Variables under which this script is Ray's command line."""
    package = folder / "fake" / "ray" / "scripts"
    package.mkdir(parents=True)
    for parent in (package, package.parent):
        (parent / "__init__.py").touch()
    (package / "scripts.py").write_text(HEAD.format(end=end))
    return {"PYTHONPATH": str(folder / "fake"), "PYTHONSAFEPATH": "1"}


def session_in(folder: Path, end: str = "", **how: Any) -> RaySession:
    how = {"run": str(folder), "num_cpus": 3, "log": folder / "logs" / "ray.log", **how}
    return RaySession(code_env=play(folder, end), **how)


def told(log: Path) -> dict[str, Any]:
    """What the script was started with."""
    await_true(lambda: log.exists() and log.read_text().startswith("{"), "it never started")
    return dict(json.loads(log.read_text().splitlines()[0]))


def await_true(is_so: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def after(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_a_head_is_guarded_and_reachable_from_here_alone(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    try:
        session.wait_ready()
        assert session.is_alive()
        said = told(tmp_path / "logs" / "ray.log")
        words, token = said["argv"], Path(session.env["RAY_AUTH_TOKEN_PATH"])
        assert words[:3] == ["start", "--block", "--head"]
        assert session.head.address == f"127.0.0.1:{after(words, '--port')}"
        assert after(words, "--node-ip-address") == "127.0.0.1"
        assert after(words, "--num-cpus") == "3"
        ports = {after(words, f"--{n}port") for n in ("", "ray-client-server-", "dashboard-")}
        assert len(ports) == 3
        assert token.stat().st_mode & 0o777 == 0o600
        assert token.read_text() == session.head.token
        assert said["env"]["RAY_AUTH_MODE"] == "token"
        assert said["env"]["RAY_ADDRESS"] == "", "it would join instead of starting one"
        assert session.env["RAY_ADDRESS"] == session.head.address
    finally:
        session.stop()
    await_true(lambda: is_gone(said["child"]), "a daemon outlived its session")
    assert not session.is_alive()
    assert not token.parent.exists()


def test_a_head_that_ends_at_once_is_named_with_its_last_words_and_log(tmp_path: Path) -> None:
    session = session_in(tmp_path, "sys.exit('starting\\nOSError: no room in /tmp\\n')")
    try:
        with pytest.raises(BackendError) as raised:
            session.wait_ready()
        log = tmp_path / "logs" / "ray.log"
        said = "OSError: no room in /tmp"
        assert str(raised.value) == f"ray: the session did not start ({said}); see {log}"
        assert cause_of(raised.value) is Cause.RAY_LOST
    finally:
        session.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_session_that_loses_a_daemon_is_not_alive_from_then_on(
    tmp_path: Path, number: int
) -> None:
    """Whoever was connected may have ended already, long before Ray looks at its daemons."""
    session = session_in(tmp_path)
    try:
        session.wait_ready()
        daemon = psutil.Process(told(tmp_path / "logs" / "ray.log")["child"])
        daemon.send_signal(number)
        await_true(lambda: is_gone(daemon.pid), "it lives")
        assert not session.is_alive()
    finally:
        session.stop()


def test_what_a_killed_supervisor_left_is_ended_by_the_next(tmp_path: Path) -> None:
    first = session_in(tmp_path)
    folder = Path(first.env["RAY_AUTH_TOKEN_PATH"]).parent
    first.wait_ready()
    bystander = subprocess.Popen(["sleep", "600"])
    left = subprocess.Popen(["tail", "-f", str(folder / "token")], stdout=subprocess.DEVNULL)
    second = session_in(tmp_path / "again", run=str(tmp_path))
    try:
        assert left.wait(timeout=30) < 0
        await_true(lambda: not first.is_alive(), "the earlier head lives")
        assert not folder.exists()
        assert second.is_alive()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        first.stop()
        second.stop()


def test_a_session_ends_with_its_supervisor(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path;"
        "from tests.unit.orchestrator.backends.test_ray_session import session_in;"
        "session_in(Path(sys.argv[1])).wait_ready(); print('up', flush=True); time.sleep(600)"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=dict(os.environ)
    )
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == b"up\n"
    supervisor.kill()
    supervisor.communicate()
    await_true(lambda: no_head_in(tmp_path), "the head outlived it")
    session_in(tmp_path / "next", run=str(tmp_path)).stop()  # sweeps up its folder


def no_head_in(folder: Path) -> bool:
    """Whether no living process has the folder's script on its path."""
    for process in psutil.process_iter():
        try:
            is_head = "--head" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
            if is_head and str(folder / "fake") in process.environ().get("PYTHONPATH", ""):
                return False
        except psutil.Error:
            continue
    return True


def test_a_node_joins_with_the_token_of_its_head(tmp_path: Path) -> None:
    node = RayNode(
        RayHead(address="10.0.0.1:6379", token="secret"),
        address="10.0.0.2",
        num_cpus=5,
        num_gpus=2,
        log=tmp_path / "node.log",
        code_env=play(tmp_path),
    )
    said = told(tmp_path / "node.log")
    words = said["argv"]
    assert "--head" not in words
    assert after(words, "--address") == "10.0.0.1:6379"
    assert after(words, "--node-ip-address") == "10.0.0.2"
    assert (after(words, "--num-cpus"), after(words, "--num-gpus")) == ("5", "2")
    assert said["env"]["RAY_AUTH_TOKEN"] == "secret"
    assert said["env"]["RAY_AUTH_MODE"] == "token"
    assert node.is_alive()
    node.stop()
    assert not node.is_alive()
    await_true(lambda: is_gone(said["child"]), "a daemon outlived its node")
