"""Objects of a bucket: S3, Google Cloud Storage, Azure Blob Storage, or this process's memory.

What is assumed of a store: an object appears whole; a conditional PUT (``If-None-Match: *``,
``ifGenerationMatch=0``) refuses what is there; what was written is listed and read from then on, by
everybody. No renames, no appends, no order between objects.

Exclusive creation is one conditional PUT, sent by us alone: a library that repeats it takes its own
lost answer for somebody else's object. A file above two times `PART_BYTES` goes in parts, which no
store makes exclusive through this library: it is looked for before, and its bytes are known from
the manifest that names it.

Not one request is trusted to be answered: 429, 5xx, resets and time-outs are asked again, with
growing pauses, for `DEADLINE_S` after the first failure. What then still fails is an OSError.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import MemoryStore, from_url

from orchestrator.errors import AlreadyExistsError, BackendError, RequestError
from orchestrator.ledger.path_store import TEMPORARY, explained

SCHEMES = ("s3", "gs", "az", "memory")
PART_BYTES = 32 << 20
"""A file of more than two parts goes in parts, at most 10,000 of them: 312 GiB. Eight are under way
at a time: 256 MiB of memory."""
PARTS_AT_ONCE = 8
DEADLINE_S = 120.0
"""How long a request is tried again once it has failed; a store that is away longer is the policy's
to wait for."""
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
TIMEOUT_S = 300.0
"""A request that is not over by then has hung: 32 MiB in 5 min are 0.1 MB/s."""
SMALL_BYTES, SMALL_TIMEOUT_S = 1 << 20, 20.0
"""The same of a request that carries no more: a heartbeat must not hang for as long as it may be
late."""
_MAX_RETRIES = 6
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Variables that say where a store answers."""
_REFUSALS = (
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.UnknownConfigurationKeyError,
)
"""Answers that do not change by asking again."""

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class ObjectStore:
    """A folder of a bucket.

    ``timeout_s``: how long one request may take, `SMALL_TIMEOUT_S` at most for one that carries
    little. ``deadline_s``: how long it is asked again. ``part_bytes``: size of a part of a large
    file. ``endpoint``: where the store answers, when not where the environment says.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        deadline_s: float = DEADLINE_S,
        part_bytes: int = PART_BYTES,
        endpoint: str = "",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise RequestError(
                f"store {url!r}: not a store's address; use a path, s3://, gs:// or az://"
            )
        self.url = url.rstrip("/")
        self._prefix = parts.path.strip("/")
        self._bucket = f"{parts.scheme}://{parts.netloc}"
        self._deadline_s, self._part_bytes = deadline_s, part_bytes
        small_s = min(timeout_s, SMALL_TIMEOUT_S)
        self._large = _clients(self._bucket, timeout_s, deadline_s, endpoint)
        self._small = _clients(self._bucket, small_s, deadline_s, endpoint)

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self._head(path)
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self, path: str, start: int) -> bytes:
        """The object from byte ``start`` on, from its end when negative."""
        if not start:
            return self._ask(path, lambda: _body(self._large.patient, self._full(path)))
        size = self._size(path)
        begin = max(size + start, 0) if start < 0 else start
        return self._range(path, begin, size - begin) if begin < size else b""

    def written_at(self, path: str) -> float:
        """When the object was written, in seconds since the epoch of the store's clock."""
        return float(self._head(path)["last_modified"].timestamp())

    def create(self, path: str, data: bytes) -> None:
        """One conditional PUT. Raises AlreadyExistsError."""
        is_ours_perhaps, once = False, self._for(len(data)).once

        def put() -> None:
            nonlocal is_ours_perhaps
            try:
                obstore.put(once, self._full(path), data, mode="create", use_multipart=False)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                there = self._bytes_or_none(path)
                if there is None:  # 409: another write or a deletion was under way
                    raise ConflictError(f"{self.url}/{path}: written or deleted just now") from None
                if not (is_ours_perhaps and there == data):
                    raise self._exists_error(path) from None
            except exceptions.BaseError:
                is_ours_perhaps = True  # the answer may have been lost, and not the object
                raise

        self._ask(path, put)

    def replace(self, path: str, data: bytes) -> None:
        """One PUT."""
        put, patient = obstore.put, self._for(len(data)).patient
        self._ask(path, lambda: put(patient, self._full(path), data, use_multipart=False))

    def list(self, prefix: str) -> dict[str, int]:
        """Relative path to size of every object below ``prefix``.

        Empty objects are looked at again: some libraries mark a folder by one called ``folder/``,
        which is listed here without its slash.
        """
        full = self._full(prefix)
        store = self._small.patient
        found = self._ask(prefix, lambda: obstore.list(store, prefix=full or None).collect())
        start = len(self._prefix) + 1 if self._prefix else 0
        sizes = {entry["path"][start:]: entry["size"] for entry in found if entry["path"] != full}
        listed = {p: s for p, s in sizes.items() if not _name(p).startswith(TEMPORARY)}
        return {path: size for path, size in listed.items() if size or self.exists(path)}

    def walk(self) -> Iterator[tuple[str, int, str]]:
        """Relative path, size and version of every object, in the order of their bytes.

        Whatever their number, a page is in memory; one that fails is asked for again. A version is
        the object's tag, or the time at which it was written where the store has no tags.
        """
        start = len(self._prefix) + 1 if self._prefix else 0
        last: str | None = None
        pages: Iterator[Any] | None = None

        def next_page() -> Any:
            nonlocal pages
            prefix, store = self._prefix or None, self._small.patient
            pages = pages or iter(obstore.list(store, prefix=prefix, offset=last, chunk_size=1000))
            try:
                return next(pages, ())
            except exceptions.BaseError as error:
                pages = None
                if "404 Not Found" in str(error):  # no folder is missing, only a bucket
                    raise FileNotFoundError from None
                raise

        while page := self._ask("", next_page):
            for entry in page:
                path, last = entry["path"][start:], entry["path"]
                if path and (entry["size"] or self.exists(path)):  # `list` says why
                    version = entry["e_tag"] or entry["last_modified"].isoformat()
                    yield path, entry["size"], version

    def read_range(self, path: str, begin: int, length: int) -> bytes:
        """Bytes of an object. Raises FileNotFoundError."""
        return self._range(path, begin, length)

    def read_head(self, path: str, length: int) -> tuple[bytes, int]:
        """The first bytes of an object, and its size. Raises FileNotFoundError."""
        store, whole = self._for(length).patient, self._full(path)
        asked: Any = {"range": (0, length)}

        def get() -> tuple[bytes, int]:
            try:
                answer = obstore.get(store, whole, options=asked)
                return bytes(answer.bytes()), int(answer.meta["size"])
            except exceptions.BaseError:
                if self._size(path) == 0:  # no range of nothing can be had
                    return b"", 0
                raise

        return self._ask(path, get)

    def children(self, prefix: str) -> set[str]:
        """Names directly below ``prefix``: one listing, not a walk."""
        full, store = self._full(prefix), self._small.patient
        found = self._ask(prefix, lambda: obstore.list_with_delimiter(store, prefix=full or None))
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        names = {_name(path.rstrip("/")) for path in paths if path.rstrip("/") != full}
        return {name for name in names if not name.startswith(TEMPORARY)}

    def upload(self, local: Path, path: str, tick: Callable[[], None]) -> None:
        """Create the object from a file; ``tick`` is called with every part.

        Raises AlreadyExistsError.
        """
        if local.stat().st_size <= 2 * self._part_bytes:
            self.create(path, local.read_bytes())
            tick()
            return
        if self.exists(path):
            raise self._exists_error(path)
        self._ask(path, lambda: self._put_parts(local, path, tick))

    def _put_parts(self, local: Path, path: str, tick: Callable[[], None]) -> None:
        try:
            obstore.put(
                self._large.patient,
                self._full(path),
                _ticking_parts(local, self._part_bytes, tick),
                use_multipart=True,
                chunk_size=self._part_bytes,
                max_concurrency=PARTS_AT_ONCE,
            )
        except FileNotFoundError:  # no such upload
            if self.exists(path):  # it is complete; that answer was lost
                raise self._exists_error(path) from None
            raise ConflictError(f"{self.url}/{path}: the upload is gone") from None

    def fetch(self, path: str, target: Path) -> None:
        """Write the object's bytes to a file, which appears whole."""
        size = self._size(path)
        aside = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")

        def write(begin: int) -> None:
            data = self._range(path, begin, min(self._part_bytes, size - begin))
            with aside.open("r+b") as file:  # a disk that fills up may take a part of the data
                file.seek(begin)
                file.write(data)

        with explained(target, "folder"):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                aside.touch(exist_ok=False)
                with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
                    list(pool.map(write, range(0, size, self._part_bytes)))
                aside.replace(target)
            finally:
                aside.unlink(missing_ok=True)

    def digest(self, path: str) -> str:
        """The SHA-256 of the object's bytes."""
        size, running = self._size(path), hashlib.sha256()
        for begin in range(0, size, self._part_bytes):
            running.update(self._range(path, begin, min(self._part_bytes, size - begin)))
        return running.hexdigest()

    def delete(self, path: str) -> None:
        """Remove the object; nothing happens when it is not there."""
        with suppress(FileNotFoundError):
            self._ask(path, lambda: obstore.delete(self._small.patient, self._full(path)))

    def sweep(self) -> int:
        """Abort uploads in parts that nobody completes any more below this folder; how many.

        The store keeps such parts, invisible and paid for. Nothing is done where it, or what is
        installed, cannot list them: Azure drops them after a week, Google's need a bucket rule.
        """
        if not self._bucket.startswith("s3://") or importlib.util.find_spec("boto3") is None:
            return 0
        return _abort_s3_uploads(self._bucket.removeprefix("s3://"), f"{self._prefix}/")

    def _exists_error(self, path: str) -> AlreadyExistsError:
        return AlreadyExistsError(f"{self.url}/{path}: already exists")

    def _full(self, path: str) -> str:
        return "/".join(part for part in (self._prefix, path.strip("/")) if part)

    def _size(self, path: str) -> int:
        return int(self._head(path)["size"])

    def _head(self, path: str) -> Any:
        return self._ask(path, lambda: obstore.head(self._small.patient, self._full(path)))

    def _for(self, num_bytes: int) -> _Clients:
        """Who asks for so much, or sends it."""
        return self._small if num_bytes <= SMALL_BYTES else self._large

    def _range(self, path: str, begin: int, length: int) -> bytes:
        ranged, store, full = obstore.get_range, self._for(length).patient, self._full(path)
        return bytes(self._ask(path, lambda: ranged(store, full, start=begin, length=length)))

    def _bytes_or_none(self, path: str) -> bytes | None:
        try:
            return self.read_bytes(path, 0)
        except FileNotFoundError:
            return None

    def _ask(self, path: str, question: Callable[[], _T]) -> _T:
        """The store's answer, asked for again while it may still come.

        Raises FileNotFoundError, PermissionError, ConnectionError.
        """
        deadline, pause_s = math.inf, _PAUSE_S
        while True:
            try:
                return question()
            except FileNotFoundError:
                missing = f"{self.url}/{path}: not there, or its bucket is not"
                raise FileNotFoundError(missing) from None
            except (exceptions.BaseError, ConflictError) as error:
                is_final = isinstance(error, _REFUSALS)
                deadline = min(deadline, time.monotonic() + self._deadline_s)
                if is_final or time.monotonic() + pause_s > deadline:
                    raise self._os_error(path, error, is_final=is_final) from None
            time.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _os_error(self, path: str, error: Exception, *, is_final: bool) -> OSError:
        kind = PermissionError if is_final else ConnectionError
        return kind(
            f"{self.url}/{path}: the store did not do as asked ({_first_line(error)}); "
            "see that it is up, and its address and credentials right"
        )


