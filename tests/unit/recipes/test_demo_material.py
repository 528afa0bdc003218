"""What needs no network: the game's archive, the user's own folder, the marker."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from orchestrator.errors import RequestError
from recipes.demo_material import MARKER, REVISION, link_own, prepare, queen_clips


def archive_of(files: dict[str, bytes]) -> bytes:
    start = 15 + 21 * len(files)
    table, body = b"", b""
    for name, data in files.items():
        table += struct.pack(">12sBII", name.encode(), 1, start + len(body), len(data))
        body += data
    return b"QTBLCEM10\0\0\0\1" + struct.pack(">H", len(files)) + table + body


def test_only_spoken_lines_leave_the_archive() -> None:
    files = {"MIK_0112.SB": b"mp3 one", "116BSSSS.SB": b"a door", "A1.PCX": b"a picture"}
    files["ROCKPAKS.SB"] = b"mp3 two"
    spoken = {"MIK_0112": b"mp3 one", "ROCKPAKS": b"mp3 two"}
    assert dict(queen_clips(archive_of(files))) == spoken


def test_own_recordings_are_linked_and_may_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        link_own(tmp_path / "to", tmp_path / name)
        assert (tmp_path / "to/speech/own").resolve() == tmp_path / name


def test_own_recordings_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--audio: .*nowhere is not a folder; give the folder"):
        link_own(tmp_path, tmp_path / "nowhere")


def test_material_that_is_marked_whole_is_not_fetched_again(tmp_path: Path) -> None:
    known = {"models/m/model.safetensors": "ab" * 32}
    (tmp_path / MARKER).write_text(json.dumps({"revision": REVISION, "sha256": known}))
    assert prepare(tmp_path) == known
    assert [p.name for p in tmp_path.iterdir()] == [MARKER]
