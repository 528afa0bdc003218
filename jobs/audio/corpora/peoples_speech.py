"""The People's Speech as published: FLAC in tars or unpacked, and its unsupervised part.

``train/{clean,clean_sa,dirty,dirty_sa}/``, ``dev/``, ``test/``, each with ``<source>/<file>.flac``
(arXiv 2111.09344). All parts count: what is poor in them is the alignment of the text, which nobody
needs here. Unsupervised: ``audio/000001.tar`` and ``audio2/``, in many languages, those of
``lang_id_results.jsonl``: ``{"tar_number", "filepath", "prediction"}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from jobs.audio.corpora.recording import Recording, by_stem
from jobs.audio.languages import language_code
from jobs.audio.lists import json_lines, value
from jobs.audio.trees import Leaf, Tree

LANGUAGES = "lang_id_results.jsonl"
_UNSUPERVISED = ("audio", "audio2")


def recordings(tree: Tree) -> Iterator[Recording]:
    """All utterances; the recording that they were cut from is speaker and session.

    They are in English, but for the unsupervised, which are whole recordings of nobody known.
    """
    leaves = list(tree.leaves())
    said = _languages(tree, leaves)
    for name, leaf in by_stem(leaves):
        path = PurePosixPath(leaf.path)
        if said or path.parts[0] in _UNSUPERVISED:
            yield Recording(name, leaf, language=said.get(_key(leaf.archive, leaf.path), ""))
        else:
            source = path.parent.name
            yield Recording(name, leaf, language="en", speaker=source, session=source)


def _languages(tree: Tree, leaves: list[Leaf]) -> Mapping[tuple[str, str], str]:
    """The language of each unsupervised recording, by its tar and name."""
    return {
        _key(str(value(row, "tar_number", where)), str(value(row, "filepath", where))): (
            language_code(str(row.get("prediction") or ""))
        )
        for leaf in leaves
        if PurePosixPath(leaf.path).name == LANGUAGES
        for where, row in json_lines(tree, leaf)
    }


def _key(archive: str, path: str) -> tuple[str, str]:
    """``1`` and ``audio/000001.tar`` are one tar."""
    return PurePosixPath(archive).stem.lstrip("0"), PurePosixPath(path).name
