"""Every error a user may meet, and the exit code it ends in.

    OrchestratorError
    ├── RequestError        2   the recipe, cluster file or command line asks for what cannot be
    │   └── SpecErrors      2   several such problems at once, one line each
    ├── RunFailedError      1   the run was understood, and failed
    ├── BackendError        3   the scheduler or the store could not be reached
    └── LedgerError         1   what is on disk contradicts itself
        ├── CorruptError        bytes differ from their manifest
        ├── AlreadyExistsError  exclusive creation lost
        └── LeaseHeldError      another live attempt has the right to this key

A message reads ``<where>: <problem>; <remedy>``.
"""

from __future__ import annotations

from collections.abc import Sequence


class OrchestratorError(Exception):
    """The root: whatever derives from it is shown to the user as one line, never as a traceback."""

    exit_code = 1


class RequestError(OrchestratorError):
    """The request was wrong and nothing was started."""

    exit_code = 2


class SpecErrors(RequestError):  # noqa: N818 (it is several errors)
    """All the problems of one recipe or cluster file, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class RunFailedError(OrchestratorError):
    """A stage of the run ended in failure."""


class BackendError(OrchestratorError):
    """The backend could not be reached; the run may well go on."""

    exit_code = 3


class LedgerError(OrchestratorError):
    """What the store holds contradicts itself."""


class CorruptError(LedgerError):
    """Bytes in the store differ from the digest recorded for them."""


class AlreadyExistsError(LedgerError):
    """Something else created this object first."""


class LeaseHeldError(LedgerError):
    """A live attempt holds the lease of this artifact."""
