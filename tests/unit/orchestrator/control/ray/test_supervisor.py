"""The command on the head becomes the code that was submitted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.control.code_snapshot import code_origin
from orchestrator.control.ray.supervisor import MODULE, of_the_cluster
from orchestrator.control.run_logs import RunLogs
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RAY_CODE, RunFolder
from orchestrator.ledger.store import Store
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe

OWN = b"import sys; print('own code', *sys.argv[1:]); sys.exit(7)\n"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(Store.open(str(tmp_path / "store")).run_storage("small"))
    packages = ("orchestrator", "orchestrator/control", "orchestrator/control/ray")
    code = {f"{name}/__init__.py": b"" for name in packages}
    code["orchestrator/control/ray/supervisor.py"] = OWN
    where = cluster(str(tmp_path / "store"), backend="ray")
    run.create(plan_of(recipe()), recipe(), where, code, code_origin(code))
    return run


def command(store: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", MODULE, "--store", store, "--run", "small"]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}
    return subprocess.run(argv, env=surroundings, capture_output=True, text=True, check=False)


def test_the_runs_own_code_is_executed(run: RunFolder, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    done = command(store)
    assert (done.returncode, done.stdout) == (7, f"own code --store {store} --run small\n")


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = command(str(tmp_path / "none"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no such run" in line


def test_variables_must_be_set_on_the_head(tmp_path: Path) -> None:
    run = RunFolder(Store.open(str(tmp_path / "store")).run_storage("small"))
    notify = {"webhook": "${env:TEAM_WEBHOOK}"}
    where = cluster(str(tmp_path / "store"), backend="ray", notify=notify)
    run.create(plan_of(recipe()), recipe(), where, {}, {})
    done = command(str(tmp_path / "store"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "cluster: notify.webhook: TEAM_WEBHOOK not set on the head; set it where Ray is started "
        "there, or in environment.setup"
    )
    done = command(str(tmp_path / "store"), TEAM_WEBHOOK="ftp://secret.example/t0k3n")
    assert "notify.webhook: ${env:TEAM_WEBHOOK} holds no address" in done.stderr
    assert "t0k3n" not in done.stderr


def test_jobs_join_the_cluster_and_take_their_code_along(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    found = of_the_cluster(run, run.storage, RunLogs(run))
    env = found.start_ray().env
    assert env["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert env[RAY_CODE] == f"{run.storage.url}/code"
    assert "RAY_AUTH_MODE" not in env
    assert (found.standby, (found.num_cpus or 0) > 10_000) == (None, True)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(RequestError, match="RAY_ADDRESS is not set; submit it to the cluster's"):
        of_the_cluster(run, run.storage, RunLogs(run))