class ConflictError(Exception):
    """A write was refused though nothing is there; it is asked again."""


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _body(store: Any, full: str) -> bytes:
    return bytes(obstore.get(store, full).bytes())


def _ticking_parts(local: Path, part_bytes: int, tick: Callable[[], None]) -> Iterator[bytes]:
    with local.open("rb") as file:
        while part := file.read(part_bytes):
            yield part
            tick()


def _abort_s3_uploads(bucket: str, prefix: str) -> int:
    import boto3  # slow to import, and asked for only here
    from botocore.exceptions import BotoCoreError, ClientError

    count = 0
    try:
        client = boto3.client("s3")
        pages = client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", ()):
                which = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                client.abort_multipart_upload(Bucket=bucket, **which)
                count += 1
    except (BotoCoreError, ClientError) as error:  # they cost money, and no bytes
        log.warning("%s: uploads are not listed (%s); give the bucket a rule", bucket, error)
    return count


class _Clients(NamedTuple):
    """Two ways of asking a bucket."""

    patient: Any
    """Repeats what can be repeated."""
    once: Any
    """Asks just once."""


@cache
def _memory(_bucket: str) -> MemoryStore:
    """The bucket of that name in this process."""
    return MemoryStore()


@cache
def _clients(bucket: str, timeout_s: float, deadline_s: float, endpoint: str) -> _Clients:
    """Who gives up a request after a time-out, and repeats it until a deadline."""
    if bucket.startswith("memory://"):
        return _Clients(_memory(bucket), _memory(bucket))
    scheme = bucket.partition("://")[0]
    _require_urls(bucket, scheme)
    client = {"allow_http": True, "timeout": timedelta(seconds=timeout_s)}
    options: dict[str, Any] = {"client_options": client}
    retries = {"max_retries": _MAX_RETRIES, "retry_timeout": timedelta(seconds=deadline_s)}
    if endpoint:
        options["base_url" if scheme == "gs" else "endpoint"] = endpoint
    try:
        if scheme == "s3" and (provider := profile()):
            options["credential_provider"] = provider
        opened: Any = from_url  # typed for each kind of store alone
        return _Clients(
            patient=opened(bucket, retry_config=retries, **options),
            once=opened(bucket, retry_config={"max_retries": 0}, **options),
        )
    except (exceptions.BaseError, ValueError) as error:
        raise RequestError(
            f"store {bucket!r}: {_first_line(error)}; look at its address, and at the credentials "
            "of the environment"
        ) from None


def _require_urls(bucket: str, scheme: str) -> None:
    """Raise RequestError for an endpoint that is no URL, of which the library makes a panic."""
    for name in _ENDPOINTS.get(scheme, ()):
        value = os.environ.get(name)
        if value is not None and not value.startswith(("http://", "https://")):
            raise RequestError(
                f"store {bucket!r}: {name} is {value!r}, no URL; begin it with http:// or https://"
            )


def profile() -> Any:
    """What takes credentials from the user's AWS profile; None where the environment has them.

    A machine with a role of its own needs no profile: its ``config`` may hold but a region. Raises
    ValueError when there is no such profile, or it has no credentials.
    """
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return None
    credentials = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
    is_named = "AWS_PROFILE" in os.environ or Path(credentials).expanduser().exists()
    config = os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")
    if not (is_named or Path(config).expanduser().exists()):
        return None
    if importlib.util.find_spec("boto3"):
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider

        try:
            return Boto3CredentialProvider()
        except BotoCoreError as error:  # no such profile, or a file that cannot be read
            raise ValueError(str(error)) from None
    if is_named:
        raise BackendError(
            "an AWS profile needs boto3; pip install '.[s3]', or set AWS_ACCESS_KEY_ID"
        )
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
