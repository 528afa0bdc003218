"""Why an error ends an attempt, and its last sentence."""

from __future__ import annotations

import errno
import pickle

import pytest

from orchestrator.errors import (
    INTERRUPTIONS,
    BackendError,
    Cause,
    DataError,
    LeaseHeldError,
    OrchestratorError,
    RequestError,
    RunFailedError,
    cause_of,
    last_sentence,
)


class WrappedError(Exception):
    """What Ray makes of an actor's error."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def foreign(module: str, name: str) -> Exception:
    """An error of a library that the control plane does not import."""
    error: Exception = type(name, (RuntimeError,), {"__module__": module})("x")
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RequestError("x"), Cause.BAD_REQUEST),
        (DataError("x"), Cause.BAD_DATA),
        (RunFailedError("x"), Cause.ERROR),
        (RunFailedError("x", cause=Cause.COMM_HANG), Cause.COMM_HANG),
        (BackendError("x"), Cause.STORAGE),
        (LeaseHeldError("x"), Cause.LEASE_HELD),
        *((OSError(code, "x"), Cause.STORAGE) for code in (5, 28, 30, 116, 122)),
        *((OSError(code, "a mount went away"), Cause.STORAGE) for code in (19, 107, 108, 112, 121)),
        *((OSError(code, "a damaged disk"), Cause.STORAGE) for code in (74, 117)),
        *((OSError(code, "a ticket has run out"), Cause.STORAGE) for code in (126, 127, 128, 129)),
        *((OSError(code, "x", "/store/x"), Cause.STORAGE) for code in (1, 13, 110)),
        *((OSError(code, "no file's"), Cause.ERROR) for code in (1, 13, 110, 104, 111)),
        (OSError(errno.ENOMEM, "x"), Cause.HOST_OOM),
        (MemoryError(), Cause.HOST_OOM),
        *(
            (RuntimeError(said), Cause.STORAGE)
            for said in (
                "PytorchStreamWriter failed writing file data/0: file write failed",
                "[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598",
                "basic_ios::clear: iostream error",
                "write(): fd 3 failed with No space left on device",
                "open file failed with strerror: Read-only file system",
                "Error while serializing: I/O error: No space left on device (os error 28)",
                "I/O error: Stale file handle (os error 116)",
                "Disk quota exceeded",
                "[Errno 107] Transport endpoint is not connected: '/mnt/bucket/x'",
                "cannot save: Key has expired (os error 127)",
                "(sqlite3.OperationalError) database or disk is full",
                "the local disk's utilization is over capacity (95% by default)",
                "write failed with Input/output error",
            )
        ),
        (OSError("1000000 requested and 131056 written"), Cause.STORAGE),
        (OSError(errno.EFBIG, "File too large"), Cause.STORAGE),
        (RuntimeError("PytorchStreamReader failed finding central directory"), Cause.ERROR),
        (OSError(errno.ENOENT, "No space left on device"), Cause.ERROR),
        (ConnectionError("the store did not do as asked"), Cause.STORAGE),
        (PermissionError("the session of this profile has expired"), Cause.STORAGE),
        (ConnectionResetError(errno.ECONNRESET, "a peer"), Cause.ERROR),
        (FileNotFoundError(errno.ENOENT, "x"), Cause.ERROR),
        (KeyError("x"), Cause.ERROR),
        (foreign("torch", "OutOfMemoryError"), Cause.DEVICE_OOM),
        (foreign("ray.exceptions", "OutOfMemoryError"), Cause.HOST_OOM),
        (foreign("elsewhere", "OutOfMemoryError"), Cause.ERROR),
        (WrappedError(foreign("torch", "OutOfMemoryError")), Cause.DEVICE_OOM),
        (WrappedError(DataError("x")), Cause.BAD_DATA),
        (WrappedError(OSError(errno.EIO, "x")), Cause.STORAGE),
    ],
)
def test_an_error_has_a_cause(error: Exception, cause: Cause) -> None:
    assert cause_of(error) is cause


def test_a_cause_survives_another_process() -> None:
    error = pickle.loads(pickle.dumps(RunFailedError("x", cause=Cause.NONFINITE)))
    assert (str(error), cause_of(error)) == ("x", Cause.NONFINITE)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OrchestratorError("the last lines of a log:\nx\ntrain: a rank failed"),
            "train: a rank failed",
        ),
        (RunFailedError(), "RunFailedError"),
        (ValueError("first\nsecond\n"), "ValueError: second"),
        (KeyError("x"), "KeyError: 'x'"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_last_sentence(error: Exception, sentence: str) -> None:
    assert last_sentence(error) == sentence


def test_what_counts_as_an_interruption() -> None:
    assert {Cause.KILLED, Cause.PREEMPTED, Cause.STORAGE, Cause.COMM_HANG} <= INTERRUPTIONS
    assert not {Cause.CANCELLED, Cause.BAD_DATA, Cause.NONFINITE, Cause.ERROR} & INTERRUPTIONS
    assert "walltime" in INTERRUPTIONS, "causes are read back as text"
    assert "" not in INTERRUPTIONS
