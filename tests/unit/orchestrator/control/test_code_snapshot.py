"""The code that jobs execute, and where they find it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.control.code_snapshot import (
    code_env,
    code_folder,
    code_origin,
    code_snapshot,
    require_executable,
    snapshot_digest,
)
from orchestrator.errors import CorruptError, RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.ledger.temporary import own_temporary_folder
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe

CODE = {"jobs/__init__.py": b"", "jobs/hello.py": b"print('hello from the copy')\n"}


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def run_in(url: str, name: str, **origin: Any) -> RunFolder:
    run = RunFolder(Store.open(url).run_storage(name))
    what = {"format": 2, "sha256": snapshot_digest(CODE), **origin}
    run.create(plan_of(recipe()), recipe(), cluster(url), CODE, what)
    return run


@pytest.mark.parametrize("name", ["~rch-2.0.dist-info", "~umpy-1.0.egg-info", "x-1.dist-info"])
def test_what_an_installation_left_half_removed_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    packages = code_origin(CODE)["packages"]
    assert "torch" in packages
    assert None not in packages


def test_a_store_that_is_a_path_holds_the_code_itself(tmp_path: Path) -> None:
    run = run_in(str(tmp_path / "store"), "small")
    assert code_folder(run) == tmp_path / "store/runs/small/code"


def test_code_of_an_object_store_is_fetched_once_and_runs(tmp_path: Path) -> None:
    run = run_in("memory://code-fetched", "small")
    folder = code_folder(run)
    assert folder.is_relative_to(own_temporary_folder())
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.py")} == CODE
    run.storage.delete("code/jobs/hello.py")
    assert code_folder(run_in("memory://code-fetched", "same")) == folder
    done = subprocess.run(
        [sys.executable, "-m", "jobs.hello"], env=code_env(run), capture_output=True, text=True
    )
    assert done.stdout == "hello from the copy\n"
    assert [p.name for p in own_temporary_folder().iterdir()] == [folder.name]


def test_a_copy_that_lost_files_is_fetched_anew() -> None:
    run = run_in("memory://code-swept", "small")
    folder = code_folder(run)
    (folder / "jobs" / "hello.py").unlink()
    whole = code_folder(run)
    assert (whole / "jobs" / "hello.py").read_bytes() == CODE["jobs/hello.py"]
    assert whole == code_folder(run)


def test_a_copy_that_others_execute_is_never_taken_away() -> None:
    """Many processes may find at once that a file is gone."""
    run = run_in("memory://code-raced", "small")
    first = code_folder(run)
    (first / "jobs" / "hello.py").unlink()
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(code_folder, [run] * 4))
    assert first.exists()
    assert all((copy / "jobs" / "hello.py").exists() for copy in copies)


def test_code_that_was_harmed_on_the_way_does_not_run() -> None:
    run = run_in("memory://code-harmed", "small")
    run.storage.replace("code/jobs/hello.py", b"print('other')\n")
    with pytest.raises(CorruptError) as raised:
        code_folder(run)
    assert str(raised.value) == (
        "memory://code-harmed/runs/small/code: bytes differ from code.json; submit again"
    )
    assert list(own_temporary_folder().iterdir()) == []


def test_which_runs_this_version_can_execute(tmp_path: Path) -> None:
    require_executable(run_in(str(tmp_path), "now"))
    with pytest.raises(RequestError, match=r"^old: was submitted by another version"):
        require_executable(run_in(str(tmp_path), "old", format=1))


def test_the_digest_depends_on_names_and_bytes() -> None:
    digests = {
        snapshot_digest(c)
        for c in ({"a": b"bc"}, {"ab": b"c"}, {"a": b"b", "c": b""}, {"a": b"cb"}, {})
    }
    assert len(digests) == 5
    assert snapshot_digest({"b": b"", "a": b""}) == snapshot_digest({"a": b"", "b": b""})


def test_the_code_that_jobs_execute() -> None:
    snapshot = code_snapshot()
    assert {"orchestrator/plan/keys.py", "jobs/attempt.py", "orchestrator/report/page.html"} <= set(
        snapshot
    )
    assert not any("__pycache__" in path or path.startswith("tests") for path in snapshot)
    origin = code_origin(snapshot)
    assert set(origin) == {"format", "sha256", "commit", "patch", "python", "packages"}
    assert "pydantic" in origin["packages"]
