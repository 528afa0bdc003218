"""The code that a run's jobs execute: copied into the run, and found again where they run.

Jobs import it from the run's folder where the store is a path, else from a local copy that is
recognised by its content.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.errors import CorruptError, RequestError
from orchestrator.ledger.records import record_at, understood
from orchestrator.ledger.run import CODE, RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.temporary import own_temporary_folder

FORMAT = 2
"""Of code and run folder together: a run whose record names another is executed by nothing here."""
_SUFFIXES = (".py", ".html", ".css", ".js", ".txt")
"""Modules, and what the report's page is made of."""
_REMEDY = "submit the recipe again with another --name: finished stages are reused"


def code_snapshot() -> dict[str, bytes]:
    """Relative path to bytes of everything the jobs execute."""
    snapshot: dict[str, bytes] = {}
    for package in CODE:
        root = _package_folder(package)
        snapshot |= {f"{package}/{path}": data for path, data in _code_in(root).items()}
    return snapshot


def code_origin(snapshot: Mapping[str, bytes]) -> dict[str, Any]:
    """The record of a snapshot: its digest, the checkout's commit and patch, installed versions."""
    checkout = _package_folder("orchestrator").parent
    return {
        "format": FORMAT,
        "sha256": snapshot_digest(snapshot),
        "commit": _git(checkout, "rev-parse", "HEAD"),
        "patch": _git(checkout, "diff", "HEAD", "--", "orchestrator", "jobs"),
        "python": sys.version.split()[0],
        "packages": dict(sorted(_installed().items())),
    }


def _installed() -> dict[str, str]:
    """Versions by package; what an installation that was cut short has left says neither."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        with suppress(FileNotFoundError):
            if name := distribution.metadata["Name"]:
                found[name] = distribution.version
    return found


def require_executable(run: RunFolder) -> None:
    """Raises RequestError when the run's code is that of an earlier version."""
    if _origin(run).get("format") != FORMAT:
        raise RequestError(
            f"{run.name}: was submitted by another version, which alone can go on with it; submit "
            "the recipe again with another --name: finished stages are reused"
        )


def _origin(run: RunFolder) -> dict[str, Any]:
    return record_at(run.storage, "code.json", _REMEDY)


def snapshot_digest(snapshot: Mapping[str, bytes]) -> str:
    """SHA-256 of all paths and bytes, in hex."""
    digest = hashlib.sha256()
    for path, data in sorted(snapshot.items()):
        digest.update(f"{path}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def code_folder(run: RunFolder) -> Path:
    """A local folder with the run's code, fetched where the store is no path.

    Raises CorruptError when what was fetched is not what was submitted.
    """
    if run.storage.local_root is not None:
        return run.storage.local_root / "code"
    with understood(f"{run.storage.url}/code.json", _REMEDY):
        sha256 = str(_origin(run)["sha256"])
    name = f"code-{sha256[:16]}-"
    # Another process may write the copy that is there, or a sweep of old files have taken some.
    copies = sorted(own_temporary_folder().glob(f"{name}*"))
    whole = (copy for copy in copies if snapshot_digest(_code_in(copy)) == sha256)
    return next(whole, None) or _fetch(run, sha256, name)


def code_env(run: RunFolder) -> dict[str, str]:
    """What makes a Python process import the run's own code, whatever folder it is started in."""
    return {"PYTHONPATH": str(code_folder(run)), "PYTHONSAFEPATH": "1"}


def _fetch(run: RunFolder, sha256: str, name: str) -> Path:
    """A new copy, which no other process changes: some may execute the others."""
    names = [path.removeprefix("code/") for path in run.storage.list("code")]
    snapshot = {path: run.storage.read_bytes(f"code/{path}") for path in names}
    if snapshot_digest(snapshot) != sha256:
        raise CorruptError(f"{run.storage.url}/code: bytes differ from code.json; submit again")
    folder = Storage(tempfile.mkdtemp(prefix=name, dir=own_temporary_folder()))
    for path, data in snapshot.items():
        folder.replace(path, data)
    return Path(folder.url)


def _code_in(folder: Path) -> dict[str, bytes]:
    """Relative path to bytes of all code below a folder."""
    paths = (p for p in sorted(folder.rglob("*")) if p.suffix in _SUFFIXES and p.is_file())
    try:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    except FileNotFoundError:  # a sweep goes on
        return {}


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RequestError(
            f"package {package}: not found beside orchestrator; reinstall the project"
        )
    return Path(spec.origin).parent


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, errors="replace", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
