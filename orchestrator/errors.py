"""Every error a user may meet, why an attempt ends, and the exit codes of processes.

    OrchestratorError
    ├── RequestError        2   the recipe, cluster file or command line asks for what cannot be
    │   └── SpecErrors      2   several such problems at once, one line each
    ├── DataError           1   the recordings cannot give what the recipe asks for
    ├── RunFailedError      1   the run was understood, and failed
    ├── BackendError        3   the scheduler or the store could not be reached
    └── LedgerError         1   what is on disk contradicts itself
        ├── CorruptError        bytes differ from their manifest
        ├── AlreadyExistsError  exclusive creation lost
        └── LeaseHeldError      another live attempt has the right to this key

A message reads ``<where>: <problem>; <remedy>``. Every error has a cause, which a stage's driver
writes down as an event when it ends, and which the retry policy (`plan.policy`) decides by.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """What a process of ours ends with."""

    DONE = 0
    FAILED = 1
    BAD_REQUEST = 2
    UNREACHABLE = 3
    """The scheduler or the store could not be reached."""
    ORPHANED = 70
    """A rank whose driver is gone."""
    LEASE_HELD = 75
    """Another attempt works on this key: wait, do not count it as a failure."""
    INTERRUPTED = 130
    """The user stopped watching; the run goes on."""
    STOPPED = 143
    """Asked to stop by a signal, as schedulers send before they take a node away."""
    REQUEUE = 250
    """The job wants its place in the queue again. Above those of processes that a signal ended (128
    and its number), as srun passes the highest of all nodes on."""


class Cause(StrEnum):
    """Why an attempt ended without its artifact."""

    BAD_DATA = "bad_data"
    BAD_REQUEST = "bad_request"
    CANCELLED = "cancelled"
    COMM_HANG = "comm_hang"
    DEVICE_OOM = "device_oom"
    ERROR = "error"
    HOST_OOM = "host_oom"
    KILLED = "killed"
    LEASE_HELD = "lease_held"
    LIMIT = "limit"
    MOVED = "moved"
    NETWORK = "network"
    NODE_LOST = "node_lost"
    NONFINITE = "nonfinite"
    NO_NODES = "no_nodes"
    PREEMPTED = "preempted"
    RAY_LOST = "ray_lost"
    STORAGE = "storage"
    SUPERVISOR = "supervisor"
    UNKNOWN = "unknown"
    WALLTIME = "walltime"
    WORKER_LOST = "worker_lost"

    @classmethod
    def _missing_(cls, value: object) -> Cause | None:
        """A word of a later version, read from a file, is no reason to stop."""
        return cls.UNKNOWN if isinstance(value, str) else None


INTERRUPTIONS = frozenset(Cause) - {
    Cause.BAD_DATA,
    Cause.BAD_REQUEST,
    Cause.CANCELLED,
    Cause.DEVICE_OOM,
    Cause.ERROR,
    Cause.LEASE_HELD,
    Cause.LIMIT,
    Cause.MOVED,
    Cause.NONFINITE,
    Cause.NO_NODES,
}
"""Ends that tell how often the machines fail."""

_CAUSE_BY_FOREIGN_TYPE = {
    "torch.OutOfMemoryError": Cause.DEVICE_OOM,
    "ray.exceptions.OutOfMemoryError": Cause.HOST_OOM,
}
_STORAGE_NAMES = frozenset(
    {
        *("EIO", "EFBIG", "ENOSPC", "EROFS", "ESTALE", "EDQUOT", "EUCLEAN", "EBADMSG"),
        # Mounts whose server or device went away: NFS, Lustre, FUSE.
        *("ENOTCONN", "ESHUTDOWN", "EHOSTDOWN", "EREMOTEIO", "ENODEV", "ENOMEDIUM", "ENOLCK"),
        *("ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED"),  # tickets of NFS and AFS
    }
)
_STORAGE_ERRNOS = tuple(code for code, name in errno.errorcode.items() if name in _STORAGE_NAMES)
_STORAGE_ERRNOS_OF_FILES = (errno.EACCES, errno.EPERM, errno.ETIMEDOUT)
"""Said of files when a ticket has run out or a server is away, and of much else."""
_NUMBERS = "|".join(str(code) for code in _STORAGE_ERRNOS)
STORAGE_WORDS = (
    r"No space left on device|Disk quota exceeded|Read-only file system|Stale (NFS )?file handle|"
    r"Input/output error|File too large|Structure needs cleaning|Remote I/O error|"
    r"Cannot send after transport endpoint shutdown|No locks available|Key has expired|"
    rf"\[[Ee]rrno ({_NUMBERS})\]|\(os error ({_NUMBERS})\)|"
    # torch's writer of archives (caffe2/serialize/inline_container.cc), by whom DeepSpeed saves,
    # and numpy's.
    r"file write failed|unexpected pos \d+ vs \d+|iostream error|\d+ requested and \d+ written|"
    # SQLite's, by which MLflow keeps runs, and Ray's, whose object store spills to /tmp.
    r"database or disk is full|disk I/O error|local disk's utilization is over|"
    r"OutOfDiskError|is over [\d.]+% full"
)
"""What the OS and libraries say of a disk that is full or gone: a regular expression."""
DEVICE_OOM = (
    r"(CUDA|HIP|XPU)( error:)? out of memory|OutOfMemoryError|STATUS_ALLOC_FAILED|"
    r"Cuda failure (2 )?'out of memory'"
)
"""What a log says when a batch does not fit the device: a regular expression."""
HOST_OOM = (
    r"oom[-_]kill|: Out Of Memory$|exceeded (job )?memory limit|Out of memory: Killed|"
    r"running low on memory|[Cc]an( ?no|')t allocate memory|std::bad_alloc|\bMemoryError\b|"
    r"ArrayMemoryError|(malloc|realloc) of size \d+ failed"
)
"""What it says when the node's memory was too small; Ray calls that OutOfMemoryError too."""


