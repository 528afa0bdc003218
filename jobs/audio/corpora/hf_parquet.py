"""A hub's data set in Parquet: one recording a row, with its language and speaker in columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.audio.corpora.recording import Recording, stem
from jobs.audio.languages import language_code
from jobs.audio.trees import ParquetTree, Tree
from orchestrator.errors import RequestError

_LANGUAGE, _SPEAKER = ("language", "lang", "locale"), ("speaker", "speaker_id", "client_id")


def recordings(tree: Tree) -> Iterator[Recording]:
    """All rows. Raises RequestError for what is read as folders or tars."""
    if not isinstance(tree, ParquetTree):
        raise RequestError("hf_parquet: give the source the container parquet")
    rows = list(tree.rows())
    stems = Counter(stem(leaf.path) for leaf, _ in rows)
    paths = Counter(leaf.path for leaf, _ in rows)
    for leaf, about in rows:
        name = stem(leaf.path) if stems[stem(leaf.path)] == 1 else leaf.path
        yield Recording(
            # Splits may each count from 0 on.
            name if paths[leaf.path] == 1 else f"{leaf.archive}/{leaf.path}",
            leaf,
            language=language_code(_language(about)),
            speaker=str(_first(about, _SPEAKER)),
        )


def _language(about: Mapping[str, Any]) -> str:
    """What a row says; a number, as of a class, names none."""
    said = _first(about, _LANGUAGE)
    return said if isinstance(said, str) else ""


def _first(about: Mapping[str, Any], names: tuple[str, ...]) -> str | int:
    return next((about[name] for name in names if about.get(name) not in (None, "")), "")
