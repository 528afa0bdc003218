"""LibriSpeech: ``<subset>/<speaker>/<chapter>/<utterance>.flac`` (openslr.org/12)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, by_stem
from jobs.audio.trees import Tree


def recordings(tree: Tree) -> Iterator[Recording]:
    """All utterances, in English; `split.by: speaker` keeps readers apart.

    A chapter is no session, so that recipes of before sessions keep their split.
    """
    for name, leaf in by_stem(tree.leaves()):
        parts = PurePosixPath(leaf.path).parts
        speaker = parts[-3] if len(parts) >= 3 else ""
        yield Recording(name, leaf, language="en", speaker=speaker)