class OrchestratorError(Exception):
    """The root: whatever derives from it is shown to the user as one line, never as a traceback.

    ``cause``: why it ends an attempt, where that is not the usual one of its class.
    """

    exit_code = ExitCode.FAILED
    usual_cause = Cause.ERROR

    def __init__(self, message: str = "", *, cause: Cause | None = None) -> None:
        super().__init__(message)
        self.cause = cause or self.usual_cause

    def __reduce__(self) -> tuple[type[OrchestratorError], tuple[str], dict[str, object]]:
        return type(self), (str(self),), self.__dict__


class RequestError(OrchestratorError):
    """The request was wrong and nothing was started."""

    exit_code = ExitCode.BAD_REQUEST
    usual_cause = Cause.BAD_REQUEST


class SpecErrors(RequestError):  # noqa: N818 (it is several errors)
    """All the problems of one recipe or cluster file, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class DataError(OrchestratorError):
    """The recordings cannot give what the recipe asks for."""

    usual_cause = Cause.BAD_DATA


class RunFailedError(OrchestratorError):
    """A stage of the run ended in failure."""


class BackendError(OrchestratorError):
    """The backend could not be reached; the run may well go on."""

    exit_code = ExitCode.UNREACHABLE
    usual_cause = Cause.STORAGE


class LedgerError(OrchestratorError):
    """What the store holds contradicts itself."""


class CorruptError(LedgerError):
    """Bytes in the store differ from the digest recorded for them."""


class AlreadyExistsError(LedgerError):
    """Something else created this object first."""


class LeaseHeldError(LedgerError):
    """A live attempt holds the lease of this artifact."""

    usual_cause = Cause.LEASE_HELD


def cause_of(error: BaseException) -> Cause:
    """Why an error ends an attempt, by its type and errno; of what Ray wraps, by what it wraps."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return cause_of(cause)
    if isinstance(cause, Cause):
        return cause
    foreign = _CAUSE_BY_FOREIGN_TYPE.get(f"{type(error).__module__}.{type(error).__name__}")
    if foreign is not None:
        return foreign
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or code == errno.ENOMEM:
        return Cause.HOST_OOM
    # `ledger.storage` raises these, without a number, for whatever a bucket's library raises.
    is_of_bucket = code is None and type(error) in (ConnectionError, PermissionError)
    is_storage = code in _STORAGE_ERRNOS or is_of_bucket
    if code in _STORAGE_ERRNOS_OF_FILES:
        is_storage = getattr(error, "filename", None) is not None
    # Libraries have errors of their own for what the OS told them, and some keep only its words.
    said = code is None and re.search(STORAGE_WORDS, str(error))
    return Cause.STORAGE if is_storage or said else Cause.ERROR


def last_sentence(error: BaseException) -> str:
    """The last line of an error's text, after its type where that is no error of ours."""
    text = (str(error).strip().splitlines() or [""])[-1]
    is_ours = isinstance(error, OrchestratorError)
    return text if is_ours and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def os_words(error: OSError) -> str:
    """What an operating system's error says, in one line: the file, then the words."""
    if error.errno is None or error.filename is None:
        return str(error)
    return f"{error.filename}: {error.strerror}"
