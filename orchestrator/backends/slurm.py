"""Slurm: a job is an sbatch script written by submitit; what became of it, sacct and squeue know.

In: a `Job`. Out: the exact text that sbatch gets, the id it gives, and one answer about any number
of jobs. Nothing is pickled: the script names a module of the run's own code, which brings its own
signal handlers, so that submitit's (one checkpointing task, SIGTERM ignored, any signal in a short
job taken for its time-out) never come into play.
"""

from __future__ import annotations

import math
import re
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedSubmissionError

from orchestrator.backends.base import Job, JobRef, guarded
from orchestrator.backends.slurm_commands import SACCT, ask
from orchestrator.backends.slurm_reasons import LAUNCH_FAILED, in_plain_words
from orchestrator.errors import BackendError, Cause, ExitCode, RequestError
from orchestrator.ledger.path_store import PathStore, explained
from orchestrator.ledger.status import JobState, JobStatus
from orchestrator.spec.cluster import SlurmOptions

NAME = "slurm"
SCRIPT = "script.sh"
"""In a job's folder: what sbatch was given."""
ADOPT_TRIES = 3
ADOPT_EVERY_S = 2.0
_DAY_S = 86_400.0

_WORDS = {
    JobState.QUEUED: "PENDING CONFIGURING EXPEDITING LAUNCH_FAILED POWER_UP_NODE RECONFIG_FAIL "
    "REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT",
    JobState.RUNNING: "RUNNING COMPLETING RESIZING SIGNALING STAGE_OUT STOPPED SUSPENDED UPDATE_DB",
    JobState.SUCCEEDED: "COMPLETED",
    JobState.PREEMPTED: "PREEMPTED",
    JobState.CANCELLED: "CANCELLED",
    JobState.FAILED: "BOOT_FAIL DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY REVOKED TIMEOUT",
}
STATES = {word: state for state, words in _WORDS.items() for word in words.split()}
"""Slurm's words (sacct(1), JOB STATE CODES) in ours."""
_PERHAPS_REQUEUED = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})
"""Ends in the books of a job that may wait in the queue again."""
CAUSES = {
    "PREEMPTED": Cause.PREEMPTED,
    "REQUEUED": Cause.PREEMPTED,
    "TIMEOUT": Cause.WALLTIME,
    "NODE_FAIL": Cause.NODE_LOST,
    "BOOT_FAIL": Cause.NODE_LOST,
    "OUT_OF_MEMORY": Cause.HOST_OOM,
    "CANCELLED": Cause.CANCELLED,
}
"""Why an attempt ended, where only Slurm saw it."""


class NoRoomError(RequestError):
    """The site lets this user, or all, have no more jobs in the queue; later it may."""


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of a job that only Slurm knows."""

    sbatch: SlurmOptions = field(default_factory=SlurmOptions)
    """Where it may run, and at whose cost."""
    requeue: bool = True
    """Whether Slurm may start it again by itself."""
    setup: tuple[str, ...] = ()
    """Shell lines before the command."""
    teardown: tuple[str, ...] = ()
    """Shell lines after it."""
    srun: tuple[str, ...] = ()
    """Options for what launches the command on the nodes."""


def max_array(config: Mapping[str, str]) -> int:
    """Most tasks of one array at a site with this configuration; 0 where it takes no arrays."""
    return max(int(config.get("MaxArraySize", "1001")) - 1, 0)


def job_options(job: Job) -> JobOptions:
    """The job's options for Slurm; the defaults where it has none."""
    return job.options if isinstance(job.options, JobOptions) else JobOptions()


