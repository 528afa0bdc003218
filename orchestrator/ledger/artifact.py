"""What a stage leaves behind: a folder named by its key, complete when ``MANIFEST.json`` is there.

artifacts/<stage>/<key12>/
    inputs.json        what the key was made of, written first
    lease/…            who may work on it
    …                  the stage's files, work in progress included
    MANIFEST.json      files, sizes, digests, inputs, producer; written last, exclusively
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import AlreadyExistsError, CorruptError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.records import record_at, understood
from orchestrator.ledger.storage import Storage

MANIFEST = "MANIFEST.json"
INPUTS = "inputs.json"
UNLISTED = (INPUTS, "lease/", "pretrain/", "scan/", "places/", *checkpoints.WORK_IN_PROGRESS)
"""What the manifest holds, work in progress that carries its own digests, or none, and what each
cluster finds out for itself."""

_HASHED_AT_ONCE, _HASHED_AHEAD = 8, 1_024


@dataclass(frozen=True)
class Artifact:
    """One artifact, finished or in progress."""

    stage: str
    key: str
    """The full SHA-256."""
    storage: Storage
    """Its folder."""

    def is_complete(self) -> bool:
        """Whether the manifest is there."""
        return self.storage.exists(MANIFEST)

    def manifest(self) -> dict[str, Any]:
        """The manifest.

        Raises FileNotFoundError while incomplete, CorruptError when it is another key's.
        """
        manifest = record_at(self.storage, MANIFEST, "move the artifact's folder away")
        if manifest.get("key") != self.key:
            raise CorruptError(
                f"{self.storage.url}: holds key {manifest.get('key')}, not {self.key}; move the "
                "folder away"
            )
        with understood(f"{self.storage.url}/{MANIFEST}", "move the artifact's folder away"):
            _require_whole(manifest)
        return manifest

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage reported about its result."""
        facts: dict[str, Any] = self.manifest()["facts"]
        return facts

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Record what the key is made of, before anything else is written."""
        with suppress(AlreadyExistsError):
            self.storage.create_json(INPUTS, inputs)

    def publish(
        self,
        *,
        inputs: Mapping[str, Any],
        facts: Mapping[str, Any],
        producer: Mapping[str, Any],
        require: Callable[[], None] = lambda: None,
    ) -> None:
        """Hash every file and write the manifest; a manifest that is already there stays.

        ``require`` raises what forbids to write it, after all the hashing.
        """
        sizes = {
            path: size
            for path, size in self.storage.list().items()
            if not path.startswith(UNLISTED)
        }
        digests = _digests(self.storage, sizes)
        files = {path: {"size": sizes[path], "sha256": digest} for path, digest in digests}
        manifest = {
            "stage": self.stage,
            "key": self.key,
            "inputs": inputs,
            "facts": facts,
            "producer": producer,
            "files": files,
        }
        require()
        with suppress(AlreadyExistsError):
            self.storage.create_json(MANIFEST, manifest)

    def problems(self) -> Iterator[str]:
        """Every way in which the folder differs from its manifest."""
        yield from differences(self.storage, self.manifest()["files"])


def _digests(storage: Storage, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each file with its SHA-256; a bucket takes as long for a file as for eight."""
    waiting = iter(paths)
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as threads:
        while some := list(itertools.islice(waiting, _HASHED_AHEAD)):
            yield from zip(some, threads.map(storage.digest, some), strict=True)


def _require_whole(manifest: Mapping[str, Any]) -> None:
    """Raises KeyError, TypeError or AttributeError when a part of a manifest is not there."""
    parts = [manifest[name].items() for name in ("facts", "inputs", "files")]
    for _, entry in parts[-1]:
        int(entry["size"]), entry["sha256"].lower()


def differences(folder: Storage, files: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Every way in which a folder differs from ``{path: {"size": ..., "sha256": ...}}``."""
    present = folder.list()
    for path, entry in files.items():
        where, size = f"{folder.url}/{path}", entry["size"]
        if path not in present:
            yield f"{where}: missing"
        elif present[path] != size:
            yield f"{where}: {present[path]} bytes, the manifest says {size}"
        elif folder.digest(path) != entry["sha256"]:
            yield f"{where}: bytes differ from the manifest's sha256"
