"""Copies objects between stores; what arrives has the digest of what was read.

Each file goes through this machine's disk where a store is no path, and never whole through its
memory. What the target has already is read and compared, not written again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.errors import CorruptError
from orchestrator.ledger.storage import Storage, sha256_of

FILES_AT_ONCE = 4
"""A store takes the parts of a large one at once besides."""
_TRIES = 3
"""A file that differs is read again, for the way to a bucket may have harmed it."""


@dataclass(frozen=True)
class Transfer:
    """One mover's way of copying."""

    scratch: Path
    """A local folder with room for the largest files."""
    keep: Callable[[], None] = lambda: None
    """Called before each file; raises what forbids to go on."""
    copied: Callable[[int], None] = lambda _num_bytes: None
    """Called with the bytes of each file that is there."""

    def copy(self, source: Storage, target: Storage, files: Mapping[str, str]) -> None:
        """Copy ``{relative path: sha256 in hex}``.

        Raises CorruptError when a file is not what its digest says, FileNotFoundError for one that
        is missing. A file without a digest may be growing, and may be gone.
        """
        there = target.list()
        one = partial(self._copy, source, target, there)
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for _ in pool.map(one, files, files.values()):
                pass

    def _copy(
        self, source: Storage, target: Storage, there: Mapping[str, int], path: str, sha256: str
    ) -> None:
        self.keep()
        is_there = path in there
        for left in reversed(range(_TRIES)):
            try:
                size, read = self._copy_once(source, target, path, sha256, is_there=is_there)
            except FileNotFoundError:
                if sha256:
                    raise
                return
            except CorruptError:
                if not left:
                    raise
                continue
            is_there = True
            if target.digest(path) == read:
                self.copied(size)
                return
        if sha256:
            raise CorruptError(
                f"{target.url}/{path}: holds other bytes than were written; look at that store"
            )

    def _copy_once(
        self, source: Storage, target: Storage, path: str, sha256: str, *, is_there: bool
    ) -> tuple[int, str]:
        """The size and digest of what was read, which is now there."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            local = source.fetch(path, Path(folder))
            read = sha256_of(local)
            if sha256 and read != sha256:
                raise CorruptError(f"{source.url}/{path}: bytes differ from the manifest's sha256")
            size = local.stat().st_size
            if is_there and target.digest(path) == read:
                return size, read
            if is_there:  # of a writer who did not come to an end
                target.delete(path)
            target.upload(local, path)
            return size, read
