"""A source's files: all of them, or an error that names what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.ledger.source_files import files_below


def deep_folder(root: Path) -> None:
    """A folder below ``root`` whose path is longer than the system lists, whoever asks."""
    descriptor = os.open(root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=descriptor)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def test_every_file_with_its_size(tmp_path: Path) -> None:
    for name in ("a/1.wav", "a/b/2.wav", ".kept/3.wav", "a/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    found = sorted((str(path.relative_to(tmp_path)), size) for path, size in files_below(tmp_path))
    assert found == [("a/1.wav", 2), ("a/b/2.wav", 2), ("link/2.wav", 2)]
    with_hidden = {path for path, _ in files_below(tmp_path, hidden_folders=True)}
    assert tmp_path / ".kept/3.wav" in with_hidden


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    deep_folder(tmp_path)
    with pytest.raises(OSError, match="File name too long") as error:
        list(files_below(tmp_path))
    assert str(error.value.filename).startswith(f"{tmp_path}/ddd")


@pytest.mark.parametrize("target", ["gone", "link"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(OSError, match="link"):
        list(files_below(tmp_path))
    (tmp_path / "link").rename(tmp_path / ".link")
    assert list(files_below(tmp_path)) == []


def test_a_name_that_no_table_can_hold_is_named(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")).touch()
    with pytest.raises(OSError, match=r"not UTF-8; rename it: .*caf"):
        list(files_below(tmp_path))
