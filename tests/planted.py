"""Secrets that a test has planted: in what is written, and in what processes are called with."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil

from orchestrator.ledger.storage import Storage


def in_files(secrets: Collection[str], *folders: Path) -> list[str]:
    """The files below some folders that hold any of them."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        with suppress(OSError):  # a socket, or gone by now
            if path.is_file() and _holds(path.read_bytes(), secrets):
                found.append(str(path))
    return found


def in_store(secrets: Collection[str], storage: Storage) -> list[str]:
    """The objects of a store that hold any of them."""
    return [path for path in storage.list() if _holds(storage.read_bytes(path), secrets)]


def in_arguments(secrets: Collection[str]) -> list[str]:
    """The commands of processes of this machine that hold any of them."""
    commands = (" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
    return [command for command in commands if _holds(command.encode(), secrets)]


def _holds(data: bytes, secrets: Collection[str]) -> bool:
    return any(secret.encode() in data for secret in secrets)
