"""The store: where artifacts and runs lie below one URL, and what is there already."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import AlreadyExistsError, BackendError, OrchestratorError, os_words
from orchestrator.ledger import checkpoints
from orchestrator.ledger.artifact import INPUTS, Artifact
from orchestrator.ledger.records import find_record
from orchestrator.ledger.storage import Storage
from orchestrator.plan.keys import KEY_DIGITS
from orchestrator.plan.planner import Found, Instance
from orchestrator.plan.stages import STAGES

ARTIFACTS, RUNS = "artifacts", "runs"
MODELS = "models"
"""Where models of a hub are kept below the store."""
FOLDERS = (ARTIFACTS, RUNS, MODELS)
"""What a store keeps; nothing else below its root is its own."""


@dataclass(frozen=True)
class Store:
    """One store, shared by all runs of a cluster."""

    storage: Storage

    @classmethod
    def open(cls, url: str) -> Store:
        """The store at a URL. Raises RequestError or BackendError when that cannot be."""
        return cls(Storage(url))

    @classmethod
    def around(cls, artifact: Artifact) -> Store:
        """The store that an artifact lies in."""
        return cls(Storage(artifact.storage.url.rsplit("/", 3)[0]))

    def artifact(self, stage: str, key: str) -> Artifact:
        """The artifact of a key, whether or not anything is there."""
        return Artifact(stage, key, self.storage.at(ARTIFACTS, stage, key[:KEY_DIGITS]))

    def run_storage(self, run: str) -> Storage:
        """The folder of a run, whether or not anything is there."""
        return self.storage.at(RUNS, run)

    def runs(self) -> tuple[str, ...]:
        """Names of all runs."""
        return self.storage.children(RUNS)

    def find(self, keys: Mapping[str, str]) -> dict[str, Found]:
        """What is there for each instance of ``{instance id: "stage/key"}``."""
        return {instance: self._found(*address.split("/")) for instance, address in keys.items()}

    def has(self, *instances: Instance) -> bool:
        """Whether the artifacts of all these stage instances are complete."""
        return all(self.artifact(i.stage, i.key).is_complete() for i in instances)

    def progress(self, *instances: Instance) -> float:
        """Work done for some instances so far: shards, steps, whole ones; it never falls."""
        found = self.find({i.id: f"{i.stage}/{i.key}" for i in instances})
        return float(sum(f.shards_done + f.step + f.complete for f in found.values()))

    def inputs_of(self, stage: str) -> tuple[dict[str, Any], ...]:
        """What the key of every artifact of a stage was made of; damaged ones say nothing."""
        folders = self.storage.at(ARTIFACTS, stage)
        found = []
        for name in folders.children():
            with suppress(OSError, OrchestratorError):
                found.append(find_record(folders, f"{name}/{INPUTS}", "remove it"))
        return tuple(inputs for inputs in found if inputs is not None)

    def checkpoint_steps(self, stage: str, key: str) -> tuple[int, ...]:
        """The steps that the checkpoints of an artifact are of, oldest first."""
        return checkpoints.steps_of(self.artifact(stage, key).storage)

    def _found(self, stage: str, key: str) -> Found:
        artifact = self.artifact(stage, key)
        if artifact.is_complete():
            manifest = artifact.manifest()
            return Found(
                complete=True,
                facts=manifest["facts"],
                shards_done=sum(path.startswith("shards/") for path in manifest["files"]),
                step=int(manifest["facts"].get("steps", 0)),
            )
        return Found(
            complete=False,
            shards_done=sum(
                name.endswith((".parquet", ".npy")) for name in artifact.storage.list("shards")
            ),
            step=checkpoints.newest_step(artifact.storage),
        )


def require_usable(storage: Storage) -> None:
    """Try what every run needs of a store: to create once, to read back, to delete.

    Nothing is left behind. Raises BackendError.
    """
    _require_creation(storage)
    if storage.local_root:
        _require_folders(storage.local_root)


def _require_folders(root: Path) -> None:
    """Raise BackendError when a folder that somebody else made here takes nothing of ours."""
    shared = [root / name for name in FOLDERS]
    stages = [root / ARTIFACTS / stage.name for stage in STAGES]
    for folder in (f for f in (*shared, *stages) if os.path.lexists(f)):
        if folder.is_symlink() and not folder.exists():
            problem = f"leads to {folder.readlink()}, which is not there; mount it, or remove it"
        elif not folder.is_dir():
            problem = "is no folder; move it away"
        elif not os.access(folder, os.W_OK | os.X_OK):
            problem = "cannot be written by you; let its owner open it to your group"
        else:
            continue
        raise BackendError(f"store: {folder}: {problem}, or name another store")


def _require_creation(storage: Storage) -> None:
    name = f"probe-{secrets.token_hex(8)}"
    try:
        storage.create(name, b"probe")
        with suppress(AlreadyExistsError):
            storage.create(name, b"other")
        read = storage.read_bytes(name)
        storage.delete(name)
    except OSError as error:
        raise BackendError(f"store: {os_words(error)}") from None
    if read != b"probe":
        raise BackendError(
            f"store: {storage.url}: overwrites what must be created once; use a store that knows "
            "conditional writes"
        )
