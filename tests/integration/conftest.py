"""What slow tests share: an S3 server of their own."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server, and the variables that lead to it, which are set here too."""
    import boto3

    port, log = free_port(), tmp_path_factory.mktemp("s3") / "server.log"
    url = f"http://127.0.0.1:{port}"
    told = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patched, log.open("wb") as out:
        for name, value in told.items():
            patched.setenv(name, value)
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(port)], stdout=out, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 60
            while not _answers(f"{url}/moto-api/"):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield told
        finally:
            server.kill()
            server.wait()
