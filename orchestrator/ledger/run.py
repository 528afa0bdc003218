"""One run's folder: what was asked for, what executes, and every attempt that was made.

runs/<run>/
    recipe.yaml  cluster.yaml  code.json  code/…   what was asked for and what the jobs execute
    clusters/0001.yaml                             where it has moved to since
    plan.json                                      created last and exclusively: now the run exists
    stages/<instance>/attempts/0002/…              every attempt of a stage (`ledger.attempt`)
    supervisor/0001/…       the same for the supervisor itself
    stages/<instance>/workers/12-0.json   what a worker on Slurm holds, and since when
    stages/<instance>/allocations/12-0/   how the nodes of a Slurm job talk to each other
    submissions/…           what was handed to a scheduler (`ledger.submission`)
    cancel/0001.json        a wish to stop
    moved.json  arrival.json  move-lease/…   on its way to another store (`ledger.moved`)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from orchestrator.errors import AlreadyExistsError, RequestError
from orchestrator.ledger import lease as leases
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.lease import Process
from orchestrator.ledger.moved import Moved, find_moved
from orchestrator.ledger.records import record_at, understood
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.ledger.submission import Submissions
from orchestrator.plan.planner import Instance, Plan, Variant
from orchestrator.spec.cluster import RETIRED, Cluster
from orchestrator.spec.loader import parse_cluster, parse_recipe, variant_recipe
from orchestrator.spec.recipe import Recipe, by_score

PLAN = "plan.json"
ALLOCATION_FOLDER = "ORCHESTRATOR_ALLOCATION"
"""Environment variable with the URL of the folder where an allocation's nodes talk."""
ALLOCATION_ADDRESS = "ORCHESTRATOR_ALLOCATION_ADDRESS"
"""Environment variable with the address of an allocation's first node, as the others reach it."""
ALLOCATION_NODES = "ORCHESTRATOR_ALLOCATION_NODES"
"""Environment variable with the number of an allocation's nodes."""
STANDBY = "ORCHESTRATOR_STANDBY"
"""Environment variable with the address of the process that forks this node's training ranks."""
CODE = ("orchestrator", "jobs")
"""The packages that jobs execute, in the run's ``code`` folder."""
RAY_CODE = "ORCHESTRATOR_RAY_CODE"
"""Environment variable with the folder of the run's code, where Ray has to take it to its nodes."""
_REMEDY = "restore it, or move the run's folder away"
ALLOCATION_ENDED = "ended.json"
"""In an allocation's folder: its first node has nothing left to do."""


