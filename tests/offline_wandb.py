"""Reads what Weights & Biases keeps of a run offline: its log of records, decoded by its own types.

The log is LevelDB's: blocks of 32 KiB with records of checksum, length, kind (whole, first, middle,
last) and data, behind a header of seven bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _RECORD_HEADER = 32_768, 7, 7
_WHOLE, _LAST = 1, 4


def folders(base: Path) -> list[Path]:
    """Offline folders, oldest first."""
    return sorted(base.glob("wandb/offline-run-*"))


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of an offline run, each with its ``_step``."""
    return [
        {
            item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
            for item in r.history.item
        }
        for r in _records(folder)
        if r.WhichOneof("record_type") == "history"
    ]


def summary(folder: Path) -> dict[str, Any]:
    """The last summary of an offline run."""
    found: dict[str, Any] = {}
    for record in _records(folder):
        for item in record.summary.update:
            found[item.nested_key[0] if item.nested_key else item.key] = json.loads(item.value_json)
    return found


def run_id(folder: Path) -> str:
    """The run's id."""
    return next(r.run.run_id for r in _records(folder) if r.WhichOneof("record_type") == "run")


def _records(folder: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    for data in _chunks(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        yield record


def _chunks(data: bytes) -> Iterator[bytes]:
    at, whole = _HEADER, b""
    while at + _RECORD_HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _RECORD_HEADER:  # padding at a block's end
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += _RECORD_HEADER
        whole += data[at : at + length]
        at += length
        if kind in (_WHOLE, _LAST):
            yield whole
            whole = b""
