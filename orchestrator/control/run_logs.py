"""Local files for what a run's processes print and plot, copied to where its folder is no path.

Object stores take no appends, so each copy writes the whole file: only files that have grown, and
not too often.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.ledger.attempt import CURVES, OFFLINE_CURVES
from orchestrator.ledger.path_store import explained
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.temporary import own_temporary_folder

COPY_EVERY_S = 15.0

log = logging.getLogger(__name__)


class RunLogs:
    """The logs of one run on this machine."""

    def __init__(self, run: RunFolder, copy_every_s: float = COPY_EVERY_S) -> None:
        self._storage, self._every_s = run.storage, copy_every_s
        self._is_copied = run.storage.local_root is None
        digest = hashlib.sha256(run.storage.url.encode()).hexdigest()[:16]
        self.folder = run.storage.local_root or own_temporary_folder() / f"run-{digest}"
        """Has the layout of the run's own folder."""
        self._copied: dict[Path, tuple[int, int]] = {}
        self._copied_at = time.monotonic()

    def path(self, storage: Storage, name: str) -> Path:
        """The local file that is to be ``name`` in a folder of the run."""
        return self.folder / storage.url.removeprefix(self._storage.url).strip("/") / name

    def continued(self, storage: Storage, name: str) -> Path:
        """The same, with what earlier processes have printed in it."""
        path = self.path(storage, name)
        if self._is_copied and not path.exists() and storage.exists(name):
            with explained(path, "TMPDIR"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(storage.read_bytes(name))
        return path

    def copy(self, *, now: bool = False) -> bool:
        """Copy what has changed, when it is time for that or ``now``; whether nothing failed."""
        is_time = now or time.monotonic() - self._copied_at >= self._every_s
        if not self._is_copied or not is_time:
            return True
        self._copied_at = time.monotonic()
        # Trackers remove folders meanwhile, which such a walk does not mind.
        walk = ((Path(folder), names) for folder, _, names in os.walk(self.folder))
        files = sorted(folder / name for folder, names in walk for name in names)
        failed = [path for path in files if _is_kept(path) and not self._copy(path)]
        return not failed

    def close(self) -> None:
        """Copy everything, then remove the local files; those of a store out of reach stay."""
        if self._is_copied and self.copy(now=True):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _copy(self, path: Path) -> bool:
        """Copy a file if it has changed; False when the store, which may be back, refuses it."""
        try:
            found = path.stat()
            version = (found.st_size, found.st_mtime_ns)
            if self._copied.get(path) == version:
                return True
            data = path.read_bytes()
        except FileNotFoundError:  # removed just now
            return True
        try:
            self._storage.replace(path.relative_to(self.folder).as_posix(), data)
        except (OSError, OrchestratorError) as error:
            log.warning("logs: %s", error)
            return False
        self._copied[path] = version
        return True


def _is_kept(path: Path) -> bool:
    """Whether a file is for people: a log, the stacks of a rank that hangs, a training's curves."""
    is_log = path.suffix in (".log", ".out", ".txt")
    return is_log or not {CURVES, OFFLINE_CURVES}.isdisjoint(path.parts)