class _Script(submitit.SlurmExecutor):
    """submitit's sbatch text, wherever it is asked for: a plan is shown on laptops too."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def text(self, command: str) -> str:
        return self._make_submission_file_text(command, "")


class SlurmBackend:
    """The scheduler behind sbatch, sacct, squeue and scancel on PATH."""

    def __init__(self, *, adopt_every_s: float = ADOPT_EVERY_S) -> None:
        """``adopt_every_s``: pause between looks for a job whose sbatch did not answer."""
        self._adopt_every_s = adopt_every_s

    def submit(self, job: Job, after: Sequence[JobRef] = ()) -> JobRef:
        """Submit the job's script, kept beside its log.

        When sbatch does not answer, the job may have been accepted all the same: it is looked for,
        and never submitted twice. Raises BackendError, or RequestError when Slurm
        refuses what the job asks for.
        """
        path, text = job.log.parent / SCRIPT, script(job, after)
        PathStore(path.parent).replace(SCRIPT, text.encode())
        submitted_at = time.time()
        try:
            answer = ask("sbatch", str(path), script=text)
            job_id = _job_id(answer)
        except (BackendError, FailedSubmissionError) as error:
            tries = ADOPT_TRIES if re.search(_NO_ANSWER, str(error)) else 1
            adopted = self._adopted(job, 0 if re.search(_NOT_REACHED, str(error)) else tries)
            if adopted is None:
                raise _refusal(job, error) from None
            job_id = adopted
        return JobRef(backend=NAME, id=job_id, submitted_at=submitted_at)

    def refusal(self, job: Job) -> str:
        """Why Slurm would not take a job, by `sbatch --test-only`; empty where it would."""
        text = script(job)
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            with explained(Path(file.name), "TMPDIR"):
                file.write(text)
                file.flush()
            try:
                ask("sbatch", "--test-only", file.name, script=text)
            except BackendError as error:
                return str(error)
        return ""

    def is_waited_for(self, partition: str) -> bool:
        """Whether anybody's job waits for nodes of a partition. Raises BackendError."""
        words = ("--noheader", "--all", "--states=PENDING", "--format=%r")
        reasons = ask("squeue", *words, f"--partition={partition}").split()
        return not _FOR_NODES.isdisjoint(reasons)

    def poll(self, refs: Sequence[JobRef]) -> dict[JobRef, JobStatus]:
        """One question to the books, and one to the queue about those that may be in it again.

        The queue also knows how jobs ended a moment ago, where books are late or there are none.
        """
        if not refs:
            return {}
        booked = self._booked(refs)
        unclear = [r for r in refs if booked is None or _is_unclear(booked.get(r.id))]
        queued = self.queue(unclear, everyone=True) if unclear else {}
        return {ref: _status(ref, booked or {}, queued) for ref in refs}

    def cancel(self, refs: Sequence[JobRef]) -> None:
        """End jobs, queued and running ones: SIGTERM, then SIGKILL after Slurm's KillWait."""
        if refs:
            try:
                ask("scancel", *(ref.id for ref in refs))
            except BackendError as error:
                if not all(re.search(_IS_OVER, part) for part in str(error).split("; ")):
                    raise

    def avoid(self, refs: Sequence[JobRef], nodes: Sequence[str]) -> None:
        """Cancel what jobs, or tasks of arrays, run on these nodes, and let none start there."""
        hosts = ",".join(nodes)
        for ref in refs:
            with suppress(BackendError):  # nothing of it waits
                ask("scontrol", "update", f"JobId={ref.id}", f"ExcNodeList={hosts}")
        if refs:
            ask("scancel", f"--nodelist={hosts}", *(ref.id for ref in refs))

    def warn(self, refs: Sequence[JobRef]) -> None:
        """Tell running jobs to save what they have and leave."""
        if refs:
            ask("scancel", "--signal=USR2", *(ref.id for ref in refs))

    def queue(
        self, refs: Sequence[JobRef] = (), *, everyone: bool = False, comments: bool = False
    ) -> dict[str, tuple[Row, ...]]:
        """What the controller knows of some jobs, or of this user's, a row for each array task.

        ``everyone``: of ended ones too. ``comments``: with theirs, whose lines may look like jobs.
        """
        whose = f"--jobs={','.join(ref.id for ref in refs)}" if refs else "--me"
        words = [
            "squeue",
            whose,
            "--noheader",
            "--array",
            f"--format=%F|%T|%N|%r|%o{'|%k' * comments}",
        ]
        try:
            answer = ask(*words, *(["--states=all"] if everyone else []))
        except BackendError as error:
            if _ALL_UNKNOWN not in str(error):
                raise
            answer = ""
        rows: dict[str, tuple[Row, ...]] = {}
        for found in re.finditer(_QUEUE_ROW, answer):
            job_id, word, nodes, reason, command, comment = found.groups("")
            row = Row(word=word, nodes=nodes, reason=reason, command=command, comment=comment)
            rows[job_id] = (*rows.get(job_id, ()), row)
        return rows

    def find(self, jobs: Iterable[Job]) -> dict[str, str]:
        """The ids of jobs that were accepted, by tag: of any that the controller still knows.

        A site's plugin may write what it likes into the comment; where the script lies stays.
        """
        tags = {str(job.log.parent / SCRIPT): job.tag for job in jobs}
        tags |= {tag: tag for tag in tags.values()}
        rows = self.queue(everyone=True, comments=True).items()
        named = ((i, tags.get(r.command) or tags.get(r.comment)) for i, g in rows for r in g)
        return {tag: job_id for job_id, tag in named if tag}

    def config(self) -> dict[str, str]:
        """The site's configuration, in Slurm's words (slurm.conf(5))."""
        lines = ask("scontrol", "show", "config").splitlines()
        pairs = (line.partition("=") for line in lines)
        return {name.strip(): value.strip() for name, _, value in pairs}

    def _booked(self, refs: Sequence[JobRef]) -> dict[str, tuple[Row, ...]] | None:
        """The newest row of every job in the books; None where there are none, or out of reach."""
        since = time.localtime(max(min(ref.submitted_at for ref in refs) - _DAY_S, 0.0))
        began = time.strftime("--starttime=%Y-%m-%dT%H:%M:%S", since)
        words = ["--format=JobID,State,ExitCode,NodeList", f"--jobs={','.join(r.id for r in refs)}"]
        try:
            answer = ask(*SACCT, *words, began)
        except BackendError:
            return None
        rows: dict[str, dict[str, Row]] = {}
        for found in re.finditer(_BOOKED_ROW, answer):
            full_id, word, more, code, nodes = found.groups()
            row = Row(word=word, nodes=nodes, exit_code=_exit_code(code), by=f"{word}{more}")
            rows.setdefault(full_id.split("_")[0], {})[full_id] = row
        return {job_id: tuple(by_task.values()) for job_id, by_task in rows.items()}

    def _adopted(self, job: Job, tries: int) -> str | None:
        """The id of a job that was accepted all the same, maybe a little later."""
        for attempt in range(tries):
            if attempt:
                time.sleep(self._adopt_every_s)
            with suppress(BackendError):
                if found := self.find([job]).get(job.tag):
                    return found
        return None


