"""Where sources lie on this cluster, and whether a root is the one that was listed.

A lost mount looks like missing files.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from jobs.audio.channels import Channels
from jobs.audio.decode import AUDIO_SUFFIXES, BLOCK_S, Notice, Wave
from jobs.audio.decoders import Decoders
from jobs.audio.place import Place
from jobs.audio.trees import TREES, Leaf, Tree
from orchestrator.errors import BackendError, os_words
from orchestrator.ledger.bucket_path import BucketPath
from orchestrator.ledger.source_files import files_below

TAR, PARQUET = "tar", "parquet"
_CANCELS = "the mean of its channels cancels itself; the loudest is taken in its place"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Root:
    """Where a source lies on the nodes, in what, and what of its recordings is heard."""

    path: Path | BucketPath
    container: str = "folder"
    lowpass_hz: float | None = None
    channels: Channels = "mix"

    def tree(self, on_empty_folder: Callable[[str], object] = bool) -> Tree:
        """Its files; ``on_empty_folder`` is told of each that holds nothing."""
        return TREES[self.container](self.path, on_empty_folder)

    def place(self, leaf: Leaf) -> Place:
        """Where the bytes of one of them are."""
        return self.tree().place(leaf)

    def blocks(
        self,
        decoders: Decoders,
        leaf: Leaf,
        *,
        channel: int | None = None,
        first: int = 0,
        on_passed_over: Callable[[int], object] = int,
    ) -> Generator[Wave]:
        """One of them, as `Decoders.blocks` gives it; a mix that cancels itself is told of once.

        ``channel``: the one to be heard, where that is known better than by ``channels``.
        ``on_passed_over`` gets the number of blocks that were decoded to get to the first.
        """
        place, is_told = self.place(leaf), False

        def tell(notice: Notice) -> None:
            nonlocal is_told
            if notice.what == "passed over":
                on_passed_over(notice.block)
            elif not is_told:
                log.warning("%s: %s (from %d s on)", place, _CANCELS, notice.block * BLOCK_S)
                is_told = True

        return decoders.blocks(
            place,
            lowpass_hz=self.lowpass_hz,
            channels=self.channels if channel is None else channel,
            first=first,
            on_notice=tell,
        )


def other_container(root: Root) -> str:
    """Where files lie below a root in another container than it says, what to do; else nothing.

    Raises OSError.
    """
    suffixes = {posixpath.splitext(file.path)[1].lower() for file in files_below(root.path)}
    there = [
        *(["folder"] if suffixes & AUDIO_SUFFIXES else []),
        *(name for name, suffix in ((TAR, ".tar"), (PARQUET, ".parquet")) if suffix in suffixes),
    ]
    # Recordings beside tars are found as well.
    if not there or root.container in there or (root.container == TAR and "folder" in there):
        return ""
    return (
        f"{root.path} has its recordings in container {there[0]}, not {root.container}: say so in "
        "the cluster's data"
    )


class RootWatch:
    """Remembers a root's file system, and a file that was read there."""

    def __init__(self, name: str, root: Path | BucketPath) -> None:
        """``name``: of the source. Raises BackendError when the root is not there."""
        self._name, self._root = name, root
        self._device = self._device_now()
        self._witness: Path | BucketPath | None = None

    def has_read(self, path: Path | BucketPath) -> None:
        """Say that a file below the root could be read."""
        self._witness = path

    def require(self) -> None:
        """Raises BackendError unless the root is as it was, and what was read there still opens."""
        if self._device_now() != self._device:
            raise self._lost(f"{self._root}: another file system than at the start")
        if self._witness:
            try:
                self._witness.open("rb").close()
            except OSError as error:
                raise self._lost(os_words(error)) from None

    def _device_now(self) -> int:
        """The number of its file system; a bucket has none, and is there or not."""
        try:
            if isinstance(self._root, Path):
                return self._root.stat().st_dev
            self._root.require()
            return 0
        except OSError as error:
            raise self._lost(os_words(error)) from None

    def _lost(self, words: str) -> BackendError:
        return BackendError(f"data.{self._name}: {words}; see whether it is there")


def unread(error: OSError) -> str:
    """Why a root cannot be read, and what to do; words that are not the system's say that."""
    remedy = "" if error.errno is None else "; make it readable on every node"
    return f"{os_words(error)}{remedy}"
