"""A folder in any fsspec file system, in which an object appears whole or not at all.

Only four things are asked of the store, because object stores give no more: exclusive creation,
whole-object overwrite, listing and reading. There are no renames and no appends. On a path,
exclusive creation is a hard link of a fsynced temporary file; on an object store it is one
conditional PUT, or the conditional completion of a multipart upload.

Nothing is answered from a listing cache: other machines write to the same folder. What a store's
library raises in its own tongue becomes an OSError, so that callers need to know only one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from orchestrator.errors import AlreadyExistsError, BackendError, CorruptError, RequestError

TEMPORARY = ".tmp-"
"""Prefix of files that are not objects yet: what a killed writer leaves behind, and every listing
ignores."""

_CHUNK_BYTES = 1 << 20
_CONFLICT_PAUSES_S = (0.1, 0.5, 2.0)
"""S3 answers a conditional write with 409 while another write or a deletion is under way."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value: Any) -> bytes:
    """Readable JSON with sorted keys; floats keep every digit."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


class Storage:
    """A folder of the store, by its URL (``/path``, ``file://``, ``s3://bucket/prefix``, ``memory://``)."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = _open_file_system(url)
        self.local_root = Path(self._root or "/") if "file" in self._fs.protocol else None
        self.url = str(self.local_root) if self.local_root else url.rstrip("/")

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def at(self, *parts: str) -> Storage:
        """The folder ``parts`` below this one."""
        return Storage("/".join((self.url, *parts)))

    def exists(self, path: str) -> bool:
        """Whether the object is there; never answered from a cache."""
        with self._reached(path):
            return bool(self._fs.exists(self._full(path)))

    def read_bytes(self, path: str, *, start: int = 0) -> bytes:
        """The object from byte ``start`` on, counted from its end when negative.

        Raises FileNotFoundError.
        """
        if self.local_root:
            return _read_from(self.local_root / path, start)
        with self._reached(path):
            size = int(self._fs.info(self._full(path))["size"]) if start else 1
            begin = max(size + start, 0) if start < 0 else start
            if begin >= size:  # what a store says of a range behind the end differs
                return b""
            return bytes(self._fs.cat_file(self._full(path), start=begin or None))

    def find_json(self, path: str) -> Any:
        """The object parsed as JSON; None where there is none. Raises CorruptError."""
        try:
            return self.read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_json(self, path: str) -> Any:
        """The object parsed as JSON.

        Raises FileNotFoundError, or CorruptError when it does not parse.
        """
        try:
            return json.loads(self.read_bytes(path))
        except ValueError as error:
            raise CorruptError(f"{self.url}/{path}: not valid JSON ({error}); remove it") from None

    def create(self, path: str, data: bytes) -> None:
        """Create the object, whole and durable.

        Raises AlreadyExistsError when something is there.
        """
        if self.local_root:
            target = self.local_root / path
            _publish(_write_aside(target, io.BytesIO(data)), target)
            return
        full = self._full(path)
        self._exclusively(path, lambda: self._fs.pipe_file(full, data, mode="create"))

    def create_json(self, path: str, value: Any) -> None:
        """Create the object from a value. Raises AlreadyExistsError when something is there."""
        self.create(path, to_json(value))

    def create_next(self, folder: str, name: str, value: Callable[[int], Any]) -> int:
        """Create ``folder/0007<name>`` from a value, under the number after the highest there.

        Whoever else does so at once gets another number. Returns the number.
        """
        number = max((int(n.partition(".")[0]) for n in self.children(folder)), default=0)
        while True:
            number += 1
            with suppress(AlreadyExistsError):
                self.create_json(f"{folder}/{number:04d}{name}", value(number))
                return number

    def replace(self, path: str, data: bytes) -> None:
        """Overwrite the whole object; a reader sees the old bytes or the new ones."""
        if self.local_root:
            target = self.local_root / path
            _write_aside(target, io.BytesIO(data)).replace(target)
        else:
            with self._reached(path):
                self._fs.pipe_file(self._full(path), data)

    def list(self, prefix: str = "") -> dict[str, int]:
        """Relative path to size in bytes of every object below ``prefix``, sorted."""
        if self.local_root:
            return _list_path(self.local_root, prefix)
        try:
            with self._reached(prefix):
                found = self._fs.find(self._full(prefix), detail=True)
        except FileNotFoundError:
            return {}
        below = self._below(prefix)
        start = len(self._root.strip("/")) + 1
        sizes = {name.strip("/"): int(info["size"]) for name, info in sorted(found.items())}
        return {name[start:]: size for name, size in sizes.items() if name.startswith(below)}

    def children(self, prefix: str = "") -> tuple[str, ...]:
        """Names directly below ``prefix``, sorted: one listing, not a walk."""
        if self.local_root:
            folder = self.local_root / prefix
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            return tuple(sorted(n for n in names if not n.startswith(TEMPORARY)))
        try:
            with self._reached(prefix):
                found = self._fs.ls(self._full(prefix), detail=False)
        except FileNotFoundError:
            return ()
        below = self._below(prefix)
        there = (name.strip("/") for name in found)
        return tuple(sorted(name[len(below) :] for name in there if name.startswith(below)))

    def upload(self, local: Path, path: str) -> str:
        """Create the object from a local file; its sha256. The same bytes already there are fine.

        s3fs sends a file of 100 MiB or more in parts of 50 MiB, ten at a time (1 GiB of memory
        whatever the file's size), and makes their completion conditional, so S3's 5 GB for one PUT
        is no limit. Some stores ignore that condition: hence the object is looked for before.

        Raises CorruptError when other bytes are there.
        """
        digest = sha256_of(local)
        try:
            if self.local_root:
                with local.open("rb") as file:
                    _publish(_write_aside(self.local_root / path, file), self.local_root / path)
            else:
                self._put_exclusively(local, path)
        except AlreadyExistsError:
            if self.digest(path) != digest:
                raise CorruptError(f"{self.url}/{path}: holds other bytes than {local}") from None
        return digest

    def fetch(self, path: str, into: Path) -> Path:
        """A local file with the object's bytes: the object itself on a path, else a copy."""
        if self.local_root:
            return self.local_root / path
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reached(path):
            self._fs.get_file(self._full(path), str(target))
        return target

    def digest(self, path: str) -> str:
        """The SHA-256 of the object's bytes as they are now, in hex."""
        running = hashlib.sha256()
        with self._reached(path), self._fs.open(self._full(path), "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                running.update(chunk)
        return running.hexdigest()

    def delete(self, path: str) -> None:
        """Remove the object; nothing happens when it is not there."""
        try:
            with self._reached(path):
                self._fs.rm_file(self._full(path))
        except FileNotFoundError:
            return
        if self.local_root:
            _remove_empty_parents((self.local_root / path).parent, self.local_root)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def _below(self, prefix: str) -> str:
        """What names of objects below a folder begin with; the folder's own name does not."""
        return f"{self._full(prefix)}/".lstrip("/")

    def _put_exclusively(self, local: Path, path: str) -> None:
        full = self._full(path)
        if self._fs.isfile(full):
            raise AlreadyExistsError(f"{self.url}/{path}: already exists")
        self._exclusively(path, lambda: self._fs.put_file(str(local), full, mode="create"))

    def _exclusively(self, path: str, send: Callable[[], object]) -> None:
        """Carry out a conditional write. Raises AlreadyExistsError when something is there."""
        pauses_s = iter(_CONFLICT_PAUSES_S)
        while True:
            try:
                with self._reached(path):
                    send()
                return
            except OSError as error:
                status = _http_status(error)
                if isinstance(error, FileExistsError) or status == 412:
                    raise AlreadyExistsError(f"{self.url}/{path}: already exists") from None
                pause_s = next(pauses_s, None) if status == 409 else None
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    @contextmanager
    def _reached(self, path: str) -> Iterator[None]:
        """Turn what a store's library raises into an OSError that names the object."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise ConnectionError(
                f"{self.url}/{path}: the store did not do as asked ({problem}); "
                "see that it is up, and its address and credentials right"
            ) from error


def _read_from(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size + start, 0) if start < 0 else start)
        return file.read()


def _open_file_system(url: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise BackendError(f"store {url!r}: {error}; it is missing in this Python") from None
    except ValueError as error:
        raise RequestError(f"store {url!r}: {error}; use a path, s3:// or gs://") from None
    return fs, str(root).rstrip("/")


def _http_status(error: BaseException) -> int:
    """The HTTP status behind an error of s3fs, 0 when there is none.

    AWS names the condition that failed, from which s3fs makes a FileExistsError; other stores that
    speak S3 say just 412, from which s3fs makes "invalid argument".
    """
    response = getattr(error.__cause__, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    return int(metadata.get("HTTPStatusCode", 0))


def _write_aside(target: Path, data: BinaryIO) -> Path:
    """A temporary file beside the target with all of the data, on the disk."""
    with _open_aside(target) as file:
        shutil.copyfileobj(data, file, _CHUNK_BYTES)
        file.flush()
        os.fsync(file.fileno())
    return Path(file.name)


def _open_aside(target: Path) -> BinaryIO:
    """A new temporary file in the target's folder, which is made when it is not there."""
    while True:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            return target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}").open("xb")
        except (FileNotFoundError, FileExistsError):
            # Somebody deleted the folder's last object just now; mkdir says "exists" of a folder
            # that is gone when it looks again.
            if target.parent.is_file():
                raise


def _publish(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise AlreadyExistsError(f"{target}: already exists") from None
    finally:
        temporary.unlink()
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _list_path(root: Path, prefix: str) -> dict[str, int]:
    sizes = {}
    for folder, _, names in os.walk(root / prefix):
        for name in names:
            path = Path(folder, name)
            if not name.startswith(TEMPORARY):
                try:
                    sizes[path.relative_to(root).as_posix()] = path.stat().st_size
                except FileNotFoundError:  # removed while we walked
                    continue
    return dict(sorted(sizes.items()))


def _remove_empty_parents(folder: Path, root: Path) -> None:
    while folder != root:
        try:
            folder.rmdir()
        except OSError:  # not empty, or removed by somebody else
            return
        folder = folder.parent
