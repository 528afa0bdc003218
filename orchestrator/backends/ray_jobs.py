"""The Jobs API of a Ray cluster, over HTTP; Ray itself is not needed here.

A job is a command on the head. It is recognised by its tag, which is its id there, so that a
submission whose answer is lost is never repeated. What the API remembers is lost with the head:
nothing here is the truth about a run. (docs.ray.io, "Ray Jobs REST API".)
"""

from __future__ import annotations

import json
import shlex
import time
import urllib.request
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

from orchestrator.backends.base import Job, JobRef
from orchestrator.errors import BackendError
from orchestrator.ledger.status import JobState, JobStatus

NAME = "ray"
_STATES = {
    "PENDING": JobState.QUEUED,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
    "STOPPED": JobState.CANCELLED,
}
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_TRIES, _PAUSE_S = 4, 1.0
TOKEN_REMEDY = "give the cluster's token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


class RayJobs:
    """The jobs of one cluster."""

    def __init__(
        self, url: str, token: str = "", *, timeout_s: float = 20.0, pause_s: float = _PAUSE_S
    ) -> None:
        """``url``: of the cluster's dashboard, ``http://host:port``."""
        self._url, self._token = url.rstrip("/"), token
        self._timeout_s, self._pause_s = timeout_s, pause_s

    def version(self) -> str:
        """The cluster's version of Ray. Raises BackendError."""
        return str((self._asked("GET", "version") or {}).get("ray_version", ""))

    @property
    def url(self) -> str:
        """Where it is asked."""
        return self._url

    def is_open(self) -> bool:
        """Whether it answers those without a token, too."""
        try:
            RayJobs(self._url, timeout_s=self._timeout_s)._asked("GET", "jobs/")
        except BackendError:
            return False
        return True

    def submit(self, job: Job, after: Sequence[JobRef] = ()) -> JobRef:
        """Start a command on the head, unless one with its tag is there already."""
        if after:
            raise BackendError(f"{job.name}: the Jobs API has no queue; submit it later")
        ref = JobRef(backend=NAME, id=job.tag, submitted_at=time.time())
        asked = {
            "entrypoint": shlex.join(job.argv),
            "submission_id": job.tag,
            "entrypoint_num_cpus": 0,
            "runtime_env": {"env_vars": dict(job.env)} if job.env else {},
            "metadata": {"run": job.name},
        }
        for left in reversed(range(_TRIES)):
            try:
                self._asked("POST", "jobs/", asked)
            except BackendError:
                # The answer may be all that was lost; a job of this tag is ours, whoever sent it.
                if self._found(job.tag) is None:
                    if not left:
                        raise
                    time.sleep(self._pause_s)
                    continue
            break
        return ref

    def poll(self, refs: Sequence[JobRef]) -> dict[JobRef, JobStatus]:
        """How each stands; ``unknown`` for what the head does not remember."""
        return {ref: self._status(ref) for ref in refs}

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """Stop each: SIGTERM, and soon after SIGKILL."""
        for ref in refs:
            self._asked("POST", f"jobs/{quote(ref.id)}/stop", {})

    def forget(self, ref: JobRef) -> None:
        """Let the head forget a job that has ended."""
        self._asked("DELETE", f"jobs/{quote(ref.id)}")

    def running(self) -> dict[str, str]:
        """Tag to name of all jobs that were submitted and have not ended."""
        submitted = (job for job in self._asked("GET", "jobs/") or () if job.get("submission_id"))
        live = (job for job in submitted if job.get("status") in ("PENDING", "RUNNING"))
        return {job["submission_id"]: (job.get("metadata") or {}).get("run", "") for job in live}

    def log(self, ref: JobRef) -> str:
        """What a job has printed; empty where that is not known any more."""
        found = self._asked("GET", f"jobs/{quote(ref.id)}/logs")
        return str((found or {}).get("logs") or "")

    def _status(self, ref: JobRef) -> JobStatus:
        found = self._found(ref.id)
        if found is None:
            return JobStatus(state=JobState.UNKNOWN)
        state = _STATES.get(str(found.get("status")), JobState.UNKNOWN)
        detail = str(found.get("message") or "") if state is not JobState.SUCCEEDED else ""
        return JobStatus(state=state, exit_code=found.get("driver_exit_code"), detail=detail)

    def _found(self, tag: str) -> Mapping[str, Any] | None:
        """What the head knows of a job; None for nothing. Tries again where it does not answer."""
        for left in reversed(range(_TRIES)):
            try:
                found: Mapping[str, Any] | None = self._asked("GET", f"jobs/{quote(tag)}")
                return found
            except BackendError:
                if not left:
                    raise
                time.sleep(self._pause_s)
        return None

    def _asked(self, method: str, path: str, body: object = None) -> Any:
        """The answer's JSON; None where there is no such thing."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}/api/{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                return json.loads(answer.read() or b"{}")
        except HTTPError as error:
            with error:
                if error.code == HTTPStatus.NOT_FOUND:
                    return None
                raise BackendError(f"ray: {self._url}: {_words(error)}") from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise BackendError(
                f"ray: {self._url} does not answer ({reason}); see whether the cluster is up and "
                "its dashboard reachable from here"
            ) from None


def _words(error: HTTPError) -> str:
    """What the head says; the last line of what Python printed there."""
    if error.code in _REFUSED:
        return f"refuses us ({error.code}); {TOKEN_REMEDY}"
    lines = error.read().decode(errors="replace").strip().splitlines()
    return f"{lines[-1].strip()[:300] if lines else error.reason} ({error.code})"