@dataclass(frozen=True)
class RunFolder:
    """A run in the store."""

    storage: Storage

    @property
    def name(self) -> str:
        """The run's name."""
        return self.storage.url.rsplit("/", 1)[-1]

    def exists(self) -> bool:
        """Whether the run was created whole."""
        return self.storage.exists(PLAN)

    def create(
        self, plan: Plan, recipe: Recipe, cluster: Cluster, code: Mapping[str, bytes], origin: Any
    ) -> bool:
        """Write the folder; False when the run exists already.

        Raises RequestError when it has other keys.
        """
        if self.exists():
            self._require_same(plan)
            return False
        self.storage.replace("recipe.yaml", to_yaml(recipe))
        self.storage.replace("cluster.yaml", to_yaml(cluster))
        self.storage.replace("code.json", json.dumps(origin, indent=1).encode())
        for path in self.storage.list("code"):  # of a submission that was killed half way
            if path.removeprefix("code/") not in code:
                self.storage.delete(path)
        for path, data in code.items():
            self.storage.replace(f"code/{path}", data)
        try:
            self.storage.create_json(PLAN, plan.to_json())
        except AlreadyExistsError:
            self._require_same(plan)
            return False
        return True

    def plan(self) -> Plan:
        """The plan as submitted.

        Raises RequestError when there is no such run, CorruptError when the plan is damaged.
        """
        if not self.exists():
            raise RequestError(
                f"{self.name}: no such run in {self.storage.url}; `orchestrator status` lists "
                "them, --cluster names another store"
            )
        with understood(f"{self.storage.url}/{PLAN}", _REMEDY):
            return Plan.from_json(self.storage.read_json(PLAN))

    def chosen(self, name: str | None) -> tuple[Instance, ...]:
        """The instances of a stage's, a node's or an instance's name; all of them for None.

        Raises RequestError with the names there are.
        """
        plan = self.plan()
        if chosen := plan.chosen(name):
            return chosen
        raise RequestError(f"{name}: no such stage in {self.name}; it has {', '.join(plan.names)}")

    def recipe(self) -> Recipe:
        """The recipe with its sweep."""
        with understood(f"{self.storage.url}/recipe.yaml", _REMEDY):
            raw = self._yaml("recipe.yaml")
            if "evaluate" in raw:  # of a version before each score had a section
                raw["evaluate"] = by_score(raw["evaluate"])
            return parse_recipe(raw, where=f"{self.name}/recipe.yaml")

    def cluster(self) -> Cluster:
        """The cluster as submitted, or the one the run has moved to since."""
        moves = self.storage.children("clusters")
        path = f"clusters/{moves[-1]}" if moves else "cluster.yaml"
        with understood(f"{self.storage.url}/{path}", _REMEDY):
            raw = self._yaml(path)
            for options in (raw.get("resources", {}), raw.get("slurm", {}).get("stages", {})):
                options.pop(RETIRED, None)  # of a version before each score was a stage
            return parse_cluster(raw, where=f"{self.name}/{path}")

    @property
    def num_moves(self) -> int:
        """How often the run has gone on with another cluster."""
        return len(self.storage.children("clusters"))

    def move(self, cluster: Cluster) -> None:
        """Go on with another cluster from the next supervisor on."""
        self.storage.create(f"clusters/{self.num_moves + 1:04d}.yaml", to_yaml(cluster))

    @property
    def moved(self) -> Moved | None:
        """Where it goes, or has gone; None where it is at home. Raises CorruptError."""
        return find_moved(self.storage)

    def require_here(self, verb: str = "resume") -> None:
        """Raises RequestError, with where to say ``verb``, when the run goes on elsewhere."""
        if (moved := self.moved) is None:
            return
        if moved.arrived_at is None:
            raise RequestError(
                f"{self.name}: is {moved.words}; `orchestrator resume {self.name} "
                "--cluster FILE` with that store's cluster file brings the rest, with this "
                "store's it stays"
            )
        effect = "goes on there" if verb == "resume" else "reaches it there"
        raise RequestError(f"{self.name}: {moved.words}; `orchestrator {verb} {moved.to}` {effect}")

    def variants(self) -> tuple[Variant, ...]:
        """Every variant with its recipe."""
        recipe, plan = self.recipe(), self.plan()
        with understood(f"{self.storage.url}/{PLAN}", _REMEDY):
            return tuple(
                Variant(
                    name=row["name"],
                    overrides=row["overrides"],
                    recipe=variant_recipe(
                        recipe, row["overrides"], where=self.name, name=row["name"]
                    ),
                )
                for row in plan.variants
            )

    def attempts(self, instance_id: str) -> tuple[AttemptFolder, ...]:
        """All attempts of a stage instance, oldest first."""
        return self._attempts(f"stages/{instance_id}/attempts")

    def supervisors(self) -> tuple[AttemptFolder, ...]:
        """All supervisors the run has had, oldest first."""
        return self._attempts("supervisor")

    def begin_attempt(self, instance_id: str, **about: Any) -> AttemptFolder:
        """Create the next attempt's folder, exclusively."""
        return self._begin(f"stages/{instance_id}/attempts", about)

    def begin_supervisor(self, **about: Any) -> AttemptFolder:
        """Create the next supervisor's folder, exclusively."""
        return self._begin("supervisor", about)

    def live_supervisor(self) -> AttemptFolder | None:
        """The supervisor at work, if any."""
        for attempt in reversed(self.supervisors()):
            if attempt.end is None and self._is_at_work(attempt.process):
                return attempt
        return None

    def stage(self, instance_id: str) -> Storage:
        """The folder of a stage instance."""
        return self.storage.at("stages", instance_id)

    def allocation(self, instance_id: str, restart_id: str) -> Storage:
        """Where the nodes of one start of a job talk to each other; ``restart_id`` names it."""
        return self.stage(instance_id).at("allocations", restart_id)

    def note_worker(self, instance_id: str, name: str, **about: float) -> None:
        """Say what a worker of a data stage holds beside its attempts, from when to when."""
        self.storage.replace(f"stages/{instance_id}/workers/{name}.json", to_json(about))

    def worker_notes(self, instance_id: str) -> tuple[dict[str, Any], ...]:
        """What workers of a data stage have said of themselves."""
        folder = f"stages/{instance_id}/workers"
        names = self.storage.children(folder)
        return tuple(record_at(self.storage, f"{folder}/{name}", "remove it") for name in names)

    @property
    def submissions(self) -> Submissions:
        """What was handed to a scheduler."""
        return Submissions(self.storage)

    def submitted_at(self) -> float | None:
        """When somebody first set to work on the run, in seconds since the epoch."""
        supervisors = (s.started_at for s in self.supervisors())
        submissions = (s.at for s in self.submissions.all())
        return min((*supervisors, *submissions), default=None)

    @property
    def supervision(self) -> Storage:
        """Where the supervisor's lease lies."""
        return self.storage.at("supervisor-lease")

    def supervising(self) -> Process | None:
        """Who holds the supervisor's lease and is alive; None when nobody is."""
        held = leases.live(self.supervision, self.cluster().retry.heartbeat_timeout_s)
        return held.process if held else None

    def supervised(self, *, is_alive: bool) -> list[tuple[float, float]]:
        """From when to when supervisors were at work, the last one until now where it lives."""
        *past, (began_at, beaten_at) = leases.spans(self.supervision) or [(0.0, 0.0)]
        last = (began_at, time.time() if is_alive else beaten_at)
        return [*past, last] if began_at else []

    def _is_at_work(self, supervisor: Process) -> bool:
        alive = supervisor.is_alive()
        # Another machine, or this one before its last boot: only the heartbeat can tell.
        return self.supervising() == supervisor if alive is None else alive

    def request_cancel(self, stage: str | None) -> int:
        """Ask whoever supervises the run to stop it, or one stage of it; the wish's number."""
        wish = {"stage": stage, "asked_at": time.time()}
        return self.storage.create_next("cancel", ".json", lambda _: wish)

    def note_cancelled(self, number: int, request: Mapping[str, Any]) -> None:
        """Say that what a wish was about has stopped."""
        obeyed = {**request, "obeyed_at": time.time()}
        self.storage.replace(f"cancel/{number:04d}.json", to_json(obeyed))

    def cancel_requests(self) -> tuple[dict[str, Any], ...]:
        """All wishes to stop, oldest first; one that was obeyed has an ``obeyed_at``."""
        return tuple(
            record_at(self.storage, f"cancel/{name}", "remove it")
            for name in self.storage.children("cancel")
        )

    def cancelled_stages(self) -> set[str | None]:
        """What was cancelled since a user last submitted: stages, instances, or None for all."""
        since = self.submissions.users_last()
        with understood(f"{self.storage.url}/cancel", "remove what is not ours there"):
            return {c["stage"] for c in self.cancel_requests() if c["asked_at"] > since}

    def _attempts(self, folder: str) -> tuple[AttemptFolder, ...]:
        names = [
            n
            for n in self.storage.children(folder)
            if n.isdecimal() and self.storage.exists(f"{folder}/{n}/attempt.json")
        ]
        return tuple(AttemptFolder(int(n), self.storage.at(folder, n)) for n in names)

    def _begin(self, folder: str, about: Mapping[str, Any]) -> AttemptFolder:
        number = self.storage.create_next(
            folder,
            "/attempt.json",
            lambda number: {"number": number, "started_at": time.time(), **about},
        )
        attempt = AttemptFolder(number, self.storage.at(folder, f"{number:04d}"))
        attempt.forget()  # what was said of one of the same name, in a store since emptied
        return attempt

    def _require_same(self, plan: Plan) -> None:
        there = {i.id for i in self.plan().instances}
        if there != {i.id for i in plan.instances}:
            raise RequestError(
                f"--name {self.name}: a run of this name exists with other keys; "
                "choose another name, or leave --name out"
            )

    def _yaml(self, path: str) -> dict[str, Any]:
        raw: dict[str, Any] = yaml.safe_load(self.storage.read_bytes(path))
        return raw


def to_yaml(spec: Recipe | Cluster) -> bytes:
    """A spec as YAML, every value in full."""
    return yaml.safe_dump(
        spec.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True
    ).encode()
