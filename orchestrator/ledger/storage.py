"""A folder of the store, on a path or in a bucket, in which an object appears whole or not at all.

Only four things are asked of the store, because object stores give no more: exclusive creation,
whole-object overwrite, listing and reading. There are no renames and no appends. Nothing is
answered from a cache: other machines write to the same folder. What goes wrong is an OSError.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import AlreadyExistsError, CorruptError
from orchestrator.ledger.path_store import TEMPORARY, PathStore

if TYPE_CHECKING:
    from orchestrator.ledger.object_store import ObjectStore


LEFT_FOR_S = 60.0
"""A file that has been half written for so long was left by a killed writer."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> bytes:
    """Readable JSON with sorted keys; floats keep every digit."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # bytes of a file name that are no UTF-8


class Storage:
    """A folder by its URL: ``/path``, ``file://``, ``s3://bucket/prefix``, ``gs://``, ``az://``.

    ``memory://`` is a bucket of this process, for tests. Every method raises OSError where the
    store does not do as asked.
    """

    def __init__(self, url: str) -> None:
        is_path = "://" not in url or url.startswith("file://")
        path = Path(url.removeprefix("file://")).expanduser().absolute()
        self.local_root = path if is_path else None
        self.url = str(path) if is_path else url.rstrip("/")
        self._objects: PathStore | ObjectStore = PathStore(path) if is_path else _bucket(url)

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def at(self, *parts: str) -> Storage:
        """The folder ``parts`` below this one."""
        return Storage("/".join((self.url, *parts)))

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        return self._objects.exists(path)

    def read_bytes(self, path: str, *, start: int = 0) -> bytes:
        """The object from byte ``start`` on, counted from its end when negative.

        Raises FileNotFoundError.
        """
        return self._objects.read_bytes(path, start)

    def read_json(self, path: str) -> Any:
        """The object parsed as JSON.

        Raises FileNotFoundError, or CorruptError when it does not parse.
        """
        try:
            return json.loads(self.read_bytes(path))
        except ValueError as error:
            raise CorruptError(f"{self.url}/{path}: not valid JSON ({error}); remove it") from None

    def find_json(self, path: str) -> Any:
        """The object parsed as JSON; None where there is none. Raises CorruptError."""
        try:
            return self.read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create(self, path: str, data: bytes) -> None:
        """Create the object, whole and durable.

        Raises AlreadyExistsError when something is there.
        """
        self._objects.create(path, data)

    def create_json(self, path: str, value: Any) -> None:
        """Create the object from a value. Raises AlreadyExistsError when something is there."""
        self.create(path, to_json(value))

    def create_next(self, folder: str, name: str, value: Callable[[int], Any]) -> int:
        """Create ``folder/0007<name>`` from a value, under the number after the highest there.

        Whoever else does so at once gets another number. Returns the number.
        """
        number = max(self.numbers(folder), default=0)
        while True:
            number += 1
            with suppress(AlreadyExistsError):
                self.create_json(f"{folder}/{number:04d}{name}", value(number))
                return number

    def replace(self, path: str, data: bytes) -> None:
        """Overwrite the whole object; a reader sees the old bytes or the new ones."""
        self._objects.replace(path, data)

    def list(self, prefix: str = "") -> dict[str, int]:
        """Relative path to size in bytes of every object below ``prefix``, sorted."""
        return dict(sorted(self._objects.list(prefix).items()))

    def children(self, prefix: str = "") -> tuple[str, ...]:
        """Names directly below ``prefix``, sorted: one listing, not a walk."""
        return tuple(sorted(self._objects.children(prefix)))

    def numbers(self, folder: str) -> tuple[int, ...]:
        """The numbers that names in a folder begin with, sorted; what has none is not ours."""
        parts = (name.partition(".")[0] for name in self.children(folder))
        return tuple(sorted(int(part) for part in parts if part.isdecimal()))

    def age_s(self, path: str) -> float:
        """How long ago the object was written, in seconds by the store's own clock.

        Raises FileNotFoundError.
        """
        return max(self._now() - self._objects.written_at(path), 0.0)

    def upload(self, local: Path, path: str, tick: Callable[[], None] = lambda: None) -> str:
        """Create the object from a local file; its sha256. The same bytes already there are fine.

        ``tick`` is called with every part that has gone. Raises CorruptError when other bytes are
        there.
        """
        digest = sha256_of(local)
        try:
            self._objects.upload(local, path, tick)
        except AlreadyExistsError:
            if self.digest(path) != digest:
                raise CorruptError(f"{self.url}/{path}: holds other bytes than {local}") from None
        return digest

    def fetch(self, path: str, into: Path) -> Path:
        """A local file with the object's bytes: the object itself on a path, else a copy."""
        if isinstance(self._objects, PathStore):
            return Path(self.url, path)
        self._objects.fetch(path, into / path)
        return into / path

    def digest(self, path: str) -> str:
        """The SHA-256 of the object's bytes as they are now, in hex."""
        if isinstance(self._objects, PathStore):
            return sha256_of(Path(self.url, path))
        return self._objects.digest(path)

    def delete(self, path: str) -> None:
        """Remove the object; nothing happens when it is not there."""
        self._objects.delete(path)

    def sweep(self, *, but: str) -> int:
        """Remove what killed writers left half written below this folder; how many things.

        Call it with the only right to write here; ``but`` is a folder in which others write too.
        """
        if isinstance(self._objects, PathStore):
            return self._objects.sweep(but)
        return self._objects.sweep()

    def sweep_old(self, older_s: float = LEFT_FOR_S) -> int:
        """Remove files on a path that have been half written for so long; how many.

        For folders in which others may write. In a bucket nothing is visible before it is whole.
        """
        if isinstance(self._objects, PathStore):
            return self._objects.sweep(before=self._now() - older_s)
        return 0

    def _now(self) -> float:
        """When the store says an object was written just now; our time where none can be."""
        probe = f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            self.replace(probe, b"")
            return self._objects.written_at(probe)
        except OSError:
            return time.time()
        finally:
            with suppress(OSError):
                self.delete(probe)


def _bucket(url: str) -> ObjectStore:
    from orchestrator.ledger.object_store import (
        ObjectStore,
    )  # its library is not imported for paths

    return ObjectStore(url)
