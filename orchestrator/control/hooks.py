"""Telling one thing to one hook: a webhook over HTTP, or a command of the user's.

Whatever goes wrong becomes an `Outcome`. No word of ours holds the webhook's address, which is a
secret: it is looked up in this process's environment and kept nowhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, InvalidURL
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from orchestrator.errors import RequestError, os_words
from orchestrator.ledger.storage import to_json
from orchestrator.spec.cluster import Notify
from orchestrator.spec.loader import resolve_env

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0
_ASK_LATER = frozenset({408, 425, 429})
_SERVER_ERRORS = 500
WHERE = "cluster: notify.webhook"

Payload = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of telling."""

    was_told: bool
    """Whether the hook has taken it."""
    tries: int
    """How often it was sent."""
    problem: str = ""
    """Why it was given up."""


Beat = Callable[[], None]
"""Called before each try: says that the caller lives."""
Hook = Callable[[Payload, Beat], Outcome]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Elsewhere a POST would become a GET, and its answer say nothing."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirection is an error."""


def hooks_of(notify: Notify) -> dict[str, Hook]:
    """What a cluster file wants to be told, by name."""
    hooks: dict[str, Hook] = {}
    if notify.command:  # first: a webhook's server may be away for longer than a command may last
        hooks["command"] = lambda payload, _: call(notify, payload)
    if notify.webhook:
        hooks["webhook"] = lambda payload, beat: post(notify, payload, beat)
    return hooks


def address_of(notify: Notify, where: str = WHERE) -> str:
    """The webhook's address, looked up here. Raises RequestError, without the address in it."""
    url = resolve_env(notify.webhook or "", where=where, is_place=False)
    with suppress(ValueError):  # its text quotes the address
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    raise RequestError(f"{where}: {notify.webhook} holds no address of http:// or https://")


def post(
    notify: Notify,
    payload: Payload,
    beat: Beat = lambda: None,
    first_wait_s: float = FIRST_WAIT_S,
) -> Outcome:
    """POST as JSON, again with growing waits while the server is busy or gone, up to a deadline."""
    deadline, wait_s, tries = time.monotonic() + notify.deadline_s, first_wait_s, 0
    try:
        url = address_of(notify)
    except RequestError as error:
        return Outcome(was_told=False, tries=0, problem=str(error))
    while True:
        beat()
        tries += 1
        problem, asked_s = _post_once(url, payload, notify.timeout_s)
        if not problem:
            return Outcome(was_told=True, tries=tries)
        wait_s = max(wait_s, asked_s or 0.0)
        if asked_s is None or time.monotonic() + wait_s > deadline:
            return Outcome(was_told=False, tries=tries, problem=problem)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _post_once(url: str, payload: Payload, timeout_s: float) -> tuple[str, float | None]:
    """What went wrong, and the least wait in seconds before another try; None when none helps."""
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, to_json(payload), headers, method="POST")
        opener.open(request, timeout=timeout_s).close()
    except HTTPError as error:
        with error:
            may_pass = error.code in _ASK_LATER or error.code >= _SERVER_ERRORS
            asked = error.headers.get("Retry-After", "")
        asked_s = float(asked) if asked.isdecimal() else 0.0
        return f"the server answers {error.code}", asked_s if may_pass else None
    except URLError as error:
        reason = error.reason
        return os_words(reason) if isinstance(reason, OSError) else "cannot be asked", 0.0
    except (ValueError, InvalidURL):  # its text may quote the address
        return "its address is none", None
    except (OSError, HTTPException) as error:
        return f"no answer ({type(error).__name__})", 0.0
    return "", None


def call(notify: Notify, payload: Payload) -> Outcome:
    """Run the command with the payload on stdin; ended with its children when its time is over."""
    try:
        process = subprocess.Popen(
            notify.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(was_told=False, tries=0, problem=os_words(error))
    problem = _watch(process, to_json(payload), notify.timeout_s)
    return Outcome(was_told=not problem, tries=1, problem=problem)


def _watch(process: subprocess.Popen[bytes], data: bytes, timeout_s: float) -> str:
    try:
        process.communicate(data, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"not done after {timeout_s:g} s"
    return f"exit code {process.returncode}" if process.returncode else ""
