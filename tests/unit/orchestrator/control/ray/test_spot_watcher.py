"""A cloud's notice, read from a served metadata service; draining needs a Ray cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator.control.ray.spot_watcher import CLOUDS, Metadata, drain, main, watch
from orchestrator.errors import BackendError, ExitCode
from tests.metadata_service import MetadataService


@pytest.fixture
def service() -> MetadataService:
    return MetadataService()


@pytest.fixture
def url(service: MetadataService) -> Iterator[str]:
    with service.serving() as url:
        yield url


@pytest.mark.parametrize("name", CLOUDS)
def test_a_notice_is_read_with_its_time(name: str, service: MetadataService, url: str) -> None:
    cloud, metadata = CLOUDS[name](), Metadata(url)
    service.of_another = time.time() + 10
    assert cloud.ends_at(metadata) is None
    service.ends_at = float(round(time.time() + 30))
    ends_at = cloud.ends_at(metadata)
    assert ends_at == pytest.approx(service.ends_at, abs=5)


@pytest.mark.parametrize("name", CLOUDS)
def test_a_service_that_is_away_or_forgets_is_asked_again(
    name: str, service: MetadataService, url: str
) -> None:
    cloud = CLOUDS[name]()
    assert cloud.ends_at(Metadata(url)) is None
    service.forget_tokens()
    service.refusals = 3
    service.ends_at = time.time() + 30
    assert watch(cloud, Metadata(url), 0.01) == pytest.approx(service.ends_at, abs=5)


@pytest.mark.parametrize("name", CLOUDS)
def test_a_proxy_is_never_asked(
    name: str, service: MetadataService, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    service.ends_at = time.time() + 30
    assert CLOUDS[name]().ends_at(Metadata(url))


def test_no_service_is_an_error_with_its_address() -> None:
    with pytest.raises(BackendError, match=r"http://127\.0\.0\.1:9: does not answer"):
        CLOUDS["gcp"]().ends_at(Metadata("http://127.0.0.1:9/"))


def test_a_node_that_cannot_be_drained_is_an_error_at_its_end() -> None:
    began = threading.Event()

    class Node:
        def drain(self, _ends_at: float) -> bool:
            began.set()
            raise RuntimeError("no head")

    with pytest.raises(BackendError, match="was not drained"):
        drain(Node(), time.time() + 0.2, 0.05)
    assert began.is_set()


def test_half_a_node_is_refused() -> None:
    assert main(["--cloud", "aws", "--node-id", "ab"]) == ExitCode.BAD_REQUEST
