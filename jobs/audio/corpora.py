"""Finds the recordings below a source's root: one adapter per way that corpora lay out their files.

In: a source and its root. Out: recordings in a fixed order, each with its language and speaker,
nothing decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jobs.audio.decode import AUDIO_SUFFIXES
from orchestrator.errors import BackendError, DataError, os_words
from orchestrator.ledger.source_files import files_below
from orchestrator.spec.recipe import Source


class Recording(NamedTuple):
    """One audio file of a source."""

    source: str
    path: str
    """Relative to the source's root, with forward slashes."""
    language: str
    """ISO 639 code; empty when the folder names none."""
    speaker: str

    @property
    def id(self) -> str:
        """Source and path without the suffix: unique over the corpus, the same on every cluster."""
        return f"{self.source}/{PurePosixPath(self.path).with_suffix('')}"


def list_recordings(source: Source, root: Path) -> list[Recording]:
    """The source's recordings, sorted by path.

    Raises DataError when two of them differ by suffix alone: they would share an id. Raises
    BackendError when a part of the root cannot be listed: nothing is left out without a row.
    """
    try:
        paths = _audio_files(root)
    except OSError as error:
        raise BackendError(
            f"data.{source.name}: {os_words(error)}; make it readable on every node"
        ) from None
    found = [_ADAPTERS[source.adapter](source, PurePosixPath(path)) for path in paths]
    taken: dict[str, str] = {}
    for recording in found:
        if taken.setdefault(recording.id, recording.path) != recording.path:
            raise DataError(
                f"{root}: {taken[recording.id]} and {recording.path} differ by suffix alone; "
                "remove one of them"
            )
    return found


def _folder(source: Source, path: PurePosixPath) -> Recording:
    """``<language>/.../<speaker>/<file>``; the speaker is the folder that holds the file."""
    language = path.parts[0] if len(path.parts) > 1 else ""
    if source.language != "from_folder":
        language = source.language
    return Recording(source.name, str(path), language, str(path.parent))


def _librispeech(source: Source, path: PurePosixPath) -> Recording:
    """``<subset>/<speaker>/<chapter>/<file>.flac``, all of it English."""
    language = "en" if source.language == "from_folder" else source.language
    speaker = path.parts[-3] if len(path.parts) >= 3 else ""
    return Recording(source.name, str(path), language, speaker)


_ADAPTERS: dict[str, Callable[[Source, PurePosixPath], Recording]] = {
    "folder": _folder,
    "librispeech": _librispeech,
}


def _audio_files(root: Path) -> list[str]:
    """Paths relative to ``root``, sorted as text, so that no file system's own order shows."""
    return sorted(
        path.relative_to(root).as_posix()
        for path, _ in files_below(root, hidden_folders=True)
        if path.suffix.lower() in AUDIO_SUFFIXES
    )
