"""The People's Speech as first published: FLAC in tars or unpacked (arXiv 2111.09344).

``train/{clean,clean_sa,dirty,dirty_sa}/``, ``dev/``, ``test/``, each with ``<source>/<file>.flac``.
All parts count: what is poor in them is the alignment of the text, which nobody needs here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, by_stem
from jobs.audio.trees import Tree


def recordings(tree: Tree) -> Iterator[Recording]:
    """All utterances, in English; the recording that they were cut from is speaker and session."""
    for name, leaf in by_stem(tree.leaves()):
        source = PurePosixPath(leaf.path).parent.name
        yield Recording(name, leaf, language="en", speaker=source, session=source)
