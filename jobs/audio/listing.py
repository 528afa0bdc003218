"""Finds the recordings below a source's root: one adapter per way that corpora lay out their files.

In: a source and its root. Out: recordings in a fixed order, each with its language and speaker,
nothing decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jobs.audio.decode import AUDIO_SUFFIXES
from orchestrator.errors import BackendError, os_words
from orchestrator.ledger.source_files import files_below
from orchestrator.spec.recipe import Source


class Recording(NamedTuple):
    """One audio file of a source."""

    source: str
    path: str
    """Relative to the source's root, with forward slashes, as text (`source_files.as_text`)."""
    language: str
    """ISO 639 code; empty when the folder names none."""
    speaker: str
    name: str
    """Path without the suffix, or with it where another differs in that alone."""
    problem: str = ""
    """Why it must not be opened; empty for a file."""

    @property
    def id(self) -> str:
        """Source and name: unique over the corpus, the same on every cluster."""
        return f"{self.source}/{self.name}"


def list_recordings(source: Source, root: Path) -> list[Recording]:
    """The source's recordings, sorted by path as text, so that no file system's order shows.

    Raises BackendError when a part of the root cannot be listed: nothing is left out without a row.
    """
    try:
        files = sorted(f for f in files_below(root) if _suffix(f.path) in AUDIO_SUFFIXES)
    except OSError as error:
        raise BackendError(
            f"data.{source.name}: {os_words(error)}; make it readable on every node"
        ) from None
    told_apart = _ADAPTERS[source.adapter]
    stems = Counter(_stem(file.path) for file in files)
    recordings = []
    for file in files:
        language, speaker = told_apart(source, PurePosixPath(file.path))
        stem = _stem(file.path)
        name = stem if stems[stem] == 1 else file.path
        recordings.append(Recording(source.name, file.path, language, speaker, name, file.problem))
    return recordings


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _folder(source: Source, path: PurePosixPath) -> tuple[str, str]:
    """``<language>/.../<speaker>/<file>``; the speaker is the folder that holds the file."""
    language = path.parts[0] if len(path.parts) > 1 else ""
    if source.language != "from_folder":
        language = source.language
    return language, str(path.parent)


def _librispeech(source: Source, path: PurePosixPath) -> tuple[str, str]:
    """``<subset>/<speaker>/<chapter>/<file>.flac``, all of it English."""
    language = "en" if source.language == "from_folder" else source.language
    speaker = path.parts[-3] if len(path.parts) >= 3 else ""
    return language, speaker


_ADAPTERS: dict[str, Callable[[Source, PurePosixPath], tuple[str, str]]] = {
    "folder": _folder,
    "librispeech": _librispeech,
}
"""Each tells a recording's language and speaker by its path."""
