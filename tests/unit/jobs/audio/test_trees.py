"""The same tree in folders and in tars."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from jobs.audio.trees import FolderTree, Leaf, TarTree, Tree
from orchestrator.errors import DataError
from tests.unit.jobs.audio.corpora.layouts import as_tars, write

FILES = {
    "b/one.wav": b"first",
    "b/deep/two.wav": b"",
    "c/caf\udce9.wav": b"third",
    "a.txt": b"beside",
}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write(tmp_path / "folders", FILES)


def read(tree: Tree, leaf: Leaf) -> bytes:
    with tree.place(leaf).open() as file:
        return file.read()


def test_both_have_the_same_paths_and_bytes(folders: Path, tmp_path: Path) -> None:
    tars = TarTree(as_tars(folders, tmp_path / "tars", lambda path: "/" in path))
    plain = FolderTree(folders)
    contents = []
    for tree in (plain, tars):
        leaves = list(tree.leaves())
        assert [leaf.path for leaf in leaves] == sorted(leaf.path for leaf in leaves)
        contents.append({leaf.path: read(tree, leaf) for leaf in leaves})
    assert contents[0] == contents[1]
    assert contents[0]["c/caf\\xe9.wav"] == b"third"
    assert {leaf.archive for leaf in tars.leaves()} == {"", "b.tar", "c.tar"}


def test_a_tar_in_a_folder_unpacks_there(folders: Path, tmp_path: Path) -> None:
    root = as_tars(folders, tmp_path / "tars/below", lambda path: "/" in path).parent
    assert [leaf.path for leaf in TarTree(root).leaves()] == [
        "below/a.txt", "below/b/deep/two.wav", "below/b/one.wav", "below/c/caf\\xe9.wav",
    ]  # fmt: skip


@pytest.mark.parametrize("harm", ["cut", "packed", "junk"])
def test_a_tar_that_cannot_be_entered_is_named(folders: Path, tmp_path: Path, harm: str) -> None:
    root = as_tars(folders, tmp_path / "tars", lambda path: "/" in path)
    data = (root / "b.tar").read_bytes()
    harmed = {"cut": data[:700], "packed": gzip.compress(data), "junk": b"x" * 2000}[harm]
    (root / "b.tar").write_bytes(harmed)
    with pytest.raises(DataError, match=r"b\.tar: no whole uncompressed tar .*; fetch it again"):
        list(TarTree(root).leaves())


def test_links_and_folders_in_a_tar_are_no_files(folders: Path, tmp_path: Path) -> None:
    (folders / "b/link.wav").symlink_to("one.wav")
    root = as_tars(folders, tmp_path / "tars", lambda path: "/" in path)
    assert "b/link.wav" not in [leaf.path for leaf in TarTree(root).leaves()]
