"""What the store did not take: kept on this machine, for whoever asks here.

A store that is full, read-only or gone takes no word about that either. Words belong to a folder of
the store, by its URL, and have a name:

    <own temporary folder>/last-words/<digest of the URL>-end.json

Where that disk is as full, they are in memory (/dev/shm) until the machine is started again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.ledger.temporary import own_temporary_folder

_BASES = ("", "/dev/shm")
_ABSENT = (OSError, OrchestratorError)


def leave(url: str, name: str, words: Mapping[str, Any]) -> bool:
    """Keep words about the folder at ``url``, over those before; whether they could be."""
    for place in _places():
        with suppress(*_ABSENT):
            place.replace(_file(url, name), to_json(dict(words)))
            return True
    return False


def find(url: str, name: str) -> dict[str, Any] | None:
    """The words of that name about a folder; None where there are none on this machine."""
    for place in _places():
        with suppress(*_ABSENT):
            return dict(place.read_json(_file(url, name)))
    return None


def forget(url: str, *names: str) -> None:
    """Remove words: they have been written where they belong, or are true no more."""
    for place in _places():
        for name in names:
            with suppress(*_ABSENT):
                place.delete(_file(url, name))


def _places() -> Iterator[Storage]:
    for base in _BASES:
        with suppress(*_ABSENT):
            yield Storage(str(own_temporary_folder(base) / "last-words"))


def _file(url: str, name: str) -> str:
    return f"{hashlib.sha256(url.encode()).hexdigest()[:24]}-{name}.json"