_FOR_NODES = frozenset({"Priority", "Resources"})
"""Why a job waits that could start if there were more nodes."""
_ALL_UNKNOWN = "Invalid job id"
"""What squeue says when it knows none of the jobs it was asked about."""
_IS_OVER = rf"{_ALL_UNKNOWN}|already completing or completed"
"""What scancel says of a job that has ended."""
_QUEUE_ROW = (
    r"(?m)^(?P<id>\d+)\|(?P<word>[A-Z_]+)\|(?P<nodes>[^|\n]*)\|(?P<reason>[^|\n]*)"
    r"(?:\|(?P<command>[^|\n]*))?(?:\|(?P<comment>.*))?$"
)
"""A job of the queue; the further lines of a comment are none."""
_BOOKED_ROW = r"(?m)^(\d[^|\n]*)\|([A-Z_]+)([^|\n]*)\|(\d+:\d+)\|([^|\n]*)"
"""A job of the books; what a site's wrapper says beside them is none."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What Slurm says of one job, or of one task of an array."""

    word: str
    """Slurm's state."""
    nodes: str = ""
    reason: str = ""
    """Why it waits."""
    command: str = ""
    """Path of its script, as sbatch was given it."""
    comment: str = ""
    exit_code: int | None = None
    by: str = ""
    """The state as written: ``CANCELLED by 1000``."""

    @property
    def state(self) -> JobState:
        """The state in our words."""
        return STATES.get(self.word, JobState.UNKNOWN)

    @property
    def was_refused(self) -> bool:
        """Whether it is held because a node could not start it."""
        return LAUNCH_FAILED in self.reason


