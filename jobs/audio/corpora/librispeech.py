"""LibriSpeech: ``<subset>/<speaker>/<chapter>/<utterance>.flac`` (openslr.org/12)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, by_stem
from jobs.audio.trees import Tree


def recordings(tree: Tree) -> Iterator[Recording]:
    """All utterances, in English; a session is a chapter."""
    for name, leaf in by_stem(tree.leaves()):
        parts = PurePosixPath(leaf.path).parts
        speaker, chapter = (parts[-3], parts[-2]) if len(parts) >= 3 else ("", "")
        session = f"{speaker}-{chapter}" if speaker else ""
        yield Recording(name, leaf, language="en", speaker=speaker, session=session)
