"""Moves a run to the store of another cluster file; whoever dies on the way, it goes on from there.

    1. who works on the run is asked to stop, where that can be done from here
    2. the leases of all that is not finished are taken: who holds one still learns of that
    3. ``moved.json`` says where the run goes, and which unfinished files count: nothing later does
    4. artifacts, work in progress and the run's folder are copied, manifests last
    5. ``plan.json`` in the new folder: now the run is there, and ``moved.json`` says that as well

Each step leaves what it finds done. A lease in the old store is given back as soon as what it
protects is copied, so that other runs there may go on with the key.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Self

from orchestrator.control.cluster_choice import open_store
from orchestrator.control.executor import Request, executor_of, observe
from orchestrator.control.models import models_of
from orchestrator.control.request import require_fit
from orchestrator.errors import (
    AlreadyExistsError,
    BackendError,
    Cause,
    CorruptError,
    LeaseHeldError,
    RequestError,
    RunFailedError,
    SpecErrors,
)
from orchestrator.ledger import checkpoints
from orchestrator.ledger import lease as leases
from orchestrator.ledger.artifact import MANIFEST, Artifact
from orchestrator.ledger.checkpoints import Manifest
from orchestrator.ledger.lease import HeldLease
from orchestrator.ledger.lease_keeper import LeaseKeeper
from orchestrator.ledger.moved import (
    ARRIVAL,
    MOVED,
    Moved,
    arrived_from,
    claim,
    record_arrival,
    record_moved,
)
from orchestrator.ledger.records import find_record, understood
from orchestrator.ledger.run import PLAN, RunFolder
from orchestrator.ledger.status import JobState
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import FOLDERS, MODELS, Store, require_usable
from orchestrator.ledger.submission import SEEN
from orchestrator.ledger.transfer import Transfer
from orchestrator.plan.planner import Instance
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import load_cluster

CHECKPOINTS_KEPT = 2
"""The newest verified one, and the one before in case that is harmed where it goes."""
LOCK = "move-lease"
_STAYS = (PLAN, MOVED, ARRIVAL)
"""What of a run's folder is written anew."""
_LEASES = f"/{leases.FOLDER}/"


@dataclass(frozen=True)
class Place:
    """A run and the store it lies in."""

    run: RunFolder
    store: Store

    @classmethod
    def at(cls, url: str) -> Self:
        """The place of a run's folder."""
        run = RunFolder(Storage(url))
        return cls(run, Store.open(run.storage.url.rsplit("/", 2)[0]))

    @property
    def url(self) -> str:
        """The run's folder."""
        return self.run.storage.url

    @property
    def is_home(self) -> bool:
        """Whether the run is here and goes nowhere."""
        return self.run.exists() and self.run.moved is None


@dataclass(frozen=True)
class Listener:
    """Who follows a move."""

    say: Callable[[str], None] = lambda _line: None
    """A line about something that is as it is."""
    show: Callable[[str, int, int], None] = lambda _what, _done, _total: None
    """How many bytes of something are there, and how many there will be."""
    passed: Callable[[str], None] = lambda _point: None
    """Called at each named point, where a drill may kill the mover."""


def bring(place: Place, cluster_file: Path, listener: Listener | None = None) -> Place:
    """Where the run lies once it is in the store of a cluster file.

    Raises RequestError when it cannot be there, or is on its way to a third store; CorruptError
    when something of it is damaged.
    """
    cluster = load_cluster(cluster_file)
    store = open_store(cluster)
    target = Place(RunFolder(store.run_storage(place.run.name)), store)
    listener = listener or Listener()
    moved = place.run.moved
    if is_same(place.store.storage, store.storage):
        if moved:
            _stay(place, listener)
        return place
    _require_apart(place.store.storage, store.storage)
    _require_apart(store.storage, place.store.storage)
    if moved and not is_same(Storage(moved.to), target.run.storage):
        place.run.require_here()
    Mover(place, target, cluster, cluster_file, listener).move()
    return target


def where_it_lies(place: Place) -> Place:
    """Where moves lead from a place: to where the run is, or a move that goes on begins.

    Raises RequestError when it has been lost since.
    """
    while (moved := place.run.moved) is not None:
        following = Place.at(moved.to)
        if moved.arrived_at is None and not following.is_home:
            return place
        if not following.run.exists():
            raise RequestError(
                f"{place.run.name}: {moved.words}, where it is no longer; bring that folder back, "
                f"or, where it is lost for good, remove {place.url}/{MOVED} to go on from here"
            )
        place = following
    return place


