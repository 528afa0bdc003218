"""How a head is found: addresses as people write them, tokens, tunnels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.control.ray.head import dashboard_of, reached, token_here
from orchestrator.errors import BackendError, RequestError
from tests.jobs_api import RELAY, PlayedHead, playing
from tests.unit.orchestrator.recipes import cluster


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def head() -> Iterator[PlayedHead]:
    with playing() as head:
        yield head


def test_a_token_is_found_where_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_here() == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of home\n")
    assert token_here() == "of home"
    (tmp_path / "named").write_text("of a file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert token_here() == "of a file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "itself")
    assert token_here() == "itself"


def test_a_token_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/no/token")
    with pytest.raises(RequestError, match="RAY_AUTH_TOKEN_PATH: /no/token cannot be read"):
        token_here()


def test_addresses(head: PlayedHead) -> None:
    assert dashboard_of("auto", "") == "http://127.0.0.1:8265"
    assert dashboard_of("https://far:1", "") == "https://far:1"
    place = head.url.removeprefix("http://")
    assert dashboard_of(place, "t0k3n") == head.url
    host, _, port = place.rpartition(":")
    # The port of Ray itself takes connections, and speaks something else.
    assert dashboard_of("127.0.0.1:9", "", port=int(port)) == f"http://{host}:{port}"


@pytest.mark.parametrize("address", ["ray://far:10001", "far", "far:", ":8265", "far:x"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(RequestError, match="RAY_ADDRESS: "):
        dashboard_of(address, "")


def test_the_environment_names_the_cluster(
    head: PlayedHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = cluster("/store", backend="ray")
    with pytest.raises(RequestError, match=r"ray.address: names no cluster"), reached(where):
        pass
    monkeypatch.setenv("RAY_ADDRESS", head.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0k3n")
    with reached(where) as jobs:
        assert jobs.version() == "2.60.0"


def test_a_tunnel_is_opened_and_closed(
    head: PlayedHead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "relay.py").write_text(RELAY)
    far = head.url.rpartition(":")[2]
    words = [sys.executable, str(tmp_path / "relay.py"), "{port}", far]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0k3n")
    with reached(cluster("/store", backend="ray", ray={"tunnel": words})) as jobs:
        assert jobs.url != head.url
        assert jobs.version() == "2.60.0"
    with pytest.raises(BackendError, match="does not answer"):
        jobs.version()


LAUNCHER = "kind: RayCluster\nmetadata: {name: mine}\n"


def test_a_launcher_tells_the_way_where_nothing_else_does(
    head: PlayedHead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "relay.py").write_text(RELAY)
    (tmp_path / "kube.yaml").write_text(LAUNCHER)
    far = head.url.rpartition(":")[2]
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\n[ "$1 $2" = "port-forward service/mine-head-svc" ] || exit 1\n'
        f'exec {sys.executable} {tmp_path}/relay.py "${{3%:8265}}" {far}\n'
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0k3n")
    launcher = str(tmp_path / "kube.yaml")
    with reached(cluster("/store", backend="ray", ray={"launcher": launcher})) as jobs:
        assert jobs.url != head.url
        assert jobs.version() == "2.60.0"
    with reached(
        cluster("/store", backend="ray", ray={"launcher": launcher, "address": head.url})
    ) as jobs:
        assert jobs.url == head.url


@pytest.mark.parametrize(
    "way", [{"launcher": "aws"}, {"tunnel": ["ssh", "-L", "{port}:a:8265"]}, {}]
)
def test_on_the_head_itself_no_way_leads_through_the_launcher(
    way: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with reached(cluster("/store", backend="ray", ray=way)) as jobs:
        assert jobs.url == "http://127.0.0.1:8265"


def test_what_a_tunnel_has_started_ends_with_it(
    head: PlayedHead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "relay.py").write_text(RELAY)
    far, pid = head.url.rpartition(":")[2], tmp_path / "pid"
    line = f"{sys.executable} {tmp_path}/relay.py {{port}} {far} & echo $! > {pid}; wait"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0k3n")
    with reached(cluster("/store", backend="ray", ray={"tunnel": ["sh", "-c", line]})) as jobs:
        assert jobs.version() == "2.60.0"
    with pytest.raises(BackendError, match="does not answer"):
        jobs.version()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["/no/ssh", "{port}"], r"ray.tunnel: /no/ssh: cannot be started \(No such file"),
        (
            ["sh", "-c", "echo Permission denied >&2; exit {port}"],
            r"sh: opens no way to the cluster \(Permission denied\); try",
        ),
        (["sleep", "{port}"], r"sleep: opens no way to the cluster; try"),
    ],
)
def test_a_tunnel_that_leads_nowhere(words: list[str], says: str) -> None:
    where = cluster("/store", backend="ray", ray={"tunnel": words})
    with pytest.raises(BackendError, match=says), reached(where, tunnel_timeout_s=0.5):
        pass
