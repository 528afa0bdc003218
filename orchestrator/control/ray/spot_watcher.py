"""Reads a cloud's notice that this machine will be taken back, and drains its Ray node in time.

``python -m orchestrator.control.ray.spot_watcher --cloud aws`` runs beside ``ray start`` on each
node, as one line of the launcher file. A node that drains is given nothing new; trainings on it
save and go on elsewhere, workers finish what they have, and the autoscaler starts another at once.

Sources: AWS, "Spot Instance interruption notices" (IMDSv2, two minutes); Google Cloud, "Preemptible
VM instances" (30 s); Azure, "Scheduled Events for Linux VMs" (30 s or more).
"""

from __future__ import annotations

import argparse
import email.utils
import json
import logging
import os
import re
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPException
from typing import NamedTuple, Protocol
from urllib.error import HTTPError

import psutil

from orchestrator.control.job import log_to_stderr
from orchestrator.control.ray.gcs import Gcs
from orchestrator.errors import BackendError, ExitCode, OrchestratorError, RequestError

METADATA_URL = "ORCHESTRATOR_METADATA_URL"
"""Environment variable with another base URL of the cloud's metadata service."""
SHORTEST_NOTICE_S = 30.0
"""What Google Cloud and Azure give at least."""
_EVERY_S = 2.0
_TIMEOUT_S = 5.0
_AWS_TOKEN_S = 21_600

log = logging.getLogger(__name__)


class Cloud(Protocol):
    """How a cloud tells a machine that it will be taken back."""

    url: str
    """Base of its metadata service, as machines see it."""

    def ends_at(self, service: Metadata) -> float | None:
        """When this machine ends, in seconds since the epoch; None while nobody says so.

        Raises BackendError.
        """
        ...


class Metadata:
    """A cloud's metadata service."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        # Never by way of a proxy: another machine would be asked about itself.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path: str, headers: Mapping[str, str], method: str = "GET") -> str | None:
        """The answer's text; None where there is nothing. Raises BackendError."""
        request = urllib.request.Request(
            f"{self._url}/{path}", method=method, headers=dict(headers)
        )
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                return str(answer.read().decode())
        except HTTPError as error:
            error.close()
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            raise BackendError(f"{self._url}/{path}: {error.reason} ({error.code})") from None
        except (OSError, HTTPException, ValueError) as error:
            raise BackendError(f"{self._url}: does not answer ({error})") from None


class Aws:
    """A document with the time, two minutes ahead; asked for with a token of the session."""

    url = "http://169.254.169.254"

    def __init__(self) -> None:
        self._token = ""

    def ends_at(self, service: Metadata) -> float | None:
        """As `Cloud` has it."""
        if not self._token:
            life = {"X-aws-ec2-metadata-token-ttl-seconds": str(_AWS_TOKEN_S)}
            self._token = service.ask("latest/api/token", life, "PUT") or ""
        own = {"X-aws-ec2-metadata-token": self._token}
        try:
            found = service.ask("latest/meta-data/spot/instance-action", own)
        except BackendError:
            self._token = ""  # it may have run out
            raise
        if not found:
            return None
        said = json.loads(found)["time"]
        return datetime.fromisoformat(said).replace(tzinfo=UTC).timestamp()


class Gcp:
    """A flag; the machine ends half a minute after it is set."""

    url = "http://metadata.google.internal"

    def ends_at(self, service: Metadata) -> float | None:
        """As `Cloud` has it."""
        path = "computeMetadata/v1/instance/preempted"
        found = service.ask(path, {"Metadata-Flavor": "Google"}) or ""
        return time.time() + SHORTEST_NOTICE_S if found.strip().upper() == "TRUE" else None


