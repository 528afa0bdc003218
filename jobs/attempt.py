"""One attempt of one stage, from its command line to its exit code.

Takes the key's lease, keeps its heartbeat, hands the stage a view of what it may read and where it
may write, and publishes the artifact's manifest when the work is done. Any instruction may be the
last one: whatever is left behind is work in progress that the next attempt takes up.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import math
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from jobs.disk import disk_sentence
from jobs.ray_nodes import drain_host
from orchestrator.errors import (
    INTERRUPTIONS,
    Cause,
    ExitCode,
    LeaseHeldError,
    OrchestratorError,
    RequestError,
    RunFailedError,
    cause_of,
)
from orchestrator.ledger import lease as leases
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.attempt import DRAINED, FAULT_ORDER, LOCAL_FOLDER, AttemptFolder
from orchestrator.ledger.bucket_path import BucketPath
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.source_files import root_at
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.ledger.store import Store
from orchestrator.plan.graph import Scope
from orchestrator.plan.planner import Instance, Plan
from orchestrator.spec.cluster import Cluster, Resources
from orchestrator.spec.loader import resolve_env, variant_recipe
from orchestrator.spec.recipe import Recipe

_WARNINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
PARENT = "ORCHESTRATOR_PARENT"
"""Environment variable with the process that a stage must not outlive."""
_PROGRESS_EVERY_S = 0.5
_TICK_S = 0.5
_REPORTED_PACKAGES = frozenset(
    ("orchestrator", "torch", "torchaudio", "transformers", "deepspeed", "ray", "numpy", "pyarrow")
)

log = logging.getLogger(__name__)

Work = Callable[["Attempt"], dict[str, Any]]


class StopRequestedError(BaseException):
    """A signal or a preemption notice arrived: let every ``finally`` run, then leave.

    Not an Exception, so that no handler swallows it.
    """


class DataSource(NamedTuple):
    """Where a source's recordings lie on this cluster."""

    root: Path | BucketPath
    container: str
    """What its files are in: a key of `jobs.audio.trees.TREES`."""


@dataclass
class Attempt:
    """What a stage's work sees of the world."""

    recipe: Recipe
    """The variant's resolved recipe."""
    cluster: Cluster
    resources: Resources
    """This stage's share of the cluster."""
    artifacts: tuple[Artifact, ...]
    """What this attempt produces: one artifact, or all that one pass of the encoder serves."""
    upstreams: tuple[dict[str, Artifact], ...]
    """For each of ``artifacts``, the complete artifacts it is made of, by role."""
    lease_n: int
    """Fencing number of this attempt."""
    folder: Path
    """Local folder for logs and TensorBoard."""
    record: AttemptFolder
    cache: Path = Path()
    """Local folder for copies of what a remote store holds; gone when the attempt ends."""
    ray_address: str = ""
    """Address of the run's Ray session; empty when there is none."""
    name: str = ""
    """Run and stage instance: ``twist-1a2b3c4d/train-0123456789ab``."""
    part: str = ""
    """What tells its node apart from others of its stage: ``1`` of ``pretrain.1``."""
    interruptions: tuple[int, float] = (0, 0.0)
    """How many attempts before this one did not succeed, and how many seconds they lasted."""
    own_recipes: tuple[Recipe, ...] = ()
    """For each of ``artifacts``, the resolved recipe of a variant that needs it; the one ``recipe``
    when absent."""
    recipes: tuple[Recipe, ...] = ()
    """Resolved recipes of all variants that need it, where there are several."""
    scope: Scope = field(default_factory=Scope)
    """How much of the recipe its run does."""
    publish: Callable[[str, Mapping[str, Any]], None] = lambda _key, _facts: None
    """Publishes the artifact of a key, with its facts, before the others are made: whatever becomes
    of them, nobody makes it again."""
    _events: list[str] = field(default_factory=list)
    _segments: int = 0
    _progressed_at: float = -math.inf
    _lost: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def keys(self) -> tuple[str, ...]:
        """The full keys this attempt produces."""
        return tuple(a.key for a in self.artifacts)

    @property
    def outs(self) -> tuple[Storage, ...]:
        """The folders of the artifacts, work in progress included."""
        return tuple(a.storage for a in self.artifacts)

    @property
    def each_recipe(self) -> tuple[Recipe, ...]:
        """The resolved recipe of each artifact."""
        return self.own_recipes or (self.recipe,) * len(self.artifacts)

    @property
    def out(self) -> Storage:
        """The folder of the first artifact."""
        return self.artifacts[0].storage

    @property
    def upstream(self) -> dict[str, Artifact]:
        """What the first artifact is made of, by role."""
        return self.upstreams[0]

    @property
    def all_recipes(self) -> tuple[Recipe, ...]:
        """The resolved recipes of all variants that need what this attempt produces."""
        return self.recipes or (self.recipe,)

    def data_source(self, source: str) -> DataSource:
        """Where a source's recordings lie here, and in what.

        Raises RequestError when the cluster does not say, or it is no folder; a bucket is asked
        when it is read.
        """
        where = f"cluster: data.{source}"
        if source not in self.cluster.data:
            raise RequestError(f"{where}: missing; map the source to its folder")
        given = self.cluster.data_roots[source]
        root = root_at(resolve_env(given.root, where=where), where=where)
        if isinstance(root, Path) and not root.is_dir():
            raise RequestError(f"{where}: {root} is not a folder; check the path or mount it")
        return DataSource(root, given.container)

    def model_source(self, name: str) -> str:
        """The local folder of a model, or its Hugging Face id when the cluster names no folder."""
        if name not in self.cluster.models:
            return name
        return resolve_env(self.cluster.models[name], where=f"cluster: models.{name}")

    def event(self, kind: str, **fields: Any) -> None:
        """Record that something happened."""
        with self._lock:
            self._events.append(json.dumps({"at": time.time(), "kind": kind, **fields}))

    def progress(self, done: float, total: float, unit: str, **rates: float) -> None:
        """Say how far the work is, for those who watch; shown at most twice a second."""
        now = time.monotonic()
        if done < total and now - self._progressed_at < _PROGRESS_EVERY_S:
            return
        self._progressed_at = now
        how_far = {"at": time.time(), "done": done, "total": total, "unit": unit, "rates": rates}
        self.record.storage.replace("progress.json", to_json(how_far))

    def check(self) -> None:
        """Raise LeaseHeldError when this attempt has lost its right to work."""
        if self._lost:
            raise LeaseHeldError(self._lost)

    def flush(self) -> None:
        """Write the events gathered so far as the next whole segment."""
        with self._lock:
            if not self._events:
                return
            events = tuple(self._events)
        data = "\n".join([*events, ""]).encode()
        self.record.storage.replace(f"events-{self._segments + 1:04d}.jsonl", data)
        with self._lock:
            del self._events[: len(events)]
            self._segments += 1


