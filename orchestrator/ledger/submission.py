"""What was handed to a scheduler, and what was last seen of it.

runs/<run>/submissions/0002/
    submission.json         who submitted, when, and what was left to do; created exclusively
    <job>/job.json          the scheduler's id, written when it has accepted the job
    <job>/ended.json        how it ended, where one of ours ended it or was it; created exclusively
    <job>/script.sh …       what it was given, and the job's own output
    whole.json              all of its jobs were handed over
    refused.json            or why the scheduler took one of them not, and the others were cancelled
runs/<run>/jobs-seen.json   the newest answer about every job: what is known when nobody answers
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orchestrator.errors import AlreadyExistsError
from orchestrator.ledger.records import find_record, understood
from orchestrator.ledger.storage import Storage, to_json

Submitter = Literal["user", "sentinel"]
JobKind = Literal["stage", "workers", "sentinel"]

_WHOLE = "whole.json"
_REFUSED = "refused.json"
SEEN = "jobs-seen.json"
_ENDED = "ended.json"
_REMEDY = "cancel the jobs that `squeue` shows, then move the folder away"


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """One job that the scheduler has accepted."""

    name: str
    kind: JobKind
    instance: str
    """The stage instance it works on; empty for a sentinel."""
    id: str
    """The scheduler's."""
    submitted_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Jobs that were handed over together."""

    number: int
    by: Submitter
    at: float
    """Seconds since the epoch."""
    jobs: tuple[SubmittedJob, ...]
    is_whole: bool
    """Whether all of it was handed over; else whoever did so may have died."""
    left: Mapping[str, float]
    """Stage instances that were not complete then, and how far the work on each was."""
    refusal: str = ""
    """Why the scheduler did not take one of its jobs; the others were cancelled."""


class Submissions:
    """All submissions of one run."""

    def __init__(self, run: Storage) -> None:
        self._run = run

    def all(self) -> tuple[Submission, ...]:
        """Oldest first."""
        numbers = self._run.numbers("submissions")
        return tuple(found for n in numbers if (found := self._read(n)))

    def next_number(self) -> int:
        """What the next one will be called."""
        return max(self._run.numbers("submissions"), default=0) + 1

    def begin(self, by: Submitter, left: Mapping[str, float]) -> int:
        """Create the next one exclusively; its number."""
        record = {"by": by, "at": time.time(), "left": dict(left)}
        return self._run.create_next("submissions", "/submission.json", lambda _: record)

    def record(self, number: int, job: SubmittedJob) -> None:
        """Remember that the scheduler has accepted a job."""
        self._run.replace(f"{self.folder(number)}/{job.name}/job.json", to_json(asdict(job)))

    def close(self, number: int) -> None:
        """Say that all jobs of a submission were handed over."""
        self._run.replace(f"{self.folder(number)}/{_WHOLE}", b"{}")

    def refuse(self, number: int, why: str) -> None:
        """Say that the scheduler has not taken all of a submission, whose jobs are cancelled."""
        self._run.replace(f"{self.folder(number)}/{_REFUSED}", to_json({"why": why}))

    def newest_jobs(self) -> list[SubmittedJob]:
        """Of each kind and instance, the jobs of the newest submission that has such."""
        newest: dict[tuple[JobKind, str], list[SubmittedJob]] = {}
        for submission in (s for s in self.all() if not s.refusal):
            newest |= {(job.kind, job.instance): [] for job in submission.jobs}
            for job in submission.jobs:
                newest[job.kind, job.instance].append(job)
        return [job for jobs in newest.values() for job in jobs]

    def end(self, ends: Mapping[str, Mapping[str, Any]]) -> None:
        """Write down how jobs ended, by id, for the time when the scheduler has forgotten them.

        The first word about a job stands.
        """
        for folder, job in self._with_folders():
            if job.id in ends:
                row = {**ends[job.id], "ended_at": time.time()}
                with suppress(AlreadyExistsError):
                    self._run.create_json(f"{folder}/{_ENDED}", row)

    def reopen(self, job_id: str) -> None:
        """A job runs again that had ended: somebody has put it back into the queue."""
        for folder in (folder for folder, job in self._with_folders() if job.id == job_id):
            self._run.delete(f"{folder}/{_ENDED}")
        if job_id in (seen := self.seen()):
            self.remember({i: row for i, row in seen.items() if i != job_id})

    def ended(self) -> dict[str, Any]:
        """How jobs ended, of those where that was written down, by id."""
        jobs = [(job.id, folder) for folder, job in self._with_folders()]
        rows = ((i, find_record(self._run, f"{f}/{_ENDED}", "remove it")) for i, f in jobs)
        return {job_id: row for job_id, row in rows if row is not None}

    def in_vain(self, left: Mapping[str, float]) -> int:
        """How many sentinels in a row have submitted what got no further, where ``left`` is now."""
        count = 0
        for submission in reversed(self.all()):
            if submission.by == "user" or submission.left != left:
                break
            count += submission.is_whole
        return count

    def users_last(self) -> float:
        """When a user last submitted or resumed; 0 when nobody has."""
        return max((s.at for s in self.all() if s.by == "user"), default=0.0)

    def seen(self) -> dict[str, Any]:
        """The newest answer about every job, by id."""
        return find_record(self._run, SEEN, "remove it") or {}

    def remember(self, seen: Mapping[str, Any]) -> None:
        """Keep the newest answers."""
        self._run.replace(SEEN, to_json(dict(seen)))

    @staticmethod
    def folder(number: int) -> str:
        """Where a submission lies below its run."""
        return f"submissions/{number:04d}"

    def _with_folders(self) -> Iterator[tuple[str, SubmittedJob]]:
        for submission in self.all():
            for job in submission.jobs:
                yield f"{self.folder(submission.number)}/{job.name}", job

    def _read(self, number: int) -> Submission | None:
        folder = self.folder(number)
        record = find_record(self._run, f"{folder}/submission.json", _REMEDY)
        if record is None:
            return None
        paths = (f"{folder}/{name}/job.json" for name in self._run.children(folder))
        rows = (find_record(self._run, path, _REMEDY) for path in paths)
        refused = find_record(self._run, f"{folder}/{_REFUSED}", _REMEDY)
        with understood(f"{self._run.url}/{folder}", _REMEDY):
            jobs = [SubmittedJob(**row) for row in rows if row]
            return Submission(
                number=number,
                jobs=tuple(sorted(jobs, key=lambda job: job.submitted_at)),
                is_whole=self._run.exists(f"{folder}/{_WHOLE}"),
                refusal=refused["why"] if refused else "",
                **record,
            )