def script(job: Job, after: Sequence[JobRef] = ()) -> str:
    """Exactly what sbatch is given."""
    text = _Script(folder=job.log.parent)
    text.update_parameters(**_parameters(job, after))
    if job.shape.array:
        text.parameters |= {"map_count": job.shape.array, "array_parallelism": job.shape.array}
    return text.text(shlex.join(job.argv)) + "\n"


def _parameters(job: Job, after: Sequence[JobRef]) -> dict[str, Any]:
    """The job in submitit's words."""
    shape, ours = job.shape, job_options(job)
    options = ours.sbatch
    cpus = options.cpus or shape.cpus
    condition, joined = _CONDITIONS[job.start]
    asked = {
        "job_name": job.name,
        "nodes": shape.nodes,
        # Of a range Slurm (22.05) gives the fewest nodes that hold the tasks that it knows of.
        "ntasks_per_node": 1 if shape.is_fixed else None,
        "cpus_per_task": cpus,
        **_memory(options, options.mem_gb or shape.mem_gb, cpus),
        "time": options.walltime_min or shape.walltime_min,
        "signal_delay_s": shape.warn_s,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "exclude": ",".join(options.exclude) or None,
        "comment": job.tag or None,
        "dependency": joined.join(f"{condition}:{ref.id}" for ref in after) or None,
        "stderr_to_stdout": True,
        "setup": [
            *guarded(ours.setup),
            *(f"export {k}={shlex.quote(v)}" for k, v in job.env.items()),
        ],
        "srun_args": _srun_args(job, cpus),
        "teardown": list(ours.teardown) or None,
        "gres": f"{options.gres}:{shape.gpus}" if options.gres and shape.gpus else None,
        "gpus_per_node": shape.gpus if not options.gres and shape.gpus else None,
        "additional_parameters": _given(  # for which submitit has no word
            {
                "export": "ALL",
                "kill-on-invalid-dep": "yes",
                "nice": options.nice,
                "reservation": options.reservation,
                "requeue" if ours.requeue else "no-requeue": True,
                **options.extra,
            }
        ),
    }
    # submitit would name a wckey, and some sites refuse unknown ones.
    return {**_given(asked), "wckey": None}


def _srun_args(job: Job, cpus: int) -> list[str]:
    """What starts the command, once on each node."""
    return [
        "--export=ALL",  # what the set-up lines have set, whatever sbatch was told to export
        f"--cpus-per-task={cpus}",  # not taken over from sbatch since Slurm 22.05
        "--kill-on-bad-exit=1",
        *([] if job.shape.is_fixed else ["--ntasks-per-node=1"]),
        *job_options(job).srun,
    ]


def _memory(options: SlurmOptions, mem_gb: float, cpus: int) -> dict[str, str]:
    """The request for a node's memory, in the form that the site takes."""
    if options.memory == "none":
        return {}
    if options.memory == "whole_node":
        return {"mem": "0"}
    is_per_cpu = options.memory == "per_cpu"
    size_mb = math.ceil(mem_gb * 1024 / (cpus if is_per_cpu else 1))  # at least 1: 0 is all of it
    return {"mem_per_cpu" if is_per_cpu else "mem": f"{size_mb}M"}


def _given(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if value is not None}


_CONDITIONS = {
    "succeeded": ("afterok", ","),
    "started": ("after", ","),
    "failed": ("afternotok", "?"),
}
"""How a job depends on others, and what joins them: a sentinel waits for any of them to fail."""


