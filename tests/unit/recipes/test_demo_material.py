"""What needs no network: the game's archive, the user's own folder, the marker."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import BackendError, RequestError
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
    assert prepare(tmp_path, speech=True) == known
    assert [p.name for p in tmp_path.iterdir()] == [MARKER]


def test_own_recordings_need_none_of_the_demos_and_no_apt(tmp_path: Path) -> None:
    known = {"models/m/model.safetensors": "ab" * 32}
    marked = json.dumps({"revision": REVISION, "sha256": known, "speech": False})
    (tmp_path / MARKER).write_text(marked)
    (tmp_path / "mine").mkdir()
    made = run_without_programs(tmp_path, "--audio", str(tmp_path / "mine"))
    assert made.returncode == 0, made.stderr
    assert "model.safetensors" in made.stdout
    made = run_without_programs(tmp_path)
    assert made.returncode == BackendError.exit_code
    assert "apt-get is not on this machine; to go on without it use your own" in made.stderr
    assert (tmp_path / MARKER).read_text() == marked


def test_a_wrong_folder_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    made = run_without_programs(tmp_path, "--audio", str(tmp_path / "nowhere"))
    assert made.returncode == RequestError.exit_code
    assert "nowhere is not a folder" in made.stderr
    assert not list(tmp_path.iterdir())


def run_without_programs(to: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The script with nothing on PATH, so that it can fetch no Debian package."""
    command = [sys.executable, "-m", "recipes.demo_material", "--to", str(to), *options]
    environment = os.environ | {"PATH": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
