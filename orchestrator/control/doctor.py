"""Whether this machine and this cluster can do what a run will ask of them."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.control.cluster_choice import existing, open_store
from orchestrator.control.executor import Check, executor_of
from orchestrator.control.hooks import address_of
from orchestrator.errors import OrchestratorError, os_words
from orchestrator.ledger.source_files import root_at
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import require_usable
from orchestrator.ledger.stuck_files import answer_within_s
from orchestrator.spec.cluster import Cluster, Notify
from orchestrator.spec.loader import resolve_env


def examine(cluster: Cluster) -> Iterator[Check]:
    """Every check that makes sense for the cluster, in order."""
    yield Check(
        "python", sys.version_info >= (3, 11), f"{sys.version.split()[0]}; 3.11 or later is needed"
    )
    yield _guarded("store", partial(_store, cluster))
    # A root or model that is not here matters only to the recipes that name it.
    for name, data in cluster.data_roots.items():
        where = f"data.{name}"
        yield _guarded(where, partial(_root, data.root, where), is_optional=True)
    for name, folder in cluster.models.items():
        where = f"models.{name}"
        yield _guarded(where, partial(_folder, folder, where, "config.json"), is_optional=True)
    if cluster.notify.webhook:
        elsewhere = executor_of(cluster).supervises_elsewhere
        yield _guarded("notify.webhook", partial(_webhook, cluster.notify), is_optional=elsewhere)
    if cluster.notify.command:
        yield _guarded("notify.command", partial(_program, cluster.notify.command[0]))
    yield from executor_of(cluster).checks(cluster)


def _guarded(name: str, check: Callable[[], str], *, is_optional: bool = False) -> Check:
    """What a check says; its error is the answer when it fails."""
    try:
        return Check(name, True, check(), is_optional)
    except OSError as error:
        return Check(name, False, os_words(error), is_optional)
    except OrchestratorError as error:
        return Check(name, False, str(error).removeprefix(f"{name}: "), is_optional)


def _store(cluster: Cluster) -> str:
    """Write, read, refuse to write twice, delete: what every artifact relies on.

    Of a store that is not there yet, the folder that it is to lie in is asked.
    """
    storage = open_store(cluster).storage
    answer = f"{storage.url}: exclusive creation works"
    if storage.local_root and not storage.local_root.exists():
        storage = Storage(str(existing(storage.local_root)))
        answer = f"{answer} in {storage.url}, where it is to be created"
    require_usable(storage)
    return answer


def _webhook(notify: Notify) -> str:
    """Whether the webhook's machine takes connections; it is told nothing."""
    address = urlsplit(address_of(notify))
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    try:
        socket.create_connection((address.hostname or "", port), notify.timeout_s).close()
    except OSError as error:
        raise OSError(f"{address.hostname}:{port}: {os_words(error)}; check it") from None
    return f"{address.hostname}:{port} takes connections; nothing was sent"


def _program(name: str) -> str:
    if not (found := shutil.which(name)):
        raise OSError(f"{name}: no such program here; check its path")
    return found


def _root(value: str, where: str) -> str:
    root = root_at(resolve_env(value, where=where), where=where)
    if isinstance(root, Path):
        return _folder(str(root), where, None)
    root.require(answer_within_s())
    return str(root)


def _folder(value: str, where: str, needed: str | None) -> str:
    path = Path(resolve_env(value, where=where))
    if not path.is_dir() or (needed and not (path / needed).is_file()):
        raise OSError(
            f"{path}: {f'no {needed} in it' if path.is_dir() else 'not a folder'}; check the path"
        )
    os.scandir(path).close()
    return str(path)
