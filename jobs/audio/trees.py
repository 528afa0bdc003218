"""What lies below a source's root, as adapters of corpora see it: paths, whatever holds them.

The same layout may lie in folders or in tars: a tree gives the same paths for both, and where the
bytes of each are. Nothing is unpacked.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from jobs.audio.decode import AUDIO_SUFFIXES
from jobs.audio.place import Place
from orchestrator.errors import DataError
from orchestrator.ledger.source_files import as_path, as_text, files_below


class Leaf(NamedTuple):
    """One file of a tree."""

    path: str
    """As the corpus lays it out, with forward slashes, as text (`source_files.as_text`)."""
    size: int
    """In bytes."""
    problem: str = ""
    """Why it must not be opened; empty for a file."""
    archive: str = ""
    """Path below the root of the tar that holds it; empty for a file of its own."""
    offset: int = 0
    """Where its bytes begin in that tar."""

    @property
    def is_audio(self) -> bool:
        """Whether its name is that of a recording."""
        return PurePosixPath(self.path).suffix.lower() in AUDIO_SUFFIXES


class Tree(Protocol):
    """A source's files."""

    def leaves(self) -> Iterator[Leaf]:
        """All files in the order of their paths as text. Raises OSError for what cannot be read."""

    def place(self, leaf: Leaf) -> Place:
        """Where the bytes of one of them are."""


class FolderTree:
    """Files in folders."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def leaves(self) -> Iterator[Leaf]:
        """All files, sorted, so that no file system's own order shows."""
        yield from (Leaf(*file) for file in sorted(files_below(self._root)))

    def place(self, leaf: Leaf) -> Place:
        """The file."""
        return Place(self._root / as_path(leaf.path), leaf.path)


class TarTree:
    """Members of all uncompressed tars below a root, as if each were unpacked where it lies.

    Files beside the tars are in the tree too: annotations are often.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def leaves(self) -> Iterator[Leaf]:
        """All members, sorted. Raises DataError for a tar that is compressed, cut or damaged."""
        yield from sorted(self._unsorted())

    def place(self, leaf: Leaf) -> Place:
        """The member, or the file beside the tars."""
        if not leaf.archive:
            return Place(self._root / as_path(leaf.path), leaf.path)
        return Place(self._root / as_path(leaf.archive), leaf.path, leaf.offset, leaf.size)

    def _unsorted(self) -> Iterator[Leaf]:
        for file in files_below(self._root):
            if not file.path.endswith(".tar"):
                yield Leaf(*file)
            elif file.problem:
                raise DataError(f"{self._root}/{file.path}: {file.problem}; repair it")
            else:
                yield from self._members(file.path)

    def _members(self, archive: str) -> Iterator[Leaf]:
        folder = PurePosixPath(archive).parent
        try:
            with tarfile.open(self._root / as_path(archive), "r:") as tar:
                for member in tar:
                    if member.isfile():
                        path = (folder / as_text(member.name.removeprefix("./"))).as_posix()
                        yield Leaf(path, member.size, "", archive, member.offset_data)
        except tarfile.TarError as error:
            raise DataError(
                f"{self._root}/{archive}: no whole uncompressed tar ({error}); fetch it again, or "
                "unpack it"
            ) from None


TREES: dict[str, type[FolderTree | TarTree]] = {"folder": FolderTree, "tar": TarTree}
"""Container to what reads it."""
