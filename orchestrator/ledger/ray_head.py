"""How workers find the Ray head of a data stage: its address and token, in a file of mode 0600.

A head that moves publishes anew; workers look again and again.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.errors import RequestError
from orchestrator.ledger.storage import Storage

_NAME = "head.json"


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """What a worker needs to join a Ray head."""

    address: str
    """``host:port`` of the head's Ray."""
    token: str
    """What Ray asks everybody for."""


def publish(stage: Storage, head: RayHead) -> None:
    """Say where the head is, readable by this user alone (mode 0600)."""
    path = _path(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{_NAME}-{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(head), file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read(stage: Storage) -> RayHead | None:
    """Where the head is; None while there is none."""
    try:
        return RayHead(**json.loads(_path(stage).read_text()))
    except FileNotFoundError:
        return None


def withdraw(stage: Storage) -> None:
    """Say that there is no head any more."""
    _path(stage).unlink(missing_ok=True)


def _path(stage: Storage) -> Path:
    if stage.local_root is None:
        raise RequestError(
            f"{stage.url}: workers find their head in a store that is a path; use one"
        )
    return stage.local_root / _NAME
