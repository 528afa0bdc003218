"""A bucket of this process, and addresses that lead nowhere; real ones are in tests/integration."""

from __future__ import annotations

import errno
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import AlreadyExistsError, RequestError
from orchestrator.ledger.object_store import SMALL_TIMEOUT_S, ObjectStore, profile
from orchestrator.ledger.path_store import TEMPORARY
from orchestrator.spec.cluster import Cluster


def test_a_file_in_parts_is_created_once(tmp_path: Path) -> None:
    store, local, ticks = ObjectStore("memory://parts", part_bytes=4), tmp_path / "f", []
    local.write_bytes(b"0123456789")
    store.upload(local, "a", lambda: ticks.append(None))
    assert len(ticks) == 3
    with pytest.raises(AlreadyExistsError):
        store.upload(local, "a", lambda: None)
    store.fetch("a", tmp_path / "deep" / "back")
    assert (tmp_path / "deep" / "back").read_bytes() == b"0123456789"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["back"]


def test_what_cannot_be_fetched_leaves_nothing_here(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ObjectStore("memory://none").fetch("a", tmp_path / "back")
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


@pytest.mark.parametrize("part_bytes", [24_000, 40_000, 200_000])
def test_a_disk_that_fills_up_under_a_fetch_is_no_damaged_object(
    small: Path, part_bytes: int
) -> None:
    store = ObjectStore(f"memory://large-{part_bytes}", part_bytes=part_bytes)
    store.create("a", bytes(100_000))
    with pytest.raises(OSError, match="free some space, or name another folder") as raised:
        store.fetch("a", small / "back")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(small / "back"))
    assert list(small.iterdir()) == []


def _request(connection: socket.socket) -> bytes:
    """A request to its end: closing before would cut the client short."""
    data = connection.recv(1 << 16)
    length = re.search(rb"(?i)content-length: (\d+)", data)
    size = data.find(b"\r\n\r\n") + 4 + int(length[1]) if length else 0
    while len(data) < size and (more := connection.recv(1 << 16)):
        data += more
    return data


@contextmanager
def deaf_at_first() -> Iterator[str]:
    """The address of a store that never answers the first request, and agrees to all others."""
    done = threading.Event()
    headers = "ETag: x\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nConnection: close"
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n{headers}\r\n\r\n".encode()

    def serve(server: socket.socket) -> None:
        first, _ = server.accept()
        while not done.is_set():
            connection, _ = server.accept()
            with connection:
                is_look = _request(connection).startswith(b"HEAD")
                connection.sendall(answer + (b"" if is_look else b"abc"))
        first.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}"
        done.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


@pytest.mark.parametrize(
    ("verb", "words", "answer"),
    [
        ("create", ("a", b"1"), None),
        ("create", ("a", bytes(2 << 20)), None),
        ("replace", ("a", b"1"), None),
        ("exists", ("a",), True),
        ("read_bytes", ("a", 0), b"abc"),
    ],
)
def test_a_request_that_hangs_is_asked_again_however_long_that_took(
    monkeypatch: pytest.MonkeyPatch, verb: str, words: tuple[Any, ...], answer: Any
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "x")
    with deaf_at_first() as endpoint:
        store = ObjectStore("s3://b", timeout_s=0.5, deadline_s=0.2, endpoint=endpoint)
        assert getattr(store, verb)(*words) == answer


def test_a_heartbeat_that_hangs_is_sent_again_before_it_is_late() -> None:
    retry = Cluster.model_validate({"backend": "local", "store": "/s"}).retry
    assert retry.heartbeat_timeout_s / 6 + 2 * SMALL_TIMEOUT_S < retry.heartbeat_timeout_s


def test_what_only_tells_the_stores_time_is_never_listed() -> None:
    store = ObjectStore("memory://probes")
    store.create(f"a/{TEMPORARY}01", b"")
    store.create("a/b", b"1")
    assert (store.list(""), store.children("a")) == ({"a/b": 1}, {"b"})


def test_names_are_taken_as_they_are() -> None:
    store, name = ObjectStore("memory://names"), "a b/c#d%20e=1,~f.json"
    store.create(name, b"1")
    assert store.list("") == {name: 1}
    assert store.children("a b") == {"c#d%20e=1,~f.json"}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "ftpz://x/y",
            "store 'ftpz://x/y': not a store's address; use a path, s3://, gs:// or az://",
        ),
        ("az://container/x", "store 'az://container': Generic MicrosoftAzure error: Account must"),
    ],
)
def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str, problem: str) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(RequestError) as raised:
        ObjectStore(url)
    assert str(raised.value).startswith(problem)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


def test_credentials_are_those_of_the_users_profile(home: Path) -> None:
    keys = "aws_access_key_id = mine\naws_secret_access_key = secret\n"
    (home / "credentials").write_text(f"[default]\n{keys}")
    assert profile()()["access_key_id"] == "mine"


def test_without_a_profile_nobody_asks_for_one(home: Path) -> None:
    assert profile() is None


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, r"The config profile \(nosuch\) could not be found"),
        ({"credentials": "[other]\naws_access_key_id = x\n"}, r"\(nosuch\) could not be found"),
        ({"config": "no section\n"}, "Unable to parse config file"),
    ],
)
def test_a_profile_that_is_not_there_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], says: str
) -> None:
    for name, text in files.items():
        (home / name).write_text(text)
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    with pytest.raises(RequestError, match=rf"^store 's3://profiled': .*{says}"):
        ObjectStore("s3://profiled")


@pytest.mark.parametrize(
    ("url", "name", "value"),
    [
        ("s3://misnamed", "AWS_ENDPOINT_URL", "localhost:9000"),
        ("s3://misnamed", "AWS_ENDPOINT_URL_S3", "//host"),
        ("az://misnamed", "AZURE_STORAGE_ENDPOINT", "host/account"),
        ("s3://misnamed", "AWS_ENDPOINT", ""),
    ],
)
def test_an_endpoint_that_is_no_url_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match=f"{name} is '{value}', no URL; begin it with http://"):
        ObjectStore(url)


def test_a_profile_without_credentials_is_one_line(home: Path) -> None:
    (home / "config").write_text("[default]\nregion = us-east-1\n")
    with pytest.raises(RequestError, match=r"^store 's3://unprofiled': Received None"):
        ObjectStore("s3://unprofiled")
