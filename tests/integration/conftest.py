"""What slow tests share: an S3 server of their own."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import pytest

from jobs.training.rank import free_port

BUCKET = "bucket"
# One request at a time: moto looks and writes in two steps where S3 does both in one.
SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
app = DomainDispatcherApplication(create_backend_app)
run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=False)
"""


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (URLError, ConnectionError):
        return False


@contextmanager
def serving(log: Path) -> Iterator[dict[str, str]]:
    """An S3 server, and the variables that lead to it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(port)], stdout=out, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 60
            while not _answers(f"{url}/moto-api/"):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "anyone",
                "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),  # looked for afterwards
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.kill()
            server.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One server for all, as processes keep clients."""
    with serving(tmp_path_factory.mktemp("s3") / "server.log") as variables:
        yield variables


@pytest.fixture(scope="module")
def s3(s3_server: dict[str, str]) -> Iterator[dict[str, str]]:
    """The server's variables, which are set here too, and a bucket there."""
    import boto3

    with pytest.MonkeyPatch.context() as patched:
        for name, value in s3_server.items():
            patched.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield s3_server
