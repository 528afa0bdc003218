"""Multilingual LibriSpeech: ``mls_<language>[_opus]/<subset>/audio/<speaker>/<book>/<id>.flac``.

openslr.org/94; ids are ``<speaker>_<book>_<n>``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, by_stem
from jobs.audio.trees import Tree

_LANGUAGES = {
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "spanish": "es",
}


def recordings(tree: Tree) -> Iterator[Recording]:
    """All utterances; a session is a speaker's book."""
    for name, leaf in by_stem(tree.leaves()):
        path = PurePosixPath(leaf.path)
        named = next((p for p in path.parts if p.startswith("mls_")), "")
        language = _LANGUAGES.get(named.removeprefix("mls_").removesuffix("_opus"), "")
        speaker, _, rest = path.stem.partition("_")
        session = f"{speaker}_{rest.partition('_')[0]}"
        yield Recording(name, leaf, language=language, speaker=speaker, session=session)