def _refusal(job: Job, error: Exception) -> Exception:
    """What sbatch says of a job that it understood and will not take is the request's fault."""
    if re.search(_NOT_REACHED, str(error)) or re.search(_NO_ANSWER, str(error)):
        return BackendError(f"{job.name}: not submitted ({error}); submit again")
    if re.search(NO_ROOM, str(error)):
        return NoRoomError(f"{job.name}: {error}; submit again when there are fewer in the queue")
    remedy = (
        "look at the cluster file's slurm and resources; `orchestrator doctor` shows the limits"
    )
    return RequestError(f"{job.name}: {error}; {remedy}")


_NOT_REACHED = (
    r"(?i)unable to (contact|establish controller)|connection refused|cannot be run|"
    r"configuration (source|file)|fetch config|unknown host|name or service|no route to host|"
    r"network is unreachable|munge|authentication|communication \w+ failure|standby mode|"
    r"incompatible versions|I/O error writing script"
)
"""What is said when nothing can have been accepted: of the network, of munge, of slurm.conf."""
NO_ROOM = r"(?i)submit_?job|MaxJobCount|temporarily unable to accept job"
"""What is said where a user, an account or all together may have only so many jobs at a time."""
_NO_ANSWER = (
    r"did not answer|timed out|Transport endpoint|Zero Bytes|Unexpected message|"
    r"(?i:reset by peer|broken pipe|insane message length)"
)


def _status(
    ref: JobRef, booked: Mapping[str, Sequence[Row]], queued: Mapping[str, Sequence[Row]]
) -> JobStatus:
    """What both together say of a job, or of all tasks of an array."""
    rows = queued.get(ref.id) or booked.get(ref.id)
    if not rows or (ref.id not in queued and any(not r.state.is_final for r in rows)):
        return JobStatus(state=JobState.UNKNOWN)  # ended, and the books do not say yet how
    states = [row.state for row in rows]
    leading = next((s for s in _LEADING if s in states), states[0])
    row = next(r for r in rows if r.state is leading)
    if leading is JobState.UNKNOWN and ref.id in queued:  # a word of a newer release: it is there
        leading = JobState.QUEUED
    counts = Counter(r.word.lower() for r in rows)
    several = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    return JobStatus(
        state=leading,
        exit_code=row.exit_code if leading.is_final else None,
        node="" if row.nodes in ("None assigned", "") else row.nodes,
        detail=several if len(rows) > 1 else _detail(row),
        cause=CAUSES.get(row.word) or _cause_by_code(row),
        is_held=all(r.was_refused for r in rows if not r.state.is_final) and row.was_refused,
        waits=in_plain_words(row.reason, ref.id) if leading is JobState.QUEUED else "",
    )


_LEADING = (
    JobState.RUNNING,
    JobState.QUEUED,
    JobState.UNKNOWN,
    JobState.FAILED,
    JobState.CANCELLED,
    JobState.PREEMPTED,
    JobState.SUCCEEDED,
)
"""Which task's state stands for an array's: what still goes on before what has ended."""


def _detail(row: Row) -> str:
    word = row.by or row.word
    return f"{word} ({row.reason})" if row.reason not in ("", "None") else word


def _cause_by_code(row: Row) -> Cause | None:
    """A process of ours whose store took no word says by its exit code what it would have said."""
    return Cause.STORAGE if row.exit_code == ExitCode.UNREACHABLE else None


def _is_unclear(rows: Sequence[Row] | None) -> bool:
    """Whether the queue must say more: the books are written late, a row for each start."""
    return not rows or any(row.word in _PERHAPS_REQUEUED or not row.state.is_final for row in rows)


def _job_id(answer: str) -> str:
    """The id in what sbatch prints, which a site's wrapper or plugin may add lines to.

    Raises FailedSubmissionError.
    """
    if found := re.search(r"(?m)^Submitted batch job (\d+)", answer):
        return found[1]
    return submitit.SlurmExecutor._get_job_id_from_submission_command(answer)


def _exit_code(text: str) -> int:
    """``1:0`` is exit code 1; ``0:9`` is signal 9, -9."""
    code, signal = text.split(":")
    return -int(signal) if int(signal) else int(code)
