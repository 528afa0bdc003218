"""The store and a whole run on Azurite, which speaks Azure's blob API: a drill.

``npm install azurite`` somewhere, then ``AZURITE=.../node_modules/.bin/azurite-blob pytest
tests/integration/azure.py``. Nothing else of the project needs Node, so `make test` does without.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from threading import Barrier
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from jobs.training.rank import free_port
from orchestrator.errors import AlreadyExistsError
from orchestrator.ledger.storage import Storage, sha256_of
from tests.integration.test_object_store import run_through
from tests.smoke import Smoke

CONTAINER = "container"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of the emulator, published by Microsoft; it opens nothing else."""
API = "2021-12-02"
AZURITE = os.environ.get("AZURITE") or shutil.which("azurite-blob")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(AZURITE is None, reason="AZURITE names no azurite-blob (npm install)"),
]


def _create_container(url: str) -> None:
    """Asks as Azure's "Authorize with Shared Key" describes."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": API}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    text = "\n".join([*lines, resource]).encode()
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text, "sha256")).decode()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
    address = f"{url}/{ACCOUNT}/{CONTAINER}?restype=container"
    with urlopen(Request(address, method="PUT", headers=headers), timeout=10):
        pass


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server with one container, and the variables that lead to it, which are set here too."""
    port, folder = free_port(), tmp_path_factory.mktemp("azurite")
    url = f"http://127.0.0.1:{port}"
    variables = {
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURITE_BLOB_STORAGE_URL": url,
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
    }
    options = [
        "--blobPort",
        str(port),
        "--location",
        str(folder),
        "--skipApiVersionCheck",
        "--disableTelemetry",
    ]
    with pytest.MonkeyPatch.context() as patched, (folder / "log").open("wb") as out:
        for name, value in variables.items():
            patched.setenv(name, value)
        server = subprocess.Popen([str(AZURITE), *options], stdout=out, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    _create_container(url)
                    break
                except (URLError, ConnectionError):
                    assert time.monotonic() < deadline, (folder / "log").read_text()
                    time.sleep(0.2)
            yield variables
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def storage(environment: dict[str, str], request: pytest.FixtureRequest) -> Storage:
    return Storage(f"az://{CONTAINER}/{request.node.name}")


def test_one_of_eight_threads_wins(storage: Storage) -> None:
    together = Barrier(8)

    def attempt(worker: int) -> int | None:
        mine = Storage(storage.url)
        together.wait()
        try:
            mine.create("race", bytes([worker]) * 1000)
        except AlreadyExistsError:
            return None
        return worker

    with ThreadPoolExecutor(8) as pool:
        winners = [w for w in pool.map(attempt, range(8)) if w is not None]
    assert len(winners) == 1
    assert storage.read_bytes("race") == bytes(winners) * 1000


def test_whole_life_of_objects(storage: Storage, tmp_path: Path) -> None:
    storage.create("a/b", b"12345")
    with pytest.raises(AlreadyExistsError):
        storage.create("a/b", b"other")
    assert storage.read_bytes("a/b") == b"12345"
    assert (storage.list(), storage.children()) == ({"a/b": 5}, ("a",))
    storage.replace("a/b", b"other")
    assert storage.digest("a/b") == hashlib.sha256(b"other").hexdigest()
    storage.delete("a/b")
    assert not storage.exists("a/b")
    local = tmp_path / "large.bin"
    local.write_bytes(os.urandom(70 << 20))
    assert storage.upload(local, "large.bin") == sha256_of(local)
    assert sha256_of(storage.fetch("large.bin", tmp_path / "back.bin")) == sha256_of(local)


def test_a_run_from_submit_to_succeeded(
    tmp_path: Path, environment: dict[str, str], calm: tuple[Smoke, str], material: Path
) -> None:
    """Same bytes as on a path."""
    run_through(tmp_path, environment, calm[0], material, f"az://{CONTAINER}/whole")
