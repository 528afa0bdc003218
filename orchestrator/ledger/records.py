"""Reading what a run has written down: whatever is wrong with a file is one line that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.errors import BackendError, CorruptError
from orchestrator.ledger.storage import Storage

BROKEN_RECORD = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RecursionError,
    yaml.YAMLError,
)
"""What making sense of a truncated or foreign file can raise."""


@contextmanager
def understood(url: str, remedy: str) -> Iterator[None]:
    """Name the object at ``url`` in whatever goes wrong with reading it and making sense of it.

    Raises FileNotFoundError when it is missing, BackendError when it may not be read, CorruptError
    when it says something else than was written there; another OSError as it is.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"missing; {remedy}", url) from None
    except PermissionError:
        raise BackendError(f"{url}: permission denied; see who may read it") from None
    except (*BROKEN_RECORD, IsADirectoryError, NotADirectoryError) as error:
        raise CorruptError(f"{url}: cannot be understood ({_why(error)}); {remedy}") from None


def record_at(storage: Storage, path: str, remedy: str) -> dict[str, Any]:
    """The JSON object of a file. Raises FileNotFoundError, BackendError, CorruptError."""
    with understood(f"{storage.url}/{path}", remedy):
        return _mapping(storage.read_json(path))


def find_record(storage: Storage, path: str, remedy: str) -> dict[str, Any] | None:
    """The same; None where there is no such file."""
    with understood(f"{storage.url}/{path}", remedy):
        found = storage.find_json(path)
        return None if found is None else _mapping(found)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a section is expected, not {type(value).__name__}")
    return value


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"has no {error}"
    return " ".join(str(error).split()) or type(error).__name__