def run_stage(stage: str, work: Work, argv: Sequence[str] | None = None) -> int:
    """Run one attempt as the command line says and return its exit code."""
    options = parse(stage, argv)
    return as_process(options, lambda: _run(stage, work, options))


def as_process(options: argparse.Namespace, act: Callable[[], int]) -> int:
    """Do the work of an attempt's driver; its exit code, whose cause is recorded."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)
    for number in _WARNINGS:
        signal.signal(number, _stop)
    try:
        return act()
    except StopRequestedError:
        with suppress(OSError):
            sys.stderr.write("error: stopped by a signal\n")
        return ExitCode.STOPPED
    except Exception as error:  # noqa: BLE001 (the last stop: its cause goes to the supervisor)
        return _fail(error, options)


def _run(stage: str, work: Work, options: argparse.Namespace) -> int:
    store = Store.open(options.store)
    run = RunFolder(store.run_storage(options.run))
    plan = run.plan()
    members = [
        i for i in plan.group(options.instance) if not store.artifact(i.stage, i.key).is_complete()
    ]
    if not members:
        return ExitCode.DONE
    lacking = {i.id: absent for i in members if (absent := _absent(store, plan, i))}
    if len(lacking) == len(members):
        raise _without(lacking)
    members = [i for i in members if i.id not in lacking]
    artifacts = tuple(store.artifact(i.stage, i.key) for i in members)
    holder = f"{options.run}/{options.instance}/{options.attempt:04d}"
    timeout_s = run.cluster().retry.heartbeat_timeout_s
    held: list[leases.HeldLease] = []
    with ExitStack() as stack:
        for artifact in artifacts:
            held.append(leases.acquire(artifact.storage, holder=holder, timeout_s=timeout_s))
            stack.callback(_unless_away, held[-1].release)
            artifact.storage.sweep(but=leases.FOLDER)  # of attempts that were killed
        attempt = _attempt(stack, store, run, plan, members, held[0].number, options)
        stack.enter_context(_heartbeat(attempt, held))
        for instance, artifact in zip(members, artifacts, strict=True):
            artifact.begin(instance.inputs)
        born_at = Process.current().started_at
        attempt.event("begin", stage=stage, lease=attempt.lease_n, born_at=born_at)
        log.info("%s: attempt %d begins", options.instance, options.attempt)
        publisher = _Publisher(attempt, members, held, options)
        attempt.publish = publisher
        publisher.publish_rest(work(attempt))
    if lacking:
        raise _without(lacking)
    return ExitCode.DONE


def _attempt(
    stack: ExitStack,
    store: Store,
    run: RunFolder,
    plan: Plan,
    members: Sequence[Instance],
    lease_n: int,
    options: argparse.Namespace,
) -> Attempt:
    leader, cluster = members[0], run.cluster()
    needed_by = {name for member in members for name in member.variants}
    recipe = run.recipe()
    recipes = {
        v["name"]: variant_recipe(recipe, v["overrides"], where=run.name, name=v["name"])
        for v in plan.variants
        if v["name"] in needed_by
    }
    record = _record(store, options)
    given = record.storage.local_root or os.environ.get(LOCAL_FOLDER)
    folder = Path(given or Path(stack.enter_context(tempfile.TemporaryDirectory()), "attempts/1"))
    folder.mkdir(parents=True, exist_ok=True)
    return Attempt(
        recipe=recipes[leader.variants[0]],
        own_recipes=tuple(recipes[i.variants[0]] for i in members),
        recipes=tuple(recipes.values()),
        scope=plan.scope,
        cluster=cluster,
        resources=cluster.resources_of(leader.stage, leader.node),
        part=leader.part,
        artifacts=tuple(store.artifact(i.stage, i.key) for i in members),
        upstreams=tuple(_upstream(store, plan, i) for i in members),
        lease_n=lease_n,
        folder=folder,
        record=record,
        cache=Path(stack.enter_context(tempfile.TemporaryDirectory())),
        ray_address=os.environ.get("RAY_ADDRESS", ""),
        name=f"{run.name}/{options.instance}",
        interruptions=_interruptions(run, options),
    )


def _interruptions(run: RunFolder, options: argparse.Namespace) -> tuple[int, float]:
    earlier = [a for a in run.attempts(options.instance) if a.number < options.attempt]
    before = [a for a in earlier if not a.storage.exists(FAULT_ORDER)]
    ended = [(a.started, end) for a in before if (end := a.end)]
    lasted_s = sum(max(end["ended_at"] - start["started_at"], 0.0) for start, end in ended)
    return sum(end.get("cause", "") in INTERRUPTIONS for _, end in ended), lasted_s


def _upstream(store: Store, plan: Plan, instance: Instance) -> dict[str, Artifact]:
    needs = {role: plan.instance(needed) for role, needed in instance.needs.items()}
    return {role: store.artifact(i.stage, i.key) for role, i in needs.items()}


def _absent(store: Store, plan: Plan, instance: Instance) -> list[str]:
    """What it is made of and is not there: one that has failed fails no other of its group."""
    upstream = _upstream(store, plan, instance)
    return [instance.needs[role] for role, found in upstream.items() if not found.is_complete()]


def _without(lacking: Mapping[str, Sequence[str]]) -> RunFailedError:
    """Not for good: a store may show late what another machine has written."""
    said = (f"{name} is made of {', '.join(absent)}" for name, absent in lacking.items())
    return RunFailedError(f"{'; '.join(said)}, which is not there; see why that has failed")


class _Publisher:
    """Publishes the artifacts of an attempt, each once."""

    def __init__(
        self,
        attempt: Attempt,
        members: Sequence[Instance],
        held: Sequence[leases.HeldLease],
        options: argparse.Namespace,
    ) -> None:
        self._attempt = attempt
        about = {"run": options.run, "attempt": options.attempt, "lease": attempt.lease_n}
        self._producer = {**about, "versions": _versions()}
        of_each = zip(members, attempt.artifacts, held, strict=True)
        self._left = {artifact.key: (i, artifact, lease) for i, artifact, lease in of_each}

    def __call__(self, key: str, facts: Mapping[str, Any]) -> None:
        """Publish that of a key. Raises LeaseHeldError when another may work on it."""
        instance, artifact, lease = self._left.pop(key)
        lease.beat()  # this process may have been stopped for longer than others wait
        artifact.storage.sweep(but=leases.FOLDER)  # of ranks and workers that were killed
        artifact.publish(
            inputs=instance.inputs,
            facts=facts,
            producer={**self._producer, "instance": instance.id},
            require=lease.require,
        )
        log.info("%s is done%s", instance.id, _in_words(facts))
        self._attempt.event("published", keys=[key])

    def publish_rest(self, facts: dict[str, Any]) -> None:
        """Publish what is left, by the facts of all and those ``per_key``."""
        per_key = facts.pop("per_key", {})
        for key in tuple(self._left):
            self(key, {**facts, **per_key.get(key, {})})


def _in_words(facts: Mapping[str, Any]) -> str:
    """Those that are one number or word, for a log."""
    shown = {k: v for k, v in facts.items() if isinstance(v, int | float | str)}
    words = (f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
    return f": {', '.join(words)}" if shown else ""


@contextmanager
def _heartbeat(attempt: Attempt, held: Sequence[leases.HeldLease]) -> Any:
    """Keep the leases alive and the events flowing."""
    ended = threading.Event()
    every_s = attempt.cluster.retry.heartbeat_timeout_s / 6
    thread = threading.Thread(target=_beat, args=(attempt, held, every_s, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _unless_away(attempt.flush)


def _unless_away(act: Callable[[], None]) -> None:
    """Do what a store that is away must not keep from ending, nor hide why it ends."""
    try:
        act()
    except OSError as error:
        log.warning("the store is out of reach: %s", error)


def _beat(
    attempt: Attempt, held: Sequence[leases.HeldLease], every_s: float, ended: threading.Event
) -> None:
    beaten_at, said = time.monotonic(), ""
    while not ended.wait(_TICK_S):
        if os.environ.get(PARENT, "") not in ("", str(os.getppid())):
            os._exit(ExitCode.ORPHANED)  # who started it is gone, and prints it no more
        try:
            attempt.flush()
            _obey_drill(attempt)
            if time.monotonic() - beaten_at >= every_s:
                for lease in held:
                    lease.beat()
                beaten_at, said = time.monotonic(), ""
        except LeaseHeldError as error:
            attempt._lost = str(error)
            return
        except (OSError, OrchestratorError) as error:  # the store may be back at the next beat
            if str(error) != said:
                log.warning("the store is out of reach: %s", said := str(error))


def _obey_drill(attempt: Attempt) -> None:
    """Be the victim of `orchestrator chaos`, when it names the driver or this machine."""
    if attempt.record.storage.exists(FAULT_ORDER):
        fault = attempt.record.storage.read_json(FAULT_ORDER)
        if host := fault.get(DRAINED):
            drain_host(host)
        elif fault["kind"] == "driver" or fault.get("node") == socket.gethostname():
            os.kill(os.getpid(), signal.SIGKILL)


def parse(stage: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of one attempt of a stage."""
    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.{stage}",
        description=f"One attempt of the {stage} stage; started by the supervisor.",
    )
    parser.add_argument("--store", required=True, help="URL of the store")
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument(
        "--instance", required=True, help="stage instance, such as tokenize-0123456789ab"
    )
    parser.add_argument("--attempt", required=True, type=int, help="number of the attempt")
    return parser.parse_args(argv)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    # A process that is connected to Ray is under abseil's handler too, which sets an alarm that
    # aborts it three seconds later, whatever it has to save.
    signal.alarm(0)
    for number in _WARNINGS:  # a second one must not interrupt the saving
        signal.signal(number, signal.SIG_IGN)
    raise StopRequestedError


def _fail(error: Exception, options: argparse.Namespace) -> int:
    """Print why the attempt failed and record it as its last event; the exit code.

    The log may lie in a store that is full: then the exit code, and what this machine keeps, tell.
    """
    is_ours, cause = isinstance(error, OrchestratorError), cause_of(error)
    with suppress(OSError):
        sys.stderr.write(f"error: {error}\n" if is_ours else _traceback_of(error))
    try:
        record = _record(Store.open(options.store), options)
        record.record_failure(cause, disk_sentence(error))
    except (OSError, OrchestratorError) as unwritten:
        log.warning("the cause could not be recorded in the store: %s", unwritten)
    if isinstance(error, LeaseHeldError):
        return ExitCode.LEASE_HELD
    if cause is Cause.STORAGE:
        return ExitCode.UNREACHABLE
    return error.exit_code if isinstance(error, OrchestratorError) else ExitCode.FAILED


def _traceback_of(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def _record(store: Store, options: argparse.Namespace) -> AttemptFolder:
    return AttemptFolder.of(store.run_storage(options.run), options.instance, options.attempt)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _REPORTED_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError, FileNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
