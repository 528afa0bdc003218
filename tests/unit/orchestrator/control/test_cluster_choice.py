"""Which cluster a command line means."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.control.cluster_choice import choose_cluster, open_store
from orchestrator.errors import BackendError, RequestError
from tests.unit.orchestrator import broken
from tests.unit.orchestrator.recipes import cluster


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH, and a project with a cluster file of each kind, beside the current folder."""
    (tmp_path / "project" / "recipes").mkdir(parents=True)
    (tmp_path / "project" / "recipes" / "r.yaml").write_text(broken.RECIPE)
    (tmp_path / "project" / "cluster_configs").mkdir()
    for name in ("local", "ray", "slurm"):
        (tmp_path / "project" / "cluster_configs" / f"{name}.yaml").write_text(broken.CLUSTER)
    (tmp_path / "bin").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def with_slurm(home: Path) -> None:
    sbatch = home / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\n")
    sbatch.chmod(0o755)


def chosen(home: Path, explicit: str | None = None) -> tuple[str, str]:
    path, why = choose_cluster(explicit, home / "project" / "recipes" / "r.yaml")
    return os.path.relpath(path, home / "project"), why


def test_without_anything_around_it_is_local(home: Path) -> None:
    assert chosen(home) == ("cluster_configs/local.yaml", "no RAY_ADDRESS and no sbatch here")


def test_sbatch_means_slurm(home: Path) -> None:
    with_slurm(home)
    assert chosen(home) == ("cluster_configs/slurm.yaml", "sbatch is on PATH")


def test_a_ray_address_comes_before_sbatch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_slurm(home)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert chosen(home) == ("cluster_configs/ray.yaml", "RAY_ADDRESS is set")


def test_the_variable_comes_before_what_is_found(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    mine = home / "mine.yaml"
    mine.write_text(broken.CLUSTER)
    monkeypatch.setenv("ORCHESTRATOR_CLUSTER", str(mine))
    assert chosen(home) == ("../mine.yaml", "named by $ORCHESTRATOR_CLUSTER")


def test_the_option_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CLUSTER", "nowhere.yaml")
    given = str(home / "project" / "cluster_configs" / "ray.yaml")
    assert chosen(home, given) == ("cluster_configs/ray.yaml", "given by --cluster")


def test_beside_the_recipe_comes_before_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = home / "elsewhere" / "cluster_configs"
    here.mkdir()
    (here / "local.yaml").write_text(broken.CLUSTER)
    assert chosen(home)[0] == "cluster_configs/local.yaml"
    assert choose_cluster(None, None)[0] == here / "local.yaml"


def test_no_cluster_says_where_it_looked(home: Path) -> None:
    with pytest.raises(RequestError) as raised:
        choose_cluster(None, None)
    looked = home / "elsewhere" / "cluster_configs" / "local.yaml"
    assert str(raised.value) == (
        "cluster: no local.yaml found (no RAY_ADDRESS and no sbatch here; "
        f"looked for {looked}); give --cluster FILE"
    )


def test_a_named_cluster_must_be_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CLUSTER", "nowhere.yaml")
    with pytest.raises(RequestError) as raised:
        choose_cluster(None, None)
    assert str(raised.value) == (
        "nowhere.yaml: no such cluster file; check --cluster and $ORCHESTRATOR_CLUSTER"
    )


def test_a_store_is_a_folder_or_to_become_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    open_store(cluster(str(tmp_path / "later" / "store")))
    assert list(tmp_path.iterdir()) == [file]
    for path in (file, file / "store"):
        with pytest.raises(RequestError) as raised:
            open_store(cluster(str(path)))
        assert str(raised.value) == f"cluster: store: {path}: {file} is a file; name a folder"


@pytest.mark.parametrize("below", ["", "deep/store"])
def test_a_store_behind_a_link_that_leads_nowhere(tmp_path: Path, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(BackendError) as raised:
        open_store(cluster(str(tmp_path / "link" / below)))
    assert str(raised.value) == (
        f"cluster: store: {tmp_path}/link leads to {tmp_path}/gone, which is not there; mount it, "
        "or name another folder"
    )


@contextmanager
def closed() -> Iterator[int]:
    """A port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


@contextmanager
def silent() -> Iterator[int]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield int(server.getsockname()[1])


@contextmanager
def cutting() -> Iterator[int]:
    """A server that closes every connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def cut() -> None:
            with suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=cut, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("server", [closed, silent, cutting])
def test_nobody_waits_long_for_a_bucket_that_is_away(
    server: Callable[[], AbstractContextManager[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("ORCHESTRATOR_ANSWER_WITHIN_S", "0.3")
    with server() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(BackendError, match=r"cluster: store: s3://\w+/x/: the store did not"):
            open_store(cluster(f"s3://{server.__name__}/x"))
