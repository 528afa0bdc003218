"""Brings checkpoints from a node's disk to the store while training goes on.

Training stands still only while a rank writes to its own disk. What it wrote is then published by a
thread: each rank uploads its files and leaves a note, rank 0 waits for everybody's note and writes
the manifest. Threads never take part in collectives. At most one snapshot is on its way and one
more staged behind it, so that a slow store slows training down instead of filling the disk.

A node that dies before its rank has published costs that snapshot and no earlier one. What went to
a store that is no path stays on the node until the next has followed it, so that a training that is
started again there need not fetch it.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.training import faults
from jobs.training.rank import RankConfig, RankInfo
from orchestrator.errors import Cause, RunFailedError
from orchestrator.ledger import checkpoints
from orchestrator.ledger import lease as leases
from orchestrator.ledger.checkpoints import Manifest, Segment
from orchestrator.ledger.storage import Storage, to_json

COMMIT_TIMEOUT_S = 3600.0
"""How long rank 0 waits for the others' notes; `Checkpointer.drain` hears of failures before."""
KEPT = "kept"
"""In the scratch folder: what was published from this node last, or fetched to it."""
NUM_SNAPSHOTS_ON_DISK = 2
"""One on its way to the store, and one staged behind it."""
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One rank's part of a checkpoint, on this node's disk."""

    name: str
    """The checkpoint's name."""
    step: int
    """Optimizer steps done."""
    folder: Path
    """Holds this rank's files and nothing else."""
    rng_name: str
    """The file of this rank's random states."""
    draft: Manifest | None = None
    """Rank 0: the manifest but for its files."""
    segments: Sequence[tuple[Segment, bytes]] = ()
    """Rank 0: metric lines to be written before the manifest."""


class CheckpointUploader:
    """One rank's way to the store."""

    def __init__(
        self,
        config: RankConfig,
        rank_info: RankInfo,
        tick: Callable[[], None] = lambda: None,
        *,
        commit_timeout_s: float = COMMIT_TIMEOUT_S,
    ) -> None:
        self._config, self._rank_info, self._out = config, rank_info, Storage(config.out_url)
        self._commit_timeout_s, self._tick = commit_timeout_s, tick
        """Called with every part of a file that is in the store."""
        self._thread: threading.Thread | None = None
        self._uploaded = threading.Event()
        self.error: BaseException | None = None
        """What the thread ran into; it publishes nothing more."""
        self.took_s = 0.0
        """How long the last publication took, from the disk to the manifest."""

    @property
    def is_busy(self) -> bool:
        """Whether a snapshot is on its way."""
        return self._thread is not None and self._thread.is_alive()

    def passed(self, step: int) -> Callable[[str], None]:
        """What this rank calls at each named point of a checkpoint, where a drill may kill it."""

        def passing(point: str) -> None:
            self._tick()
            faults.passing(
                point, rank=self._rank_info.rank, step=step, driver_pid=self._config.driver.pid
            )

        return passing

    def start(self, snapshot: Snapshot) -> None:
        """Publish a snapshot from now on; the one before it must be done."""
        self._uploaded.clear()
        self._thread = threading.Thread(target=self._run, args=(snapshot,), daemon=True)
        self._thread.start()

    def wait_uploaded(self) -> None:
        """Wait until this rank's files are in the store, or cannot be."""
        if self._thread is not None:
            self._uploaded.wait()

    def wait_committed(self) -> None:
        """Wait until the thread has ended: at rank 0, with the manifest and retention."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, snapshot: Snapshot) -> None:
        started = time.monotonic()
        try:
            self._publish(snapshot)
        except BaseException as error:  # noqa: BLE001 (the training's thread raises it for all ranks)
            self.error = error
        finally:
            self._uploaded.set()
            self.took_s = time.monotonic() - started

    def _publish(self, snapshot: Snapshot) -> None:
        passed = self.passed(snapshot.step)
        passed("publish.begin")
        files = upload_folder(self._out, snapshot.folder, snapshot.name, passed, self._tick)
        put_aside(snapshot, self._out, Path(self._config.scratch, KEPT))
        note = {"rng": snapshot.rng_name, "files": files}
        self._out.create(checkpoints.done_path(snapshot.name, self._rank_info.rank), to_json(note))
        passed("publish.done")
        self._uploaded.set()
        if snapshot.draft:
            ranks = range(self._rank_info.world_size)
            notes = [self._note_of(snapshot.name, rank) for rank in ranks]
            leases.require_newest(self._out, self._config.lease_n)
            passed("commit.gathered")
            for segment, data in snapshot.segments:
                self._out.create(segment.path, data)
            passed("commit.metrics")
            checkpoints.commit(self._out, _completed(snapshot.draft, notes))
            passed("commit.manifest")
            policy = self._config.settings.checkpoint
            checkpoints.retire(self._out, policy, self._config.leases, passed)

    def _note_of(self, name: str, rank: int) -> dict[str, Any]:
        """What a rank has published. Raises RunFailedError when it does not in time."""
        path = checkpoints.done_path(name, rank)
        deadline = time.monotonic() + self._commit_timeout_s
        while not self._out.exists(path):
            if time.monotonic() > deadline:
                raise RunFailedError(
                    f"{self._out.url}/{path}: rank {rank} never published its part",
                    cause=Cause.STORAGE,
                )
            time.sleep(_POLL_S)
        return dict(self._out.read_json(path))


def _completed(draft: Manifest, notes: Sequence[dict[str, Any]]) -> Manifest:
    files = {path: entry for note in notes for path, entry in note["files"].items()}
    rng = {str(rank): note["rng"] for rank, note in enumerate(notes)}
    return Manifest.model_validate({**draft.model_dump(), "files": files, "rng": rng})


def upload_folder(
    out: Storage,
    local: Path,
    name: str,
    passed: Callable[[str], None],
    tick: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Make one rank's files durable; returns their manifest entries.

    ``tick`` is called with every part of a file: a large one is no hang.
    """
    entries = {}
    for path in files_below(local):
        size = (local / path).stat().st_size
        faults.uploading(size)
        sha256 = out.upload(local / path, f"{checkpoints.FOLDER}/{name}/{path}", tick)
        entries[path] = {"size": size, "sha256": sha256}
        passed("publish.file")
    passed("publish.files")
    return entries


def put_aside(snapshot: Snapshot, out: Storage, kept: Path) -> None:
    """Keep published files on this node in place of older ones; or not, where little room is left.

    Those of all ranks of the node lie together, as `checkpoints.fetch_verified` looks for them. A
    store that is a path is read itself.
    """
    for older in kept.glob(f"{checkpoints.FOLDER}/*"):
        if older.name != snapshot.name:
            shutil.rmtree(older, ignore_errors=True)  # another rank may do the same
    paths = files_below(snapshot.folder)
    size = sum((snapshot.folder / path).stat().st_size for path in paths)
    has_room = shutil.disk_usage(snapshot.folder).free > NUM_SNAPSHOTS_ON_DISK * size
    for path in paths if out.local_root is None and has_room else ():
        target = kept / checkpoints.FOLDER / snapshot.name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (snapshot.folder / path).replace(target)
    shutil.rmtree(snapshot.folder)


def files_below(folder: Path) -> list[str]:
    """Relative paths of all files below a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