def is_same(one: Storage, other: Storage) -> bool:
    """Whether two URLs name the same folder, through links and mounts as well."""
    if one.local_root is None or other.local_root is None:
        return one.url == other.url
    if one.local_root.exists() and other.local_root.exists():
        return one.local_root.samefile(other.local_root)
    return one.local_root.resolve() == other.local_root.resolve()


def _require_apart(inner: Storage, outer: Storage) -> None:
    """Raises RequestError when a store lies among what another keeps, and removes in time."""
    if any(_located(inner).is_relative_to(_located(outer.at(name))) for name in FOLDERS):
        raise RequestError(
            f"store: {inner.url} lies in a folder that the store {outer.url} keeps its own things "
            "in, and tidies; name one beside that store"
        )


def _located(storage: Storage) -> PurePath:
    return storage.local_root.resolve() if storage.local_root else PurePath(storage.url)


class Mover:
    """One attempt at moving a run."""

    def __init__(
        self,
        source: Place,
        target: Place,
        cluster: Cluster,
        cluster_file: Path,
        listener: Listener,
    ) -> None:
        self._source, self._target, self._cluster = source, target, cluster
        self._cluster_file, self._listener = cluster_file, listener
        self._run = source.run
        self._plan = source.run.plan()
        self._timeout_s = source.run.cluster().retry.heartbeat_timeout_s
        self._keeper = LeaseKeeper(self._timeout_s / 6)
        self._holder = f"{source.run.name}/moving"
        self._what, self._copied, self._total = "", 0, 0

    def move(self) -> None:
        """Bring all of it there. Raises RequestError, CorruptError, LeaseHeldError, OSError."""
        passed = self._listener.passed
        with self._keeper, tempfile.TemporaryDirectory() as scratch:
            self._keeper.take(_lock(self._source, self._timeout_s))
            passed("locked")
            if not (self._run.moved and self._target.is_home):
                self._require_possible()
                claim(self._target.run.storage, self._source.url)
                passed("claimed")
                self._stop_who_works()
                passed("stopped")
                held = self._take_leases()
                passed("leases")
                moved = self._say_where_to(held)
                passed("moved")
                self._close_attempts(moved)
                passed("closed")
                self._copy(moved, held, Path(scratch))
                self._settle()
            self._require_moved()
            passed("arrived")

    def _require_possible(self) -> None:
        """Refuse, before anything is changed, what would be in vain."""
        source, target, cluster = self._source, self._target, self._cluster
        origin = arrived_from(target.run.storage)
        has_been_here = target.run.moved is not None and is_same(
            where_it_lies(target).run.storage, source.run.storage
        )
        if target.run.exists() and not has_been_here:
            raise RequestError(
                f"{self._run.name}: {target.store.storage.url} has a run of this name; "
                f"`orchestrator resume {target.url}` goes on with that one"
            )
        if origin and not has_been_here and not is_same(Storage(origin), source.run.storage):
            raise RequestError(
                f"{target.url}: is on its way there from {origin}; finish that move, or move "
                "the folder away"
            )
        where = self._cluster_file.name
        require_fit(self._run, cluster, where)
        request = Request(
            recipe=self._run.recipe(),
            recipe_file=Path("recipe.yaml"),
            cluster=cluster,
            cluster_file=self._cluster_file,
            chosen=str(self._cluster_file),
            variants=self._run.variants(),
            store=target.store,
            plan=self._plan,
        )
        if problems := tuple(executor_of(cluster).problems(request)):
            raise SpecErrors(problems)
        require_usable(target.store.storage)
        for instance in self._plan.instances:
            self._require_no_rival(instance)

    def _require_no_rival(self, instance: Instance) -> None:
        """Refuse when another run there has trained the same, and not as far."""
        source, target = self._artifacts(instance)
        if not instance.steps or source.is_complete() or target.is_complete():
            return
        ours = checkpoints.committed(source.storage)
        rival, head = _rival(ours, target.storage), checkpoints.head_of(ours)
        if rival and head and rival.step < head.step:
            raise RequestError(
                f"{instance.id}: {target.storage.url} has another training of this key, at step "
                f"{rival.step}, ours is at {head.step}; move that folder away, or go on with that "
                "training"
            )

    def _stop_who_works(self) -> None:
        """Cancel in the usual way; who cannot be reached ends by itself."""
        observed = observe(self._run)
        if not (observed.is_alive or observed.has_jobs_left):
            return
        self._listener.say(f"{self._run.name}: is at work; it is asked to save and stop")
        try:
            executor_of(self._run.cluster()).cancel(self._run, None)
        except (BackendError, RunFailedError) as error:
            self._listener.say(f"{error}; goes on without waiting: it will end itself")

    def _take_leases(self) -> dict[str, HeldLease]:
        """The leases of the supervisor and of every instance that is not finished."""
        self._keeper.take(self._acquire(self._run.supervision))
        held = {}
        for instance in self._plan.instances:
            artifact = self._artifacts(instance)[0]
            if artifact.is_complete():
                continue
            try:
                held[instance.id] = self._keeper.take(self._acquire(artifact.storage))
            except LeaseHeldError as error:
                said = f"{instance.id}: {error}; it goes on there, what is whole is copied"
                self._listener.say(said)
        return held

    def _acquire(self, folder: Storage, above: int = 0) -> HeldLease:
        """The lease of a folder, over whoever holds it for this run."""
        return leases.acquire(
            folder,
            holder=self._holder,
            timeout_s=self._timeout_s,
            over=self._run.name,
            above=above,
        )

    def _say_where_to(self, held: Mapping[str, HeldLease]) -> Moved:
        """What an earlier mover has said, else what there is now."""
        if (moved := self._run.moved) is not None:
            return moved
        work = {}
        for instance in self._plan.instances:
            files = self._artifacts(instance)[0].storage.list()
            if MANIFEST not in files:
                theirs = (path for path in files if not path.startswith(f"{leases.FOLDER}/"))
                work[instance.id] = {path: files[path] for path in theirs}
        moved = Moved(
            to=self._target.url,
            at=time.time(),
            leases={name: lease.number for name, lease in held.items()},
            work=work,
        )
        self._keeper.require()
        record_moved(self._run.storage, moved)
        return moved

    def _close_attempts(self, moved: Moved) -> None:
        """Say how attempts ended that could not; what they say later is too late."""
        attempts = [a for i in self._plan.leaders for a in self._run.attempts(i.id)]
        for attempt in (*attempts, *self._run.supervisors()):
            attempt.settle()
            if attempt.end is None:
                attempt.finish(
                    state="cancelled",
                    cause=Cause.MOVED,
                    action="resume",
                    reason=f"the run has moved to {moved.to}",
                    ended_at=moved.at,
                )

    def _copy(self, moved: Moved, held: Mapping[str, HeldLease], scratch: Path) -> None:
        transfer = Transfer(scratch, keep=self._keep, copied=self._count)
        for instance in self._plan.instances:
            if instance.id in moved.work:
                self._copy_work(instance, moved.work[instance.id], transfer)
            else:
                self._copy_finished(instance, transfer)
            if instance.id in held:  # others may go on with the key there
                self._keeper.drop(held[instance.id])
            self._listener.passed(f"copied {instance.id}")
        if moved.work:
            self._copy_models(transfer)
        self._copy_folder(transfer)
        self._listener.passed("folder")

    def _copy_finished(self, instance: Instance, transfer: Transfer) -> None:
        source, target = self._artifacts(instance)
        if target.is_complete():
            return
        manifest = source.manifest()
        with self._writing(target.storage) as may_write:
            if may_write:
                files = {path: entry["sha256"] for path, entry in manifest["files"].items()}
                # No manifest lists what a training has noted: its skips, its id in trackers.
                files |= dict.fromkeys(source.storage.list(checkpoints.NOTES), "")
                target.begin(manifest["inputs"])
                self._begin(instance.id, [entry["size"] for entry in manifest["files"].values()])
                transfer.copy(source.storage, target.storage, files)
                _create(target.storage, MANIFEST, source.storage)

    def _copy_work(self, instance: Instance, files: Mapping[str, int], transfer: Transfer) -> None:
        source, target = self._artifacts(instance)
        lease = leases.current(source.storage)
        if target.is_complete() or not files:
            return
        # Checkpoints carry the numbers of their leases: those there go on from here.
        with self._writing(target.storage, above=lease.number if lease else 0) as may_write:
            if may_write:
                plain = [path for path in files if not path.startswith(checkpoints.CHAINED)]
                self._begin(instance.id, [files[path] for path in plain])
                transfer.copy(source.storage, target.storage, dict.fromkeys(plain, ""))
                self._copy_checkpoints(instance, files, transfer)

    def _copy_checkpoints(
        self, instance: Instance, files: Mapping[str, int], transfer: Transfer
    ) -> None:
        """The newest that verify, of those that were whole when the leases were taken."""
        source, target = (artifact.storage for artifact in self._artifacts(instance))
        found = [m for m in checkpoints.committed(source) if checkpoints.manifest_path(m) in files]
        if rival := _rival(found, target):
            self._listener.say(
                f"{instance.id}: goes on from a training of the same at {target.url}, at step "
                f"{rival.step}"
            )
            return
        chain = checkpoints.resumable(found, [m.lease_n for m in found])
        whole = 0
        for manifest in chain:
            if whole < CHECKPOINTS_KEPT and self._copy_checkpoint(manifest, instance, transfer):
                whole += 1
        if chain and not whole:
            raise CorruptError(
                f"{instance.id}: none of {len(chain)} checkpoints verifies; look at that store, or "
                f"remove {source.at(checkpoints.FOLDER).url} to begin anew"
            )

    def _copy_checkpoint(self, manifest: Manifest, instance: Instance, transfer: Transfer) -> bool:
        source, target = (artifact.storage for artifact in self._artifacts(instance))
        path = checkpoints.manifest_path(manifest)
        self._begin(f"{instance.id}: {manifest.name}", [f.size for f in manifest.files.values()])
        try:
            if target.exists(path) and target.read_bytes(path) != source.read_bytes(path):
                target.delete(path)  # of a training that ours has left behind
            transfer.copy(source, target, checkpoints.content_of(manifest))
            _create(target, path, source)
        except (CorruptError, FileNotFoundError) as error:
            self._listener.say(f"{instance.id}: {error}; the checkpoint before is taken")
            return False
        return True

    def _copy_models(self, transfer: Transfer) -> None:
        """Models of a hub that stages still to come would ask it for."""
        wanted = {(m.name, m.revision) for m in models_of(self._run.variants())}
        source, target = (p.store.storage.at(MODELS) for p in (self._source, self._target))
        for name in source.children():
            kept, copy = source.at(name), target.at(name)
            manifest = find_record(kept, MANIFEST, "remove the model's folder") or {}
            named = (manifest.get("name"), manifest.get("revision"))
            if named in wanted and not copy.exists(MANIFEST):
                with understood(f"{kept.url}/{MANIFEST}", "remove the model's folder"):
                    sizes = [int(entry["size"]) for entry in manifest["files"].values()]
                    files = {path: entry["sha256"] for path, entry in manifest["files"].items()}
                self._begin(f"{MODELS}/{name}", sizes)
                transfer.copy(kept, copy, files)
                _create(copy, MANIFEST, kept)

    def _copy_folder(self, transfer: Transfer) -> None:
        """Everything of the run's own; what a former stay there has left besides is removed."""
        source, target = self._run.storage, self._target.run.storage
        past = self._run.supervision.url.removeprefix(f"{source.url}/")  # tells when it was at work
        sizes = {p: size for p, size in source.list().items() if _travels(p, past)}
        files = dict.fromkeys(sizes, "")
        self._begin(self._run.name, sizes.values())
        for path in target.list():
            if path not in files and not path.startswith(_STAYS) and _LEASES not in path:
                self._keep()
                target.delete(path)
        transfer.copy(source, target, files)

    def _settle(self) -> None:
        """Make the copy a run of its own, that goes on with the other cluster file."""
        run, passed = self._target.run, self._listener.passed
        jobs = [j for j in run.submissions.newest_jobs() if j.id]
        seen = run.submissions.seen()
        gone = {"state": JobState.CANCELLED, "detail": "left behind", "absent_since": None}
        with understood(f"{run.storage.url}/{SEEN}", "remove it"):
            left = {j.id for j in jobs if not _is_final(seen.get(j.id))}
        if left:  # another scheduler gives the same numbers to other people's jobs
            run.submissions.remember({**seen, **dict.fromkeys(left, gone)})
        if run.cluster() != self._cluster:
            run.move(self._cluster)
        passed("cluster")
        self._acquire(run.supervision).release()
        self._keeper.require()
        _create(run.storage, PLAN, self._run.storage)
        passed("plan")
        run.storage.delete(MOVED)
        passed("home")

    def _require_moved(self) -> None:
        moved = self._run.moved
        assert moved is not None  # said before anything was copied
        record_arrival(self._run.storage, moved, time.time())

    @contextmanager
    def _writing(self, folder: Storage, above: int = 0) -> Iterator[bool]:
        """The right to write a key's folder in the new store; whether we have it."""
        try:
            lease = self._acquire(folder, above)
        except LeaseHeldError as error:
            self._listener.say(f"{error}; it is made there, and not copied")
            yield False
            return
        self._keeper.take(lease)
        try:
            folder.sweep(but=leases.FOLDER)
            yield True
        finally:
            self._keeper.drop(lease)

    def _artifacts(self, instance: Instance) -> tuple[Artifact, Artifact]:
        """Of an instance, in the old store and in the new one."""
        source, target = (
            place.store.artifact(instance.stage, instance.key)
            for place in (self._source, self._target)
        )
        return source, target

    def _keep(self) -> None:
        self._keeper.require()
        self._listener.passed("file")

    def _begin(self, what: str, sizes: Iterable[int]) -> None:
        self._what, self._copied, self._total = what, 0, sum(sizes)

    def _count(self, num_bytes: int) -> None:
        self._copied += num_bytes
        self._listener.show(self._what, self._copied, self._total)


