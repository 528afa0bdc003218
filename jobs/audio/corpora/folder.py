"""One's own folder: ``<language>/.../<speaker>/<file>``; the speaker is the folder of the file.

Files beside each other at the root name none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, by_stem
from jobs.audio.languages import language_of_folder
from jobs.audio.trees import Tree


def recordings(tree: Tree) -> Iterator[Recording]:
    """All audio files; the first folder names the language."""
    for name, leaf in by_stem(tree.leaves()):
        path = PurePosixPath(leaf.path)
        language, speaker = (path.parts[0], str(path.parent)) if len(path.parts) > 1 else ("", "")
        yield Recording(name, leaf, language=language_of_folder(language), speaker=speaker)
