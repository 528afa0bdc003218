"""The same tree in folders and in tars."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from jobs.audio.listing import list_corpus
from jobs.audio.lists import Files
from jobs.audio.roots import Root
from jobs.audio.trees import FolderTree, Leaf, TarTree, Tree
from orchestrator.errors import DataError
from tests.unit.jobs.audio.corpora.layouts import as_tars, write
from tests.unit.orchestrator.recipes import recipe

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


def test_links_in_a_tar_are_what_they_stand_for(folders: Path, tmp_path: Path) -> None:
    (folders / "b/link.wav").symlink_to("one.wav")
    (folders / "b/deep/up.wav").symlink_to("../link.wav")
    (folders / "b/hard.wav").hardlink_to(folders / "b/one.wav")
    (folders / "b/dead.wav").symlink_to("/nowhere/one.wav")
    tars = TarTree(as_tars(folders, tmp_path / "tars", lambda path: "/" in path))
    plain = FolderTree(folders)
    found = [
        {leaf.path: leaf.problem or read(tree, leaf) for leaf in tree.leaves()}
        for tree in (plain, tars)
    ]
    assert found[0] == found[1]
    assert found[1]["b/deep/up.wav"] == found[1]["b/hard.wav"] == b"first"
    assert found[1]["b/dead.wav"] == "a dead link"


def packed(path: Path, *names: str) -> None:
    """A tar of members that hold their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = number
            tar.addfile(info, io.BytesIO(bytes(number)))


def test_of_members_of_one_path_the_last_counts(tmp_path: Path) -> None:
    packed(tmp_path / "a.tar", "en/a.wav", "en/b.wav", "./en/a.wav", "notes")
    packed(tmp_path / "b.tar", "notes")
    found = [(leaf.path, leaf.size) for leaf in TarTree(tmp_path).leaves()]
    assert found == [("en/a.wav", 2), ("en/b.wav", 1), ("notes", 0), ("notes", 3)]


@pytest.mark.parametrize("other", ["b.tar", "B.TAR", "en/a.wav"])
def test_a_recording_that_lies_there_twice_is_named(tmp_path: Path, other: str) -> None:
    packed(tmp_path / "a.tar", "en/a.wav")
    if other.lower().endswith(".tar"):
        packed(tmp_path / other, "en/a.wav")
    else:
        write(tmp_path, {other: b"1"})
    assert [leaf.path for leaf in TarTree(tmp_path).leaves()] == ["en/a.wav", "en/a.wav"]
    corpus = recipe(
        corpus={"sources": [{"name": "s", "adapter": "folder", "language": "en"}]}
    ).corpus
    with pytest.raises(
        DataError, match=r"data\.s: 1 recordings have the id of another: .*en/a\.wav"
    ):
        list_corpus(corpus, {"s": Root(tmp_path, "tar")})
    tree = TarTree(tmp_path)
    with pytest.raises(DataError, match=r"en/a\.wav: is in .* and in .*; put each into a folder"):
        Files(tree, tree.leaves())


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz", "deep/b.tar.zst", "b.tar.xz", "b.TBZ2"])
def test_a_compressed_tar_is_no_smaller_corpus(tmp_path: Path, name: str) -> None:
    packed(tmp_path / "a.tar", "en/a.wav")
    write(tmp_path, {name: b"?", "about.jsonl.gz": b"?"})
    with pytest.raises(DataError, match=rf"{name}: a compressed tar cannot be entered; decompress"):
        list(TarTree(tmp_path).leaves())
    packed(tmp_path / "deep/b.tar")
    packed(tmp_path / "b.tar")
    assert len([leaf for leaf in TarTree(tmp_path).leaves() if leaf.is_audio]) == 1


def test_a_link_of_a_tar_that_may_stand_for_a_folder_is_no_smaller_corpus(tmp_path: Path) -> None:
    write(tmp_path / "to", {"en/a.wav": b"1"})
    (tmp_path / "to/fr").symlink_to("/mnt/fr")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "to/en", "en")
        tar.add(tmp_path / "to/fr", "fr")
    with pytest.raises(DataError, match=r"a\.tar: fr is a link to what is not in the tar; add it"):
        list(TarTree(tmp_path).leaves())
