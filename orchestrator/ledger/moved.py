"""Where a run has gone, for all who still look for it in its old folder, and where it came from.

runs/<run>/moved.json     in the old store, by exclusive creation: from here on nobody works there
runs/<run>/arrival.json   in the new one: whose copy this folder is
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from orchestrator.ledger.records import find_record, understood
from orchestrator.ledger.storage import Storage, to_json

MOVED = "moved.json"
ARRIVAL = "arrival.json"
_REMEDY = "restore it from the mover's output, or remove it where the run is to stay"


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What a mover leaves behind."""

    to: str
    """URL of the run's new folder."""
    at: float
    """When the mover had all leases, seconds since the epoch."""
    leases: Mapping[str, int] = field(default_factory=dict)
    """Stage instance to the fencing number by which the mover took its key."""
    work: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Stage instance to the files of its unfinished artifact, with their sizes in bytes, as they
    were once the leases were taken: what is written later counts for nothing."""
    arrived_at: float | None = None
    """When all of it was there; None while the move goes on."""

    @property
    def words(self) -> str:
        """Where the run is: ``moved to URL``, or ``on its way to URL``."""
        return f"{'on its way' if self.arrived_at is None else 'moved'} to {self.to}"


def find_moved(run: Storage) -> Moved | None:
    """Where a run's folder says that it has gone; None when it has not."""
    record = find_record(run, MOVED, _REMEDY)
    with understood(f"{run.url}/{MOVED}", _REMEDY):
        return None if record is None else Moved(**record)


def record_moved(run: Storage, moved: Moved) -> None:
    """Say where a run goes. Raises AlreadyExistsError when somebody has said so before."""
    run.create_json(MOVED, asdict(moved))


def record_arrival(run: Storage, moved: Moved, at: float) -> None:
    """Say in the old folder that all of the run is in the new one."""
    run.replace(MOVED, to_json(asdict(replace(moved, work={}, arrived_at=at))))


def arrived_from(run: Storage) -> str:
    """URL of the folder whose copy this one is, or becomes; empty when it is nobody's."""
    record = find_record(run, ARRIVAL, _REMEDY) or {}
    return str(record.get("from", ""))


def claim(run: Storage, origin: str) -> None:
    """Say whose copy a folder becomes."""
    run.replace(ARRIVAL, to_json({"from": origin}))
