"""What a model hub says of its models, where it answers at once: nothing here depends on it.

`HF_ENDPOINT` names another hub, `HF_HUB_OFFLINE=1` asks none, as for the hub's own library.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

from orchestrator.spec.recipe import COMMIT

HUB = "https://huggingface.co"
TIMEOUT_S = 2.0
_MAX_BYTES = 1_000_000


class Hub:
    """A hub that is asked until it once does not answer in time."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        self._is_silent = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        self._is_silent |= not self._endpoint.startswith(("http://", "https://"))

    def commit_of(self, model: str, name: str) -> str:
        """The commit that a branch or tag of a model is at now; empty when the hub is silent."""
        found = self._ask(f"api/models/{quote(model)}/revision/{quote(name, safe='')}")
        commit = str(found.get("sha", ""))
        return commit if COMMIT.fullmatch(commit) else ""

    def config_of(self, model: str, commit: str) -> dict[str, Any]:
        """A model's ``config.json``, from the hub's cache here where it is in; empty when not."""
        with suppress(OSError, ValueError, RuntimeError):  # the last: nobody's home
            return _section(_cached(model, commit).read_bytes())
        return self._ask(f"{quote(model)}/resolve/{commit}/config.json")

    def _ask(self, path: str) -> dict[str, Any]:
        """The JSON at a path. In a thread of its own: no time-out covers the look-up of a name."""
        if self._is_silent:
            return {}
        answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        url = f"{self._endpoint}/{path}"
        threading.Thread(target=lambda: answers.put(self._answer(url)), daemon=True).start()
        with suppress(queue.Empty):
            return answers.get(timeout=self._timeout_s)
        self._is_silent = True
        return {}

    def _answer(self, url: str) -> dict[str, Any]:
        """What the hub says; nothing of what it does not know or hides."""
        try:
            with urllib.request.urlopen(url, timeout=self._timeout_s) as answer:
                return _section(answer.read(_MAX_BYTES))
        except (HTTPError, HTTPException, ValueError):  # also of a URL that is none
            return {}
        except OSError:
            self._is_silent = True
            return {}


def _cached(model: str, commit: str) -> Path:
    """Where the hub's own library keeps the config of a model that was fetched before."""
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))
    return cache / f"models--{model.replace('/', '--')}" / "snapshots" / commit / "config.json"


def _section(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