class Azure:
    """Events of a whole group of machines; those of this one are told by its name."""

    url = "http://169.254.169.254"

    def __init__(self) -> None:
        self._name = ""

    def ends_at(self, service: Metadata) -> float | None:
        """As `Cloud` has it."""
        own = {"Metadata": "true"}
        if not self._name:
            path = "metadata/instance/compute/name?api-version=2021-02-01&format=text"
            self._name = service.ask(path, own) or ""
        found = service.ask("metadata/scheduledevents?api-version=2020-07-01", own) or "{}"
        for event in json.loads(found).get("Events", []):
            if event.get("EventType") == "Preempt" and self._name in event.get("Resources", []):
                return _not_before(event.get("NotBefore", ""))
        return None


def _not_before(said: str) -> float:
    """An empty time is that of an event that has begun."""
    try:
        return email.utils.parsedate_to_datetime(said).timestamp()
    except ValueError:
        return time.time() + SHORTEST_NOTICE_S


CLOUDS: Mapping[str, type[Cloud]] = {"aws": Aws, "gcp": Gcp, "azure": Azure}


class RayNode(NamedTuple):
    """The node of a Ray cluster that this machine is."""

    address: str
    """``host:port`` of the head's Ray."""
    node_id: str
    """In hex."""

    @classmethod
    def here(cls) -> RayNode | None:
        """That of the raylet that runs here; None while none does."""
        for process in psutil.process_iter(["name", "cmdline"]):
            words = " ".join(process.info["cmdline"] or ())
            if process.info["name"] != "raylet":
                continue
            node_id = re.search(r"--node_id=([0-9a-f]+)", words)
            address = re.search(r"--gcs-address=(\S+)", words)
            if node_id and address:
                return cls(address[1], node_id[1])
        return None

    def drain(self, ends_at: float) -> bool:
        """Tell the head that this node goes; whether it has understood."""
        refused = Gcs(self.address).drain(
            self.node_id, "PREEMPTION", "the cloud takes this machine back", int(ends_at * 1000)
        )
        if refused:
            log.warning("the head refuses to drain this node: %s", refused)
        return not refused


def watch(cloud: Cloud, service: Metadata, every_s: float) -> float:
    """When this machine ends, once the cloud says so."""
    said = ""
    while True:
        try:
            if (ends_at := cloud.ends_at(service)) is not None:
                return ends_at
            said = ""
        except (BackendError, ValueError, KeyError) as error:
            if str(error) != said:
                log.warning("no word of the cloud: %s", said := str(error))
        time.sleep(every_s)


def drain(node: RayNode | None, ends_at: float, every_s: float) -> None:
    """Drain this machine's node, however often that takes. Raises BackendError past its end."""
    while time.time() < ends_at:
        found = node or RayNode.here()
        try:
            if found and found.drain(ends_at):
                log.info("drained %s; it ends in %.0f s", found.node_id, ends_at - time.time())
                return
        except Exception as error:  # noqa: BLE001 (Ray raises of every kind)
            log.warning("the head cannot be told: %s", error)
        time.sleep(every_s)
    raise BackendError("ray: this node was not drained before its end; see the lines above")


def main(argv: Sequence[str] | None = None) -> int:
    """Wait for the notice, and drain the node."""
    parser = argparse.ArgumentParser(
        description="Drain this Ray node when its cloud takes it back."
    )
    parser.add_argument("--cloud", required=True, choices=CLOUDS)
    parser.add_argument("--metadata", help=f"base URL of its metadata service (or {METADATA_URL})")
    parser.add_argument("--node-id", help="of this node, where several are on this machine")
    parser.add_argument("--address", help="host:port of the head's Ray, beside --node-id")
    parser.add_argument("--every-s", type=float, default=_EVERY_S, help="between two looks")
    options = parser.parse_args(argv)
    log_to_stderr()
    try:
        if bool(options.node_id) != bool(options.address):
            raise RequestError("--node-id: goes with --address; give both or neither")
        cloud = CLOUDS[options.cloud]()
        service = Metadata(options.metadata or os.environ.get(METADATA_URL) or cloud.url)
        node = RayNode(options.address, options.node_id) if options.node_id else None
        drain(node, watch(cloud, service, options.every_s), min(1.0, options.every_s))
    except OrchestratorError as error:
        log.error("%s", error)
        return error.exit_code
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