def _lock(place: Place, timeout_s: float) -> HeldLease:
    """The right to move a run, of which there is one. Raises RequestError."""
    try:
        return leases.acquire(
            place.run.storage.at(LOCK), holder=f"{place.run.name}/moving", timeout_s=timeout_s
        )
    except LeaseHeldError:
        raise RequestError(
            f"{place.run.name}: somebody else is moving it just now; try again once that has ended"
        ) from None


def _stay(place: Place, listener: Listener) -> None:
    """Give up a move that has not arrived. Raises RequestError when it has by now."""
    timeout_s = place.run.cluster().retry.heartbeat_timeout_s
    lock = _lock(place, timeout_s)
    try:
        moved = place.run.moved
        if moved and Place.at(moved.to).is_home:
            record_arrival(place.run.storage, moved, time.time())
            place.run.require_here()
        place.run.storage.delete(MOVED)
        listener.say(f"{place.run.name}: stays; what was copied lies there for another move")
    finally:
        lock.release()


def _rival(ours: Sequence[Manifest], there: Storage) -> Manifest | None:
    """The newest checkpoint of another training of the same key; None where all are ours."""
    chain = {segment.sha256 for m in ours for segment in m.metrics}
    theirs = checkpoints.head_of(checkpoints.committed(there))
    is_ours = theirs and theirs.metrics[-1].sha256 in chain
    head = checkpoints.head_of(ours)
    is_older = theirs and head and theirs.lease_n < head.lease_n
    return None if is_ours or is_older else theirs


def _create(target: Storage, path: str, source: Storage) -> None:
    """Create an object with another's bytes; the same, written by somebody before, is fine."""
    data = source.read_bytes(path)
    try:
        target.create(path, data)
    except AlreadyExistsError:
        if path == PLAN and target.read_bytes(path) != data:
            raise CorruptError(f"{target.url}/{path}: is another run's; move it away") from None


def _travels(path: str, past: str) -> bool:
    """Whether a file of a run's folder is copied: not what lets nodes talk, tokens among it.

    Leases are nothing without their holders, but for those below ``past``.
    """
    is_of_nodes = path.endswith("/head.json") or "/allocations/" in path
    is_right = _LEASES in path and not path.startswith(f"{past}/")
    return not (path.startswith(_STAYS) or is_right) and (not is_of_nodes or path.endswith(".log"))


def _is_final(row: Mapping[str, object] | None) -> bool:
    return row is not None and JobState(str(row["state"])).is_final
